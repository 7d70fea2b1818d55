# TMX_CUDA: build the CUDA kernels?  AUTO: if nvcc is there.  They are objects made by nvcc and joined to the rooms attn and ops,
# so the rest of the build knows no second language and links with the C compiler (hence no C++ runtime: no exceptions, no
# guards); the CUDA runtime is linked statically.  Of cuBLASLt only the header is needed: the library is loaded when a device
# is opened.  Without it attention is there, the operators of the room ops (and with them models on the GPU) are not.
set(TMX_CUDA AUTO CACHE STRING "CUDA kernels: AUTO (if nvcc is found), ON, OFF")
set_property(CACHE TMX_CUDA PROPERTY STRINGS AUTO ON OFF)
set(TMX_HAS_CUDA FALSE)
set(TMX_CUDA_TEXT "off")
if(NOT TMX_CUDA STREQUAL "OFF")
    find_package(CUDAToolkit 12.5 QUIET)
    if(CUDAToolkit_FOUND AND CUDAToolkit_NVCC_EXECUTABLE)
        set(TMX_HAS_CUDA TRUE)
        set(TMX_CUDA_TEXT "${CUDAToolkit_VERSION}, ${CUDAToolkit_NVCC_EXECUTABLE}")
    elseif(TMX_CUDA STREQUAL "ON")
        message(FATAL_ERROR "TMX_CUDA=ON, but no CUDA toolkit 12.5 or later with nvcc was found")
    else()
        set(TMX_CUDA_TEXT "not found")
    endif()
endif()
set(TMX_HAS_CUBLASLT FALSE)
set(TMX_CUBLASLT_TEXT "off")
if(TMX_HAS_CUDA)
    find_path(CUBLASLT_INCLUDE cublasLt.h HINTS ${CUDAToolkit_INCLUDE_DIRS} NO_DEFAULT_PATH)
    if(CUBLASLT_INCLUDE)
        set(TMX_HAS_CUBLASLT TRUE)
        set(TMX_CUBLASLT_TEXT "header found; the library is loaded when a GPU is opened")
    else()
        set(TMX_CUBLASLT_TEXT "no cublasLt.h beside CUDA's headers: no models on the GPU")
    endif()
endif()

option(TMX_CUDA_LINEINFO "source lines in the GPU code, for profilers; they name the folders of the build machine" OFF)

# tmx_cuda_sources(TARGET NVCC_FLAGS... SOURCES files...): compiles each file with nvcc and adds the objects to TARGET.
function(tmx_cuda_sources target)
    cmake_parse_arguments(cuda "" "" "FLAGS;SOURCES" ${ARGN})
    set(host_flags -fPIC,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics,-Wall,-Wextra)
    if(TMX_WERROR)
        string(APPEND host_flags ",-Werror")
        list(APPEND cuda_FLAGS -Werror all-warnings -Xptxas --warn-on-spills,--warn-on-local-memory-usage,-Werror)
    endif()
    if(TMX_CUDA_LINEINFO)
        list(APPEND cuda_FLAGS -lineinfo)
    endif()
    foreach(source ${cuda_SOURCES})
        get_filename_component(name ${source} NAME)
        set(object ${CMAKE_BINARY_DIR}/cuda/${name}.o)
        add_custom_command(OUTPUT ${object}
            COMMAND ${CUDAToolkit_NVCC_EXECUTABLE} -std=c++17 -O3 -Xcompiler ${host_flags} ${cuda_FLAGS}
                    -I${CMAKE_SOURCE_DIR}/include -I${CMAKE_SOURCE_DIR}/src -MD -MF ${object}.d -MT ${object}
                    -c ${CMAKE_SOURCE_DIR}/${source} -o ${object}
            DEPENDS ${CMAKE_SOURCE_DIR}/${source} DEPFILE ${object}.d
            COMMENT "Building CUDA object ${name}.o" VERBATIM)
        set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
        target_sources(${target} PRIVATE ${object})
    endforeach()
endfunction()
