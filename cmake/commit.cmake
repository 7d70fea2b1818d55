# cmake -DSOURCE=... -DOUTPUT=... -P commit.cmake: writes the commit that is being built into a header, at every build; the
# file changes only when the commit does.  Outside of a repository: "unknown" and 0.
execute_process(COMMAND git -C ${SOURCE} describe --always --dirty --abbrev=7 --exclude=* OUTPUT_VARIABLE commit
                OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
if(failed)
    set(commit unknown)
endif()
execute_process(COMMAND git -C ${SOURCE} rev-list --count HEAD OUTPUT_VARIABLE number
                OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
if(failed)
    set(number 0)
endif()
set(content "#define TMX_COMMIT \"${commit}\"\n#define TMX_COMMIT_NUMBER ${number}\n")
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT "${content}" @ONLY)
