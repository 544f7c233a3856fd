#include "common/exif.hpp"

#include <cstring>

namespace dlfs {
namespace {

constexpr uint32_t tag_orientation = 0x0112;
constexpr uint32_t type_short = 3, type_long = 4;
constexpr int64_t entry_bytes = 12;

class TiffReader {
 public:
  TiffReader(const uint8_t* bytes, bool little_endian) : bytes_(bytes), little_(little_endian) {}

  uint32_t u16(int64_t at) const {
    const uint8_t* p = bytes_ + at;
    return little_ ? p[0] | static_cast<uint32_t>(p[1]) << 8 : static_cast<uint32_t>(p[0]) << 8 | p[1];
  }
  uint32_t u32(int64_t at) const {
    return little_ ? u16(at) | u16(at + 2) << 16 : u16(at) << 16 | u16(at + 2);
  }

 private:
  const uint8_t* bytes_;
  bool little_;
};

}  // namespace

int32_t exif_orientation(const uint8_t* bytes, int64_t size) {
  if (size < 8) return orientation_upright;
  const bool little = memcmp(bytes, "II*\0", 4) == 0;
  if (!little && memcmp(bytes, "MM\0*", 4) != 0) return orientation_upright;
  const TiffReader tiff(bytes, little);
  const int64_t directory = tiff.u32(4);
  if (directory > size - 2) return orientation_upright;
  const int64_t entries = tiff.u16(directory);
  for (int64_t i = 0; i < entries; ++i) {
    const int64_t at = directory + 2 + i * entry_bytes;
    if (at > size - entry_bytes) break;
    if (tiff.u16(at) != tag_orientation) continue;
    // A value of up to four bytes lies in the entry itself.
    const uint32_t type = tiff.u16(at + 2), count = tiff.u32(at + 4);
    uint32_t value = 0;
    if (type == type_short && (count == 1 || count == 2)) value = tiff.u16(at + 8);
    if (type == type_long && count == 1) value = tiff.u32(at + 8);
    return value >= 1 && value <= 8 ? static_cast<int32_t>(value) : orientation_upright;
  }
  return orientation_upright;
}

}  // namespace dlfs
