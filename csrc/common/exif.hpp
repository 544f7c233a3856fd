// Reads the orientation from EXIF metadata (CIPA DC-008; a TIFF structure) without trusting any number in it.
#pragma once

#include <cstdint>

namespace dlfs {

// EXIF's numbers for how a picture is stored: 1 upright, 2 mirrored, 3 turned by 180 degrees, 4 upside down, 5 transposed,
// 6 to be turned by 90 degrees clockwise, 7 transposed over the other diagonal, 8 to be turned by 90 degrees the other way.
constexpr int32_t orientation_upright = 1;

// The orientation, 1 to 8, in `size` bytes of EXIF data from its TIFF header on. What is missing or malformed is upright.
int32_t exif_orientation(const uint8_t* bytes, int64_t size);

}  // namespace dlfs
