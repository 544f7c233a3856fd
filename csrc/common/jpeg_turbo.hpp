// Decodes and encodes JPEGs with libjpeg-turbo. The CPU library always has it; the CUDA library uses it, where it was
// built with it (DLFS_HAVE_LIBJPEG), for what nvJPEG refuses. Threads may decode at once.
#pragma once

#ifdef DLFS_HAVE_LIBJPEG

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "common/jpeg_header.hpp"

namespace dlfs {

// Decodes to rgb (height, width, 3) uint8; header is what check_jpeg gave for these bytes. Slow-but-accurate integer
// DCT and smooth chroma upsampling (libjpeg's defaults, as in Pillow and torchvision). Grayscale is replicated. CMYK
// and YCCK follow Adobe's convention (stored inverted) whether the marker is there or not, and are converted as Pillow
// does. Throws DLFS_ERROR_IMAGE with the library's text for files that are damaged or that it does not support; rgb's
// content is undefined then.
void jpeg_turbo_decode(uint8_t* rgb, const uint8_t* bytes, int64_t length, const JpegHeader& header);

struct EncodedJpeg {
  struct Free {
    void operator()(unsigned char* p) const { free(p); }
  };
  std::unique_ptr<unsigned char, Free> bytes;
  int64_t length;
};

// Encodes rgb (height, width, 3) as a baseline JPEG, 4:2:0, with libjpeg's quality scale, 1 to 100. Sizes up to 65500.
EncodedJpeg jpeg_turbo_encode(const uint8_t* rgb, int32_t width, int32_t height, int32_t quality);

}  // namespace dlfs

#endif
