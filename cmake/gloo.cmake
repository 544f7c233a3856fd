# dlfs_link_gloo(target): links Gloo, by which processes on CPUs train together, and defines DLFS_HAVE_GLOO to 1. Without it
# dlfs_supports("collectives") is 0. By header and library: Gloo's CMake package is not on CMake's search path on Debian.
function(dlfs_link_gloo target)
  find_path(DLFS_GLOO_INCLUDE_DIR gloo/allreduce.h HINTS "$ENV{GLOOROOT}/include")
  find_library(DLFS_GLOO_LIBRARY gloo HINTS "$ENV{GLOOROOT}/lib")
  if(DLFS_GLOO_INCLUDE_DIR AND DLFS_GLOO_LIBRARY)
    target_include_directories(${target} SYSTEM PRIVATE "${DLFS_GLOO_INCLUDE_DIR}")
    target_link_libraries(${target} PRIVATE "${DLFS_GLOO_LIBRARY}")
    target_compile_definitions(${target} PRIVATE DLFS_HAVE_GLOO=1)
  else()
    message(STATUS "dlfs: built without Gloo, so CPUs cannot train together. Debian and Ubuntu: libgloo-dev.")
  endif()
endfunction()
