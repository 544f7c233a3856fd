# libdlfs_cpu.so: oneDNN, libjpeg-turbo, OpenMP; libpng, libwebp and Gloo where they are found.
file(GLOB sources CONFIGURE_DEPENDS
  "${PROJECT_SOURCE_DIR}/csrc/common/*.cpp" "${PROJECT_SOURCE_DIR}/csrc/cpu/*.cpp")
target_sources(dlfs PRIVATE ${sources})

# A local build may use all instructions of this processor; a build for others must not.
if(DLFS_RELEASE)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$")
    target_compile_options(dlfs PRIVATE -march=x86-64-v2)
  endif()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  target_compile_options(dlfs PRIVATE -mcpu=native)
else()
  target_compile_options(dlfs PRIVATE -march=native)
endif()
# No contraction to fused multiply-adds: the same source gives the same bits with and without FMA instructions, so
# recorded numbers hold on every machine. Floating point is otherwise IEEE (no -ffast-math) for the same reason.
target_compile_options(dlfs PRIVATE -ffp-contract=off)

find_package(OpenMP REQUIRED COMPONENTS CXX)
target_link_libraries(dlfs PRIVATE OpenMP::OpenMP_CXX)

# By header and library: the CMake package of Debian's libdnnl-dev demands OpenCL's headers.
find_path(DLFS_DNNL_INCLUDE_DIR dnnl.hpp HINTS "$ENV{DNNLROOT}/include")
find_library(DLFS_DNNL_LIBRARY dnnl HINTS "$ENV{DNNLROOT}/lib")
if(NOT DLFS_DNNL_INCLUDE_DIR OR NOT DLFS_DNNL_LIBRARY)
  message(FATAL_ERROR "oneDNN was not found (dnnl.hpp, libdnnl.so). Debian and Ubuntu: libdnnl-dev. "
    "Elsewhere: set DNNLROOT to its prefix.")
endif()
target_include_directories(dlfs SYSTEM PRIVATE "${DLFS_DNNL_INCLUDE_DIR}")
target_link_libraries(dlfs PRIVATE "${DLFS_DNNL_LIBRARY}")
if(DEFINED ENV{DNNLROOT})
  get_filename_component(dnnl_dir "${DLFS_DNNL_LIBRARY}" DIRECTORY)
  set_property(TARGET dlfs APPEND PROPERTY INSTALL_RPATH "${dnnl_dir}")
endif()

include("${PROJECT_SOURCE_DIR}/cmake/images.cmake")
dlfs_link_images(dlfs JPEG_REQUIRED)
include("${PROJECT_SOURCE_DIR}/cmake/gloo.cmake")
dlfs_link_gloo(dlfs)

message(STATUS "dlfs: CPU library with ${DLFS_DNNL_LIBRARY}, ${DLFS_JPEG_LIBRARY}, header ${header_hash}")
