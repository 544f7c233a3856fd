#include "common/png_file.hpp"

#include <cstring>

#include "common/exif.hpp"
#include "common/jpeg_header.hpp"

#ifdef DLFS_HAVE_LIBPNG
#include <csetjmp>
#include <memory>

#include <png.h>
#endif

namespace dlfs {
namespace {

constexpr uint8_t signature[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
// Before a chunk's content its length and its type, behind it a checksum.
constexpr int64_t chunk_head = 8, chunk_tail = 4;
constexpr int64_t header_bytes = 13;

int64_t u32(const uint8_t* p) {
  return static_cast<int64_t>(p[0]) << 24 | static_cast<int64_t>(p[1]) << 16 | static_cast<int64_t>(p[2]) << 8 | p[3];
}

// Walks over a file's chunks. The checksums are libpng's business.
class ChunkReader {
 public:
  ChunkReader(const uint8_t* bytes, int64_t length) : bytes_(bytes), length_(length) {}

  // Steps to the next chunk; false where the bytes end inside it.
  bool next() {
    if (length_ - position_ < chunk_head) return false;
    size_ = u32(bytes_ + position_);
    type_ = bytes_ + position_ + 4;
    if (size_ > length_ - position_ - chunk_head - chunk_tail) return false;
    position_ += chunk_head + size_ + chunk_tail;
    return true;
  }

  // Of the chunk that was stepped to, whole or not.
  bool is(const char* type) const { return memcmp(type_, type, 4) == 0; }
  bool begun() const { return type_ != nullptr; }
  const uint8_t* content() const { return type_ + 4; }
  int64_t size() const { return size_; }

 private:
  const uint8_t* bytes_;
  int64_t length_;
  int64_t position_ = sizeof signature;
  const uint8_t* type_ = nullptr;
  int64_t size_ = 0;
};

bool sound_depth(int32_t colour, int32_t bits) {
  switch (colour) {
    case 0: return bits == 1 || bits == 2 || bits == 4 || bits == 8 || bits == 16;
    case 3: return bits == 1 || bits == 2 || bits == 4 || bits == 8;
    case 2:
    case 4:
    case 6: return bits == 8 || bits == 16;
    default: return false;
  }
}

// The bytes that the picture has before compression, at least: interlacing adds some.
int64_t raw_bytes(const PngHeader& header) {
  return header.height * (1 + (int64_t{header.width} * header.components() * header.bits + 7) / 8);
}

// Deflate's most: a code of one bit for the length and one for the distance give 258 bytes (RFC 1951), and the stream
// has a start and an end.
constexpr int64_t most_expansion = 1032;

}  // namespace

bool is_png(const uint8_t* bytes, int64_t length) {
  return length >= 4 && memcmp(bytes, signature, 4) == 0;
}

PngHeader read_png_header(const uint8_t* bytes, int64_t length) {
  DLFS_CHECK(length >= static_cast<int64_t>(sizeof signature), DLFS_ERROR_IMAGE,
             "truncated PNG: no header in its %lld bytes", static_cast<long long>(length));
  DLFS_CHECK(memcmp(bytes, signature, sizeof signature) == 0, DLFS_ERROR_IMAGE,
             "damaged PNG: its signature was changed, as by a transfer as text");
  ChunkReader reader(bytes, length);
  DLFS_CHECK(reader.next(), DLFS_ERROR_IMAGE, "truncated PNG: no header in its %lld bytes",
             static_cast<long long>(length));
  DLFS_CHECK(reader.is("IHDR") && reader.size() == header_bytes, DLFS_ERROR_IMAGE,
             "damaged PNG: it does not begin with a header of %lld bytes", static_cast<long long>(header_bytes));
  const uint8_t* p = reader.content();
  const int64_t width = u32(p), height = u32(p + 4);
  DLFS_CHECK(width > 0 && height > 0, DLFS_ERROR_IMAGE, "the PNG's size is 0: %lld x %lld pixels",
             static_cast<long long>(width), static_cast<long long>(height));
  DLFS_CHECK(width <= INT32_MAX && height <= INT32_MAX, DLFS_ERROR_IMAGE, "damaged PNG: a size of %lld x %lld pixels",
             static_cast<long long>(width), static_cast<long long>(height));
  DLFS_CHECK(sound_depth(p[9], p[8]), DLFS_ERROR_IMAGE, "damaged PNG: %d bits per sample of colour type %d", p[8], p[9]);
  DLFS_CHECK(p[10] == 0 && p[11] == 0 && p[12] <= 1, DLFS_ERROR_IMAGE,
             "damaged PNG: expected compression 0, filters 0 and interlacing of 0 or 1, got %d, %d and %d", p[10], p[11],
             p[12]);
  PngHeader header{static_cast<int32_t>(width), static_cast<int32_t>(height), p[8], p[9], p[12] == 1,
                   orientation_upright};
  bool exif = false;
  while (!exif && reader.next() && !reader.is("IDAT")) {
    if (!reader.is("eXIf")) continue;
    exif = true;
    header.orientation = exif_orientation(reader.content(), reader.size());
  }
  return header;
}

PngHeader check_png(const uint8_t* bytes, int64_t length) {
  const PngHeader header = read_png_header(bytes, length);
  const int64_t pixels = int64_t{header.width} * header.height;
  DLFS_CHECK(pixels <= max_image_pixels, DLFS_ERROR_IMAGE, "the PNG claims %d x %d pixels, more than the limit of %lld",
             header.width, header.height, static_cast<long long>(max_image_pixels));
  ChunkReader reader(bytes, length);
  int64_t data = 0;
  bool ended = false;
  while (!ended && reader.next()) {
    if (reader.is("IDAT")) data += reader.size();
    ended = reader.is("IEND");
  }
  DLFS_CHECK(ended, DLFS_ERROR_IMAGE, "truncated PNG: no end chunk in its %lld bytes", static_cast<long long>(length));
  DLFS_CHECK(raw_bytes(header) / most_expansion <= data, DLFS_ERROR_IMAGE,
             "truncated or damaged PNG: %lld bytes of image data cannot hold %d x %d pixels", static_cast<long long>(data),
             header.width, header.height);
  return header;
}

#ifdef DLFS_HAVE_LIBPNG

namespace {

struct Source {
  const uint8_t* bytes;
  size_t left;
};

struct Failure {
  bool failed = false;
  char text[256] = "";
};

// The library's own handlers print; these keep the message. An error never returns to the library.
[[noreturn]] void on_error(png_structp png, png_const_charp message) {
  Failure& failure = *static_cast<Failure*>(png_get_error_ptr(png));
  failure.failed = true;
  snprintf(failure.text, sizeof failure.text, "%s", message);
  png_longjmp(png, 1);
}

// Warnings concern chunks that do not change pixels, and image data behind the last pixel.
void on_warning(png_structp, png_const_charp) {}

void read_bytes(png_structp png, png_bytep out, size_t size) {
  Source& source = *static_cast<Source*>(png_get_io_ptr(png));
  if (size > source.left) png_error(png, "unexpected end of the file");
  memcpy(out, source.bytes, size);
  source.bytes += size;
  source.left -= size;
}

// With a setjmp: no local needs destruction. rows: where each row goes, for interlaced images; else NULL.
void run_decode(Failure& failure, Source& source, uint8_t* rgb, png_bytepp rows, const PngHeader& header) {
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &failure, on_error, on_warning);
  if (!png) {
    failure.failed = true;
    return;
  }
  // Not changed behind the setjmp, so that they are known after a jump.
  png_infop info = png_create_info_struct(png);
  if (!info) {
    png_destroy_read_struct(&png, nullptr, nullptr);
    failure.failed = true;
    return;
  }
  if (setjmp(png_jmpbuf(png))) {
    png_destroy_read_struct(&png, &info, nullptr);
    return;
  }
  png_set_read_fn(png, &source, read_bytes);
  // check_png has limited the number of pixels.
  png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
#ifdef PNG_HANDLE_AS_UNKNOWN_SUPPORTED
  // Profiles, texts and the like are passed over rather than unpacked.
  png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
#endif
  png_read_info(png, info);
  if (png_get_image_width(png, info) != static_cast<png_uint_32>(header.width) ||
      png_get_image_height(png, info) != static_cast<png_uint_32>(header.height)) {
    png_error(png, "another header than the first one");
  }
  if (header.bits == 16) png_set_strip_16(png);
  if (header.colour == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png);
  if (header.colour == PNG_COLOR_TYPE_GRAY && header.bits < 8) png_set_expand_gray_1_2_4_to_8(png);
  if (header.colour == PNG_COLOR_TYPE_GRAY || header.colour == PNG_COLOR_TYPE_GRAY_ALPHA) png_set_gray_to_rgb(png);
  png_set_strip_alpha(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
  const size_t stride = static_cast<size_t>(header.width) * 3;
  if (png_get_rowbytes(png, info) != stride) png_error(png, "rows of another size than expected");
  if (rows) {
    png_read_image(png, rows);
  } else {
    for (int32_t y = 0; y < header.height; ++y) png_read_row(png, rgb + static_cast<size_t>(y) * stride, nullptr);
  }
  png_read_end(png, nullptr);
  png_destroy_read_struct(&png, &info, nullptr);
}

}  // namespace

void png_decode(uint8_t* rgb, const uint8_t* bytes, int64_t length, const PngHeader& header) {
  std::unique_ptr<png_bytep[]> rows;
  if (header.interlaced) {
    rows.reset(new png_bytep[static_cast<size_t>(header.height)]);
    for (int32_t y = 0; y < header.height; ++y) rows[y] = rgb + static_cast<size_t>(y) * header.width * 3;
  }
  Failure failure;
  Source source{bytes, static_cast<size_t>(length)};
  run_decode(failure, source, rgb, rows.get(), header);
  if (!failure.failed) return;
  DLFS_CHECK(failure.text[0] != 0, DLFS_ERROR_HOST_MEMORY, "out of host memory for libpng");
  throw Error(DLFS_ERROR_IMAGE, format("damaged or unsupported PNG: libpng: %s", failure.text));
}

const char* png_version() { return png_get_libpng_ver(nullptr); }

#endif

}  // namespace dlfs
