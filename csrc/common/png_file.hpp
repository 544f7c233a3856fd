// Reads and decodes PNG files (ISO/IEC 15948). The walk over chunks is ours; the pixels come from libpng, where the library
// was built with it (DLFS_HAVE_LIBPNG).
#pragma once

#include <cstdint>

#include "common/status.hpp"

namespace dlfs {

struct PngHeader {
  int32_t width, height;  // >= 1
  int32_t bits;           // per sample or palette index: 1, 2, 4, 8 or 16
  int32_t colour;         // 0 gray, 2 RGB, 3 palette, 4 gray with alpha, 6 RGB with alpha
  bool interlaced;
  int32_t orientation;  // of an eXIf chunk before the image data; else 1

  // Samples of a pixel: 1 to 4.
  int32_t components() const { return colour == 0 || colour == 3 ? 1 : colour == 4 ? 2 : colour == 2 ? 3 : 4; }
};

bool is_png(const uint8_t* bytes, int64_t length);

// Throws DLFS_ERROR_IMAGE where the bytes, which begin as a PNG, have no sound header. They may end after it.
PngHeader read_png_header(const uint8_t* bytes, int64_t length);

// read_png_header, and throws DLFS_ERROR_IMAGE as well for what must not be decoded: no IEND chunk (a truncated file),
// more than max_image_pixels, or less image data than so many pixels can be compressed to.
PngHeader check_png(const uint8_t* bytes, int64_t length);

#ifdef DLFS_HAVE_LIBPNG
// Decodes to rgb (height, width, 3) uint8 as it is stored; header is what check_png gave for these bytes. Gray is
// replicated, palettes are looked up, of 16 bits the upper eight are taken, transparency is dropped and colour profiles and
// gamma are not applied: Pillow's convert("RGB"), but for gray of 16 bits, which that clips at 255. Throws DLFS_ERROR_IMAGE
// with the library's text for damaged files; rgb's content is undefined then.
void png_decode(uint8_t* rgb, const uint8_t* bytes, int64_t length, const PngHeader& header);

const char* png_version();
#endif

}  // namespace dlfs
