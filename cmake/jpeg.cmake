# dlfs_link_jpeg(target [REQUIRED]): links libjpeg-turbo (the libjpeg API) and defines DLFS_HAVE_LIBJPEG to 1 where
# its header and library are found. The libjpeg API is used, not TurboJPEG's: it reads damaged files up to the damage,
# CMYK and YCCK, and is the one that every distribution ships.
function(dlfs_link_jpeg target)
  find_path(DLFS_JPEG_INCLUDE_DIR jpeglib.h)
  find_library(DLFS_JPEG_LIBRARY jpeg)
  if(DLFS_JPEG_INCLUDE_DIR AND DLFS_JPEG_LIBRARY)
    target_include_directories(${target} SYSTEM PRIVATE "${DLFS_JPEG_INCLUDE_DIR}")
    target_link_libraries(${target} PRIVATE "${DLFS_JPEG_LIBRARY}")
    target_compile_definitions(${target} PRIVATE DLFS_HAVE_LIBJPEG=1)
  elseif("REQUIRED" IN_LIST ARGN)
    message(FATAL_ERROR "libjpeg-turbo was not found (jpeglib.h, libjpeg.so). Debian and Ubuntu: libjpeg-dev.")
  endif()
endfunction()
