// Reads and decodes WebP files (RFC 9649). The walk over the RIFF chunks is ours; the pixels come from libwebp, where the
// library was built with it (DLFS_HAVE_LIBWEBP).
#pragma once

#include <cstdint>

#include "common/status.hpp"

namespace dlfs {

struct WebpHeader {
  int32_t width, height;  // of the canvas, 1 to 16384 (2^24 for animations)
  // The still picture, or an animation's first frame: where it lies on the canvas, and its VP8 or VP8L data in the file.
  int32_t x, y, frame_width, frame_height;
  int64_t data, data_bytes;
  bool lossless;
  bool animated;
  bool alpha;           // the file may have transparency
  int32_t orientation;  // of the EXIF chunk; else 1
};

bool is_webp(const uint8_t* bytes, int64_t length);

// Throws DLFS_ERROR_IMAGE where the bytes, which begin as a WebP, have no sound header. They may end after the picture's own
// header, unless the file has EXIF data, which lies behind the picture.
WebpHeader read_webp_header(const uint8_t* bytes, int64_t length);

// read_webp_header, and throws DLFS_ERROR_IMAGE as well for what must not be decoded: truncated files, more than
// max_image_pixels, a large picture of next to no data.
WebpHeader check_webp(const uint8_t* bytes, int64_t length);

#ifdef DLFS_HAVE_LIBWEBP
// Decodes to rgb (height, width, 3) uint8 as it is stored; header is what check_webp gave for these bytes. Transparency is
// dropped, as by Pillow's convert("RGB"); what an animation's first frame leaves of the canvas is black. Throws
// DLFS_ERROR_IMAGE for damaged files; rgb's content is undefined then.
void webp_decode(uint8_t* rgb, const uint8_t* bytes, int64_t length, const WebpHeader& header);

// "1.2.4"
std::string webp_version();
#endif

}  // namespace dlfs
