# cmake --install: component `runtime` (the program, its man pages, libtmx.so.0, plans, licence) and component `development`
# (header, libtmx.so, libtmx.a, pkg-config file, CMake package).  Everything installed finds its neighbours from where it lies:
# the tree may be moved.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS tmx_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT runtime)
install(FILES ${man_pages} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 COMPONENT runtime)
install(FILES LICENSE README.md CHANGELOG.md DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT runtime)
install(DIRECTORY docs/ DESTINATION ${CMAKE_INSTALL_DOCDIR}/docs COMPONENT runtime)
install(DIRECTORY plans DESTINATION ${CMAKE_INSTALL_DATADIR}/trianglemix COMPONENT runtime FILES_MATCHING PATTERN *.json)
install(FILES include/tmx.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT development)
install(DIRECTORY examples DESTINATION ${CMAKE_INSTALL_DATADIR}/trianglemix COMPONENT development
        PATTERN build EXCLUDE)
if(TMX_IS_SHARED)
    install(TARGETS tmx_shared LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT runtime NAMELINK_COMPONENT development)
endif()
if(TMX_IS_STATIC)
    install(TARGETS tmx_static ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT development)
endif()

# What libtmx.a needs beside itself.  oneDNN 2 has no pkg-config file; libgomp is the runtime it threads with.
set(static_libraries -lm -pthread)
if(TMX_HAS_ONEDNN)
    list(PREPEND static_libraries -ldnnl -l:libgomp.so.1)
endif()
if(TMX_HAS_CUDA)
    list(APPEND static_libraries -ldl -lrt)
endif()
list(JOIN static_libraries " " TMX_STATIC_LIBRARIES)
set(TMX_PC_PRIVATE .private)       # who links the shared library needs none of it
if(NOT TMX_IS_SHARED)
    set(TMX_PC_PRIVATE "")
    set(TMX_PC_LIBRARIES " ${TMX_STATIC_LIBRARIES}")
endif()
file(RELATIVE_PATH TMX_PC_PREFIX ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" TMX_PC_PREFIX "${TMX_PC_PREFIX}")
foreach(folder LIBDIR INCLUDEDIR)                  # relative to the prefix, unless the packager gave an absolute one
    set(TMX_PC_${folder} "\${prefix}")
    cmake_path(APPEND TMX_PC_${folder} "${CMAKE_INSTALL_${folder}}")
endforeach()
configure_file(cmake/trianglemix.pc.in trianglemix.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/trianglemix.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT development)

set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/trianglemix)
configure_package_config_file(cmake/trianglemix-config.cmake.in ${CMAKE_BINARY_DIR}/trianglemix-config.cmake
    INSTALL_DESTINATION ${package_folder} PATH_VARS CMAKE_INSTALL_LIBDIR CMAKE_INSTALL_INCLUDEDIR)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/trianglemix-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/trianglemix-config.cmake ${CMAKE_BINARY_DIR}/trianglemix-config-version.cmake
        DESTINATION ${package_folder} COMPONENT development)
