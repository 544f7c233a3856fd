#include "common/webp_file.hpp"

#include <algorithm>
#include <cstring>

#include "common/exif.hpp"
#include "common/jpeg_header.hpp"

#ifdef DLFS_HAVE_LIBWEBP
#include <webp/decode.h>
#endif

namespace dlfs {
namespace {

constexpr int64_t riff_head = 12;   // "RIFF", size, "WEBP"
constexpr int64_t chunk_head = 8;   // type, size
constexpr int64_t frame_head = 16;  // of an ANMF chunk: x, y, width, height, duration, flags
constexpr int64_t extended_bytes = 10;
constexpr int flag_animation = 0x02, flag_exif = 0x08, flag_alpha = 0x10;

uint32_t u16(const uint8_t* p) { return p[0] | static_cast<uint32_t>(p[1]) << 8; }
uint32_t u24(const uint8_t* p) { return u16(p) | static_cast<uint32_t>(p[2]) << 16; }
int64_t u32(const uint8_t* p) { return u24(p) | static_cast<int64_t>(p[3]) << 24; }

// Walks over chunks that lie one after another, each padded to an even size.
class ChunkReader {
 public:
  ChunkReader(const uint8_t* bytes, int64_t begin, int64_t end) : bytes_(bytes), position_(begin), end_(end) {}

  // Steps to the next chunk; false where the bytes end before its head does. Its content may be cut off.
  bool next() {
    if (end_ - position_ < chunk_head) return false;
    type_ = bytes_ + position_;
    size_ = u32(type_ + 4);
    content_ = position_ + chunk_head;
    left_ = std::min(size_, end_ - content_);
    position_ = content_ + left_ + (left_ & 1);
    return true;
  }

  bool is(const char* type) const { return memcmp(type_, type, 4) == 0; }
  int64_t content() const { return content_; }  // offset in the file
  int64_t size() const { return size_; }        // as the chunk claims
  int64_t left() const { return left_; }        // of it within the bytes
  bool whole() const { return left_ == size_; }

 private:
  const uint8_t* bytes_;
  int64_t position_, end_;
  const uint8_t* type_ = nullptr;
  int64_t size_ = 0, content_ = 0, left_ = 0;
};

[[noreturn]] void throw_truncated(int64_t length) {
  throw Error(DLFS_ERROR_IMAGE, format("truncated WebP: no picture in its %lld bytes", static_cast<long long>(length)));
}

// The head of a VP8 key frame (RFC 6386, 9.1) or of VP8L data; throws where it is none.
void read_picture(WebpHeader& header, const uint8_t* bytes, const ChunkReader& chunk, int64_t length) {
  header.lossless = chunk.is("VP8L");
  header.data = chunk.content();
  header.data_bytes = chunk.size();
  const uint8_t* p = bytes + chunk.content();
  if (header.lossless) {
    if (chunk.left() < 5) throw_truncated(length);
    const uint32_t fields = static_cast<uint32_t>(u32(p + 1));
    DLFS_CHECK(p[0] == 0x2f && fields >> 29 == 0, DLFS_ERROR_IMAGE, "damaged WebP: no header of a lossless picture");
    header.frame_width = static_cast<int32_t>(fields & 0x3fff) + 1;
    header.frame_height = static_cast<int32_t>(fields >> 14 & 0x3fff) + 1;
    header.alpha = header.alpha || (fields >> 28 & 1);
    return;
  }
  if (chunk.left() < 10) throw_truncated(length);
  DLFS_CHECK((p[0] & 1) == 0 && p[3] == 0x9d && p[4] == 0x01 && p[5] == 0x2a, DLFS_ERROR_IMAGE,
             "damaged WebP: no header of a lossy picture");
  header.frame_width = static_cast<int32_t>(u16(p + 6) & 0x3fff);
  header.frame_height = static_cast<int32_t>(u16(p + 8) & 0x3fff);
  DLFS_CHECK(header.frame_width > 0 && header.frame_height > 0, DLFS_ERROR_IMAGE,
             "the WebP's size is 0: %d x %d pixels", header.frame_width, header.frame_height);
}

// Goes on until the picture, in an animation the first frame's.
void find_picture(WebpHeader& header, const uint8_t* bytes, ChunkReader& chunks, int64_t length) {
  while (chunks.next()) {
    if (chunks.is("VP8 ") || chunks.is("VP8L")) {
      DLFS_CHECK(!header.animated, DLFS_ERROR_IMAGE, "damaged WebP: a picture beside the frames of an animation");
      read_picture(header, bytes, chunks, length);
      return;
    }
    if (!header.animated || !chunks.is("ANMF")) continue;
    if (chunks.left() < frame_head) throw_truncated(length);
    const uint8_t* p = bytes + chunks.content();
    header.x = 2 * static_cast<int32_t>(u24(p));
    header.y = 2 * static_cast<int32_t>(u24(p + 3));
    const int64_t width = int64_t{u24(p + 6)} + 1, height = int64_t{u24(p + 9)} + 1;
    ChunkReader inside(bytes, chunks.content() + frame_head, chunks.content() + chunks.left());
    while (inside.next()) {
      if (!inside.is("VP8 ") && !inside.is("VP8L")) continue;
      read_picture(header, bytes, inside, length);
      DLFS_CHECK(header.frame_width == width && header.frame_height == height, DLFS_ERROR_IMAGE,
                 "damaged WebP: a frame of %lld x %lld pixels with a picture of %d x %d", static_cast<long long>(width),
                 static_cast<long long>(height), header.frame_width, header.frame_height);
      return;
    }
    break;
  }
  throw_truncated(length);
}

// Pixels that a file may have whatever its size is, and those that each of its bytes may add: solid areas take next to
// nothing in this format.
constexpr int64_t free_pixels = int64_t{1} << 24, pixels_per_byte = 65536;

}  // namespace

bool is_webp(const uint8_t* bytes, int64_t length) {
  return length >= riff_head && memcmp(bytes, "RIFF", 4) == 0 && memcmp(bytes + 8, "WEBP", 4) == 0;
}

WebpHeader read_webp_header(const uint8_t* bytes, int64_t length) {
  WebpHeader header{};
  header.orientation = orientation_upright;
  // The RIFF chunk's end; bytes behind it are none of the picture's.
  const int64_t end = std::min(length, u32(bytes + 4) + 8);
  ChunkReader chunks(bytes, riff_head, end);
  if (!chunks.next()) throw_truncated(length);
  if (!chunks.is("VP8X")) {
    DLFS_CHECK(chunks.is("VP8 ") || chunks.is("VP8L"), DLFS_ERROR_IMAGE,
               "damaged WebP: it does not begin with a VP8, VP8L or VP8X chunk");
    read_picture(header, bytes, chunks, length);
    header.width = header.frame_width;
    header.height = header.frame_height;
    return header;
  }
  if (chunks.left() < extended_bytes) throw_truncated(length);
  const uint8_t* p = bytes + chunks.content();
  const bool exif = p[0] & flag_exif;
  header.animated = p[0] & flag_animation;
  header.alpha = p[0] & flag_alpha;
  header.width = static_cast<int32_t>(u24(p + 4)) + 1;
  header.height = static_cast<int32_t>(u24(p + 7)) + 1;
  find_picture(header, bytes, chunks, length);
  if (header.animated) {
    DLFS_CHECK(int64_t{header.x} + header.frame_width <= header.width &&
                   int64_t{header.y} + header.frame_height <= header.height,
               DLFS_ERROR_IMAGE, "damaged WebP: a frame of %d x %d pixels at (%d, %d) of %d x %d", header.frame_width,
               header.frame_height, header.x, header.y, header.width, header.height);
  } else {
    DLFS_CHECK(header.frame_width == header.width && header.frame_height == header.height, DLFS_ERROR_IMAGE,
               "damaged WebP: a picture of %d x %d pixels in a file of %d x %d", header.frame_width,
               header.frame_height, header.width, header.height);
  }
  while (exif) {
    const bool found = chunks.next();
    // Of a whole file that lacks it the flag is wrong; of the beginning of one it is still to come.
    if (!found && end == u32(bytes + 4) + 8) break;
    DLFS_CHECK(found && chunks.whole(), DLFS_ERROR_IMAGE, "truncated WebP: no EXIF data in its %lld bytes",
               static_cast<long long>(length));
    if (!chunks.is("EXIF")) continue;
    // Some writers put a JPEG's identifier before it.
    const uint8_t* data = bytes + chunks.content();
    const int64_t skipped = chunks.size() >= 6 && memcmp(data, "Exif\0", 6) == 0 ? 6 : 0;
    header.orientation = exif_orientation(data + skipped, chunks.size() - skipped);
    break;
  }
  return header;
}

WebpHeader check_webp(const uint8_t* bytes, int64_t length) {
  const int64_t size = u32(bytes + 4) + 8;
  DLFS_CHECK(size <= length, DLFS_ERROR_IMAGE, "truncated WebP: %lld of its %lld bytes", static_cast<long long>(length),
             static_cast<long long>(size));
  const WebpHeader header = read_webp_header(bytes, length);
  const int64_t pixels = int64_t{header.width} * header.height;
  DLFS_CHECK(pixels <= max_image_pixels, DLFS_ERROR_IMAGE, "the WebP claims %d x %d pixels, more than the limit of %lld",
             header.width, header.height, static_cast<long long>(max_image_pixels));
  DLFS_CHECK(header.data + header.data_bytes <= size, DLFS_ERROR_IMAGE,
             "truncated WebP: its picture ends behind its %lld bytes", static_cast<long long>(size));
  DLFS_CHECK(pixels - free_pixels <= header.data_bytes * pixels_per_byte, DLFS_ERROR_IMAGE,
             "damaged WebP: %lld bytes of a picture with %d x %d pixels", static_cast<long long>(header.data_bytes),
             header.width, header.height);
  return header;
}

#ifdef DLFS_HAVE_LIBWEBP

namespace {

const char* text_of(VP8StatusCode status) {
  switch (status) {
    case VP8_STATUS_INVALID_PARAM: return "invalid parameter";
    case VP8_STATUS_BITSTREAM_ERROR: return "damaged data";
    case VP8_STATUS_UNSUPPORTED_FEATURE: return "unsupported feature";
    case VP8_STATUS_SUSPENDED:
    case VP8_STATUS_NOT_ENOUGH_DATA: return "the data end before the picture does";
    default: return "unknown error";
  }
}

}  // namespace

void webp_decode(uint8_t* rgb, const uint8_t* bytes, int64_t length, const WebpHeader& header) {
  DLFS_CHECK(header.data + header.data_bytes <= length, DLFS_ERROR_INTERNAL, "a header of another file");
  const int64_t stride = int64_t{header.width} * 3;
  if (header.frame_width != header.width || header.frame_height != header.height) {
    memset(rgb, 0, static_cast<size_t>(stride * header.height));
  }
  WebPDecoderConfig config;
  DLFS_CHECK(WebPInitDecoderConfig(&config), DLFS_ERROR_INTERNAL, "libwebp has another version than its headers");
  const int64_t start = header.y * stride + int64_t{header.x} * 3;
  config.output.colorspace = MODE_RGB;
  config.output.is_external_memory = 1;
  config.output.u.RGBA.rgba = rgb + start;
  config.output.u.RGBA.stride = static_cast<int>(stride);
  config.output.u.RGBA.size = static_cast<size_t>(stride * header.height - start);
  // The picture without its containers: transparency and further frames are not unpacked.
  const VP8StatusCode status =
      WebPDecode(bytes + header.data, static_cast<size_t>(header.data_bytes), &config);
  WebPFreeDecBuffer(&config.output);
  DLFS_CHECK(status != VP8_STATUS_OUT_OF_MEMORY, DLFS_ERROR_HOST_MEMORY, "out of host memory for libwebp");
  DLFS_CHECK(status == VP8_STATUS_OK, DLFS_ERROR_IMAGE, "damaged or unsupported WebP: libwebp: %s", text_of(status));
}

std::string webp_version() {
  const int version = WebPGetDecoderVersion();
  return format("%d.%d.%d", version >> 16, version >> 8 & 255, version & 255);
}

#endif

}  // namespace dlfs
