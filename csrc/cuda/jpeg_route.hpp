// Which library decodes a JPEG on a machine with a GPU.
#pragma once

#include "common/jpeg_header.hpp"

namespace dlfs {

struct JpegRoute {
  bool nvjpeg;         // nvJPEG may be given the file and decodes it as libjpeg-turbo would
  bool alternative;    // without libjpeg-turbo nvJPEG may be given it all the same
  const char* reason;  // why not; for messages
  bool engine = false;  // a GPU's JPEG engines may be given the file
  int32_t lot = 0;      // 0 to 99, evenly spread: images with lots below a share are that share of all
};

// Reads the file's segments up to its end marker; header must be check_jpeg's of these bytes.
//
// nvJPEG gets what it converts as libjpeg-turbo does: 8-bit gray and YCbCr in 4:4:4, 4:2:2 or 4:2:0, sequential or
// progressive. Not CMYK and YCCK, not RGB without a colour transform, which it takes for YCbCr, not arithmetic coding,
// which it lacks, and no other samplings, whose chroma it does not interpolate. It is also kept from files with
// malformed tables, as releases before 13.4 may read out of bounds for them; libjpeg-turbo says what is wrong with
// those.
//
// Engines get, of these, baseline files of one scan in which nothing looks damaged from outside, as they tell nothing of
// damage: all tables as baseline has them, as many restart markers as there are intervals, in order, the end marker right
// behind the coded data, and enough of those (each block takes two bits at least). All of this depends on the file alone.
JpegRoute route_jpeg(const uint8_t* bytes, int64_t length, const JpegHeader& header);

}  // namespace dlfs
