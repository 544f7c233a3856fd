// Reads JPEG headers with a parser of our own (ITU-T T.81, annex B) that allocates nothing and trusts no length, so
// that what reaches a decoding library is known to be a complete JPEG of a sensible size. Shared by both libraries:
// they refuse the same files with the same messages.
#pragma once

#include <cstdint>

#include "common/status.hpp"

namespace dlfs {

// Of an image of any format.
constexpr int64_t max_image_pixels = int64_t{1} << 28;
// Scans of one image. Progressive files have some ten; each costs a pass over all blocks, however few bytes it has.
constexpr int32_t max_jpeg_scans = 100;

enum class JpegProcess : int32_t { sequential = 0, progressive = 1, lossless = 2, arithmetic = 3 };

struct JpegHeader {
  int32_t width, height;  // of the pixels as they lie in the file, >= 1
  int32_t components;     // 1 to 4 but for lossless files
  int32_t bits;           // per sample
  JpegProcess process;
  int32_t adobe_transform;  // 0 none (RGB or CMYK), 1 YCbCr, 2 YCCK; -1 without an Adobe marker
  uint8_t sof;              // the frame's marker, 0xc0 to 0xcf
  uint8_t sampling[4];      // of the first four components: 16 * horizontal + vertical
  int64_t scan;             // offset of the first scan's marker (SOS), -1 if the bytes end before it
  int32_t orientation;      // of the first EXIF segment, if one comes before the frame header; else 1
};

// Throws DLFS_ERROR_IMAGE where the bytes are not a JPEG or end before the frame header.
JpegHeader read_jpeg_header(const uint8_t* bytes, int64_t length);

// read_jpeg_header, and throws DLFS_ERROR_IMAGE as well for what must not be decoded: no scan, no end marker (a
// truncated file), fewer bytes than the pixels need at least, more than max_image_pixels or max_jpeg_scans.
JpegHeader check_jpeg(const uint8_t* bytes, int64_t length);

}  // namespace dlfs
