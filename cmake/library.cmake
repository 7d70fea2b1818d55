# libtmx out of the rooms.  All of them are linked into one relocatable object, in which only the functions that tmx.h marks
# TMX_API stay global (the CUDA runtime, when it is inside, is hidden with the rest); libtmx.a holds that object, libtmx.so is
# linked from it.  So a static library is one file whose names cannot meet those of a program, and both libraries offer exactly
# what the header says.
#
# BUILD_SHARED_LIBS unset: both; ON: libtmx.so, OFF: libtmx.a.
#
# ABI: while the version is 0.x the soname is libtmx.so.0 and the symbols carry the version node TMX_0.MINOR: 0.1.1 replaces
# 0.1.0; a program built with 0.1 is refused by the loader when it finds 0.2, instead of misreading a struct.
if(NOT DEFINED BUILD_SHARED_LIBS)
    set(TMX_IS_SHARED ON)
    set(TMX_IS_STATIC ON)
elseif(BUILD_SHARED_LIBS)
    set(TMX_IS_SHARED ON)
    set(TMX_IS_STATIC OFF)
else()
    set(TMX_IS_SHARED OFF)
    set(TMX_IS_STATIC ON)
endif()

# Names of the interface, one a line, and the linker's script with them.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS include/tmx.h)
file(STRINGS include/tmx.h declarations REGEX "^TMX_API ")
set(api_names "")
foreach(declaration ${declarations})
    if(declaration MATCHES "(tmx_[a-z0-9_]+)\\(")
        list(APPEND api_names ${CMAKE_MATCH_1})
    endif()
endforeach()
list(JOIN api_names "\n" api_lines)
list(JOIN api_names "; " api_script)
file(CONFIGURE OUTPUT libtmx.names CONTENT "${api_lines}\n" @ONLY)
file(CONFIGURE OUTPUT libtmx.map CONTENT
     "TMX_${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR} { global: ${api_script}; local: *; };\n" @ONLY)

get_property(rooms GLOBAL PROPERTY TMX_ROOMS)
list(TRANSFORM rooms REPLACE "(.+)" "$<TARGET_FILE:\\1>" OUTPUT_VARIABLE room_files)
set(tmx_needs Threads::Threads m PkgConfig::PCRE2 PkgConfig::JANSSON)
if(TMX_HAS_ONEDNN)
    list(APPEND tmx_needs tmx_onednn)
endif()
if(TMX_HAS_CUDA)
    set(cuda_runtime $<TARGET_FILE:CUDA::cudart_static>)
    list(APPEND tmx_needs dl rt)
endif()

# GNU ld, which clang may not be using: it alone dissolves section groups (C++ inside the CUDA runtime), whose names go local.
find_program(TMX_LD NAMES ld.bfd ld REQUIRED)
mark_as_advanced(TMX_LD)
set(tmx_object ${CMAKE_BINARY_DIR}/libtmx.o)
add_custom_command(OUTPUT ${tmx_object}
    COMMAND ${TMX_LD} -r --force-group-allocation -o ${tmx_object} --whole-archive ${room_files} --no-whole-archive
            ${cuda_runtime}
    COMMAND ${CMAKE_OBJCOPY} --keep-global-symbols=${CMAKE_BINARY_DIR}/libtmx.names ${tmx_object}
    DEPENDS ${rooms} ${CMAKE_BINARY_DIR}/libtmx.names
    COMMENT "Joining the rooms in libtmx.o" VERBATIM)
set_source_files_properties(${tmx_object} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
add_custom_target(tmx_object DEPENDS ${tmx_object})

# tmx_library(TARGET TYPE)
function(tmx_library name type)
    add_library(${name} ${type} ${tmx_object})
    add_dependencies(${name} tmx_object)
    target_include_directories(${name} INTERFACE ${PROJECT_SOURCE_DIR}/include)
    target_link_libraries(${name} PRIVATE ${tmx_needs})
    set_target_properties(${name} PROPERTIES LINKER_LANGUAGE C OUTPUT_NAME tmx VERSION ${PROJECT_VERSION}
        SOVERSION ${PROJECT_VERSION_MAJOR} LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}
        ARCHIVE_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
endfunction()

if(TMX_IS_STATIC)
    tmx_library(tmx_static STATIC)
endif()
if(TMX_IS_SHARED)
    tmx_library(tmx_shared SHARED)
    target_link_options(tmx_shared PRIVATE LINKER:--version-script=${CMAKE_BINARY_DIR}/libtmx.map)
    set_property(TARGET tmx_shared APPEND PROPERTY LINK_DEPENDS ${CMAKE_BINARY_DIR}/libtmx.map)
endif()
