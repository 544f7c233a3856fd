# dlfs_link_images(target [JPEG_REQUIRED]): links the libraries that decode image files on the host, and defines for each
# one found DLFS_HAVE_LIBJPEG, DLFS_HAVE_LIBPNG and DLFS_HAVE_LIBWEBP to 1. What is missing shows in dlfs_supports.
#
# libjpeg-turbo is used by the libjpeg API, not TurboJPEG's: it reads damaged files up to the damage, CMYK and YCCK, and is
# the one that every distribution ships.
function(dlfs_link_images target)
  foreach(kind "JPEG;jpeglib.h;jpeg" "PNG;png.h;png" "WEBP;webp/decode.h;webp")
    list(GET kind 0 name)
    list(GET kind 1 header)
    list(GET kind 2 library)
    find_path(DLFS_${name}_INCLUDE_DIR ${header})
    find_library(DLFS_${name}_LIBRARY ${library})
    if(DLFS_${name}_INCLUDE_DIR AND DLFS_${name}_LIBRARY)
      target_include_directories(${target} SYSTEM PRIVATE "${DLFS_${name}_INCLUDE_DIR}")
      target_link_libraries(${target} PRIVATE "${DLFS_${name}_LIBRARY}")
      target_compile_definitions(${target} PRIVATE DLFS_HAVE_LIB${name}=1)
    elseif(name STREQUAL "JPEG" AND "JPEG_REQUIRED" IN_LIST ARGN)
      message(FATAL_ERROR "libjpeg-turbo was not found (jpeglib.h, libjpeg.so). Debian and Ubuntu: libjpeg-dev.")
    elseif(NOT name STREQUAL "JPEG")
      string(TOLOWER "lib${name}-dev" package)
      message(STATUS "dlfs: built without lib${library}, so ${name} files cannot be decoded. Debian and Ubuntu: ${package}.")
    endif()
  endforeach()
endfunction()
