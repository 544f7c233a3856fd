#include "common/jpeg_header.hpp"

#include <cstring>

#include "common/exif.hpp"

namespace dlfs {
namespace {

enum Marker : int {
  marker_tem = 0x01,
  marker_sof0 = 0xc0,
  marker_sof2 = 0xc2,
  marker_sof3 = 0xc3,
  marker_dht = 0xc4,
  marker_jpg = 0xc8,
  marker_sof9 = 0xc9,
  marker_sof10 = 0xca,
  marker_sof11 = 0xcb,
  marker_dac = 0xcc,
  marker_sof15 = 0xcf,
  marker_rst0 = 0xd0,
  marker_rst7 = 0xd7,
  marker_soi = 0xd8,
  marker_eoi = 0xd9,
  marker_sos = 0xda,
  marker_app1 = 0xe1,
  marker_app14 = 0xee,
  marker_sof55 = 0xf7,  // JPEG-LS
};

// Walks over a file's markers. A reader stands behind the last marker it returned, and with a segment behind that.
class MarkerReader {
 public:
  MarkerReader(const uint8_t* bytes, int64_t length, int64_t position)
      : bytes_(bytes), length_(length), position_(position) {}

  // The next marker, skipping what is none (entropy-coded data, garbage, fill bytes); -1 at the end of the bytes.
  int next() {
    for (;;) {
      const void* found =
          position_ < length_ ? memchr(bytes_ + position_, 0xff, static_cast<size_t>(length_ - position_)) : nullptr;
      if (!found) return -1;
      position_ = static_cast<const uint8_t*>(found) - bytes_;
      while (position_ < length_ && bytes_[position_] == 0xff) ++position_;
      if (position_ == length_) return -1;
      marker_ = bytes_[position_++];
      if (marker_ != 0) return marker_;
    }
  }

  static bool has_segment(int marker) {
    return marker != marker_tem && !(marker >= marker_rst0 && marker <= marker_eoi);
  }

  // Steps over the segment behind the marker; false where the bytes end inside it. segment() and size() then tell its
  // content without the two bytes of length.
  bool read_segment() {
    if (length_ - position_ < 2) return false;
    const int64_t size = bytes_[position_] << 8 | bytes_[position_ + 1];
    DLFS_CHECK(size >= 2, DLFS_ERROR_IMAGE, "damaged JPEG: the segment of marker FF%02X at byte %lld has length %lld",
               marker_, static_cast<long long>(position_ - 2), static_cast<long long>(size));
    if (length_ - position_ < size) return false;
    segment_ = bytes_ + position_ + 2;
    size_ = size - 2;
    position_ += size;
    return true;
  }

  const uint8_t* segment() const { return segment_; }
  int64_t size() const { return size_; }
  int64_t position() const { return position_; }

 private:
  const uint8_t* bytes_;
  int64_t length_;
  int64_t position_;
  int marker_ = 0;
  const uint8_t* segment_ = nullptr;
  int64_t size_ = 0;
};

bool is_frame(int marker) {
  return marker >= marker_sof0 && marker <= marker_sof15 && marker != marker_dht && marker != marker_jpg &&
         marker != marker_dac;
}

// The frame header: bits, height, width, components, then three bytes for each component.
void read_frame(JpegHeader& header, int marker, const uint8_t* segment, int64_t size) {
  DLFS_CHECK(size >= 6, DLFS_ERROR_IMAGE, "damaged JPEG: a frame header of %lld bytes", static_cast<long long>(size));
  header.sof = static_cast<uint8_t>(marker);
  header.bits = segment[0];
  header.height = segment[1] << 8 | segment[2];
  header.width = segment[3] << 8 | segment[4];
  header.components = segment[5];
  switch (marker) {
    case marker_sof0:
    case marker_sof0 + 1:
      header.process = JpegProcess::sequential;
      break;
    case marker_sof2:
      header.process = JpegProcess::progressive;
      break;
    case marker_sof3:
    case marker_sof11:
      header.process = JpegProcess::lossless;
      break;
    case marker_sof9:
    case marker_sof10:
      header.process = JpegProcess::arithmetic;
      break;
    default:
      throw Error(DLFS_ERROR_IMAGE, format("hierarchical JPEG (frame FF%02X) is not supported", marker));
  }
  DLFS_CHECK(header.width > 0 && header.height > 0, DLFS_ERROR_IMAGE, "the JPEG's size is 0: %d x %d pixels",
             header.width, header.height);
  const bool lossless = header.process == JpegProcess::lossless;
  DLFS_CHECK(header.components >= 1 && (lossless || header.components <= 4), DLFS_ERROR_IMAGE,
             "damaged JPEG: expected 1 to 4 components, got %d", header.components);
  DLFS_CHECK(header.bits == 8 || (marker != marker_sof0 && header.bits == 12) ||
                 (lossless && header.bits >= 2 && header.bits <= 16),
             DLFS_ERROR_IMAGE, "damaged JPEG: %d bits per sample in a frame FF%02X", header.bits, marker);
  DLFS_CHECK(size >= 6 + 3 * header.components, DLFS_ERROR_IMAGE,
             "damaged JPEG: a frame header of %lld bytes for %d components", static_cast<long long>(size),
             header.components);
  for (int32_t i = 0; i < header.components && i < 4; ++i) header.sampling[i] = segment[6 + 3 * i + 1];
}

// Fewer blocks than these do not make up so many pixels: Huffman coding spends at least one bit on each block of 8 x 8
// samples (its DC coefficient), and sampling factors of up to 4 spread the eight blocks of a unit over 32 x 32 pixels
// at most. Arithmetic coding has no such bound, so its own is generous.
int64_t most_pixels(const JpegHeader& header, int64_t bytes) {
  const int64_t pixels_per_byte = header.process == JpegProcess::arithmetic ? 65536 : 1024;
  return bytes > max_image_pixels ? max_image_pixels : bytes * pixels_per_byte;
}

}  // namespace

JpegHeader read_jpeg_header(const uint8_t* bytes, int64_t length) {
  DLFS_CHECK(length >= 3 && bytes[0] == 0xff && bytes[1] == marker_soi && bytes[2] == 0xff, DLFS_ERROR_IMAGE,
             "not a JPEG: it does not start with FF D8 FF");
  JpegHeader header{};
  header.adobe_transform = -1;
  header.scan = -1;
  header.orientation = orientation_upright;
  bool frame = false, exif = false;
  MarkerReader reader(bytes, length, 2);
  for (;;) {
    const int marker = reader.next();
    if (marker < 0) break;
    const int64_t start = reader.position() - 2;
    DLFS_CHECK(marker != marker_soi, DLFS_ERROR_IMAGE, "damaged JPEG: a second start marker at byte %lld",
               static_cast<long long>(start));
    DLFS_CHECK(marker != marker_sof55, DLFS_ERROR_IMAGE, "JPEG-LS is not supported");
    DLFS_CHECK(marker != marker_sos || frame, DLFS_ERROR_IMAGE,
               "damaged JPEG: a scan before the frame header at byte %lld", static_cast<long long>(start));
    if (marker == marker_sos) header.scan = start;
    if (marker == marker_sos || marker == marker_eoi) break;
    if (!MarkerReader::has_segment(marker)) continue;
    if (!reader.read_segment()) break;
    if (is_frame(marker)) {
      DLFS_CHECK(!frame, DLFS_ERROR_IMAGE, "damaged JPEG: a second frame header at byte %lld",
                 static_cast<long long>(start));
      read_frame(header, marker, reader.segment(), reader.size());
      frame = true;
    } else if (marker == marker_app14 && reader.size() >= 12 && memcmp(reader.segment(), "Adobe", 5) == 0) {
      header.adobe_transform = reader.segment()[11];
    } else if (marker == marker_app1 && !exif && !frame && reader.size() >= 6 &&
               memcmp(reader.segment(), "Exif\0", 6) == 0) {
      exif = true;
      header.orientation = exif_orientation(reader.segment() + 6, reader.size() - 6);
    }
  }
  DLFS_CHECK(frame, DLFS_ERROR_IMAGE, "truncated JPEG: no frame header in its %lld bytes",
             static_cast<long long>(length));
  return header;
}

JpegHeader check_jpeg(const uint8_t* bytes, int64_t length) {
  const JpegHeader header = read_jpeg_header(bytes, length);
  const int64_t pixels = int64_t{header.width} * header.height;
  DLFS_CHECK(pixels <= max_image_pixels, DLFS_ERROR_IMAGE, "the JPEG claims %d x %d pixels, more than the limit of %lld",
             header.width, header.height, static_cast<long long>(max_image_pixels));
  DLFS_CHECK(header.scan >= 0, DLFS_ERROR_IMAGE, "truncated JPEG: no scan in its %lld bytes",
             static_cast<long long>(length));
  DLFS_CHECK(pixels <= most_pixels(header, length - header.scan), DLFS_ERROR_IMAGE,
             "truncated or damaged JPEG: %lld bytes of scans cannot hold %d x %d pixels",
             static_cast<long long>(length - header.scan), header.width, header.height);
  MarkerReader reader(bytes, length, header.scan);
  for (int32_t scans = 0;;) {
    const int marker = reader.next();
    if (marker == marker_eoi) return header;
    if (marker == marker_sos) ++scans;
    DLFS_CHECK(scans <= max_jpeg_scans, DLFS_ERROR_IMAGE, "the JPEG has more than %d scans", max_jpeg_scans);
    const bool ended = marker < 0 || (MarkerReader::has_segment(marker) && !reader.read_segment());
    DLFS_CHECK(!ended, DLFS_ERROR_IMAGE, "truncated JPEG: no end marker in its %lld bytes",
               static_cast<long long>(length));
  }
}

}  // namespace dlfs
