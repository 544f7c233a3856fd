#include "common/image.hpp"

#include <cstring>

#include "common/arguments.hpp"
#include "common/exif.hpp"
#include "common/jpeg_turbo.hpp"
#include "common/orientation.hpp"
#include "common/sampling.hpp"

namespace dlfs {
namespace {

// Scratch memory above this is given back after the image that needed it.
constexpr int64_t kept_bytes = int64_t{64} << 20;

bool is_jpeg(const uint8_t* bytes, int64_t length) {
  return length >= 3 && bytes[0] == 0xff && bytes[1] == 0xd8 && bytes[2] == 0xff;
}

// width and height: of the pixels as they are stored.
ImageHeader header_of(ImageFormat format, int32_t width, int32_t height, int32_t orientation) {
  ImageHeader header{};
  header.format = format;
  header.width = swaps_sides(orientation) ? height : width;
  header.height = swaps_sides(orientation) ? width : height;
  header.stored_width = width;
  header.stored_height = height;
  header.orientation = orientation;
  return header;
}

ImageHeader header_of(const JpegHeader& jpeg) {
  ImageHeader header = header_of(ImageFormat::jpeg, jpeg.width, jpeg.height, jpeg.orientation);
  header.components = jpeg.components;
  header.bits = jpeg.bits;
  header.jpeg = jpeg;
  return header;
}

ImageHeader header_of(const PngHeader& png) {
  ImageHeader header = header_of(ImageFormat::png, png.width, png.height, png.orientation);
  header.components = png.colour == 3 ? 3 : png.components();
  header.bits = png.bits;
  header.png = png;
  return header;
}

ImageHeader header_of(const WebpHeader& webp) {
  ImageHeader header = header_of(ImageFormat::webp, webp.width, webp.height, webp.orientation);
  header.components = webp.alpha ? 4 : 3;
  header.bits = 8;
  header.webp = webp;
  return header;
}

[[noreturn]] void throw_unknown(const uint8_t* bytes, int64_t length) {
  DLFS_CHECK(length > 0, DLFS_ERROR_IMAGE, "the file is empty");
  using namespace std::string_view_literals;
  static constexpr struct {
    const char* name;
    std::string_view magic;
    size_t at;
  } kinds[] = {{"GIF", "GIF8"sv, 0},          {"TIFF", "II*\0"sv, 0},      {"TIFF", "MM\0*"sv, 0},
               {"BMP", "BM"sv, 0},            {"a RIFF file", "RIFF"sv, 0}, {"HEIF or AVIF", "ftyp"sv, 4},
               {"JPEG 2000", "jP  "sv, 4},    {"HTML or XML", "<"sv, 0}};
  const std::string_view file(reinterpret_cast<const char*>(bytes), static_cast<size_t>(length));
  const char* kind = nullptr;
  for (const auto& one : kinds) {
    if (!kind && file.size() >= one.at && file.substr(one.at, one.magic.size()) == one.magic) kind = one.name;
  }
  std::string start;
  for (int64_t i = 0; i < length && i < 4; ++i) start += format("%s%02X", i ? " " : "", bytes[i]);
  if (kind) throw Error(DLFS_ERROR_IMAGE, format("expected a JPEG, PNG or WebP file, got %s (%s...)", kind, start.c_str()));
  throw Error(DLFS_ERROR_IMAGE,
              format("expected a JPEG, PNG or WebP file, got one that begins with %s", start.c_str()));
}

[[noreturn]] [[maybe_unused]] void throw_without(const char* format_name, const char* library) {
  throw Error(DLFS_ERROR_UNSUPPORTED,
              format("a %s file, but this library was built without %s", format_name, library));
}

// Pixels as they lie in the file.
void decode_stored(uint8_t* rgb, const uint8_t* bytes, int64_t length, const ImageHeader& header) {
  switch (header.format) {
    case ImageFormat::jpeg:
#ifdef DLFS_HAVE_LIBJPEG
      return jpeg_turbo_decode(rgb, bytes, length, header.jpeg);
#else
      throw_without("JPEG", "libjpeg-turbo");
#endif
    case ImageFormat::png:
#ifdef DLFS_HAVE_LIBPNG
      return png_decode(rgb, bytes, length, header.png);
#else
      throw_without("PNG", "libpng");
#endif
    case ImageFormat::webp:
#ifdef DLFS_HAVE_LIBWEBP
      return webp_decode(rgb, bytes, length, header.webp);
#else
      throw_without("WebP", "libwebp");
#endif
  }
}

}  // namespace

ImageHeader read_image_header(const uint8_t* bytes, int64_t length) {
  if (is_jpeg(bytes, length)) return header_of(read_jpeg_header(bytes, length));
  if (is_png(bytes, length)) return header_of(read_png_header(bytes, length));
  if (is_webp(bytes, length)) return header_of(read_webp_header(bytes, length));
  throw_unknown(bytes, length);
}

ImageHeader check_image(const uint8_t* bytes, int64_t length) {
  if (is_jpeg(bytes, length)) return header_of(check_jpeg(bytes, length));
  if (!is_png(bytes, length) && !is_webp(bytes, length)) throw_unknown(bytes, length);
  const ImageHeader header =
      is_png(bytes, length) ? header_of(check_png(bytes, length)) : header_of(check_webp(bytes, length));
  DLFS_CHECK(header.width <= max_image_side && header.height <= max_image_side, DLFS_ERROR_IMAGE,
             "the image has %d x %d pixels, more than the limit of %d a side", header.width, header.height,
             max_image_side);
  return header;
}

ImageHeader check_image_arguments(const void* dst, const void* bytes, int64_t length, int32_t width, int32_t height) {
  check_pointer(dst, "dst");
  check_count(length, "length");
  if (length > 0) check_pointer(bytes, "bytes");
  check_range(width, 1, INT32_MAX, "width");
  check_range(height, 1, INT32_MAX, "height");
  const ImageHeader header = check_image(static_cast<const uint8_t*>(bytes), length);
  DLFS_CHECK(header.width == width && header.height == height, DLFS_ERROR_SHAPE,
             "the image has %d x %d pixels%s, but width and height are %d x %d", header.width, header.height,
             header.orientation == orientation_upright ? "" : " when it is turned upright", width, height);
  return header;
}

uint8_t* ImageScratch::reserve(int64_t bytes) {
  if (bytes > bytes_) {
    memory_.reset();
    bytes_ = 0;
    memory_.reset(new uint8_t[static_cast<size_t>(bytes)]);
    bytes_ = bytes;
  }
  return memory_.get();
}

void ImageScratch::trim() {
  if (bytes_ <= kept_bytes) return;
  memory_.reset();
  bytes_ = 0;
}

void decode_image(uint8_t* rgb, const uint8_t* bytes, int64_t length, const ImageHeader& header,
                  ImageScratch& scratch) {
  if (header.orientation == orientation_upright) {
    decode_stored(rgb, bytes, length, header);
    return;
  }
  uint8_t* const stored = scratch.reserve(header.bytes());
  decode_stored(stored, bytes, length, header);
  turn_upright(rgb, stored, header.stored_width, header.stored_height, header.orientation);
}

bool image_files_support([[maybe_unused]] std::string_view feature) {
#ifdef DLFS_HAVE_LIBPNG
  if (feature == "png.decode") return true;
#endif
#ifdef DLFS_HAVE_LIBWEBP
  if (feature == "webp.decode") return true;
#endif
  return false;
}

std::string image_files_build_info() {
  std::string text;
#ifdef DLFS_HAVE_LIBPNG
  text += format("libpng=%s\n", png_version());
#endif
#ifdef DLFS_HAVE_LIBWEBP
  text += format("libwebp=%s\n", webp_version().c_str());
#endif
  return text;
}

}  // namespace dlfs

namespace {

// values[5] of dlfs_image_info_sync.
int32_t process_of(const dlfs::ImageHeader& header) {
  constexpr int32_t lossy = 0, lossless = 2;
  switch (header.format) {
    case dlfs::ImageFormat::jpeg: return static_cast<int32_t>(header.jpeg.process);
    case dlfs::ImageFormat::png: return lossless;
    default: return header.webp.lossless ? lossless : lossy;
  }
}

}  // namespace

extern "C" dlfs_status dlfs_image_info_sync(int32_t* values, const void* bytes, int64_t length) {
  return dlfs::guard("dlfs_image_info_sync", [&] {
    dlfs::check_pointer(values, "values");
    dlfs::check_count(length, "length");
    if (length > 0) dlfs::check_pointer(bytes, "bytes");
    const dlfs::ImageHeader header = dlfs::read_image_header(static_cast<const uint8_t*>(bytes), length);
    values[0] = header.width;
    values[1] = header.height;
    values[2] = static_cast<int32_t>(header.format);
    values[3] = header.components;
    values[4] = header.bits;
    values[5] = process_of(header);
    values[6] = header.orientation;
    values[7] = header.format == dlfs::ImageFormat::jpeg ? header.jpeg.adobe_transform : -1;
  });
}
