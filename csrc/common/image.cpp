#include "common/image.hpp"

#include <cstring>

#include "common/arguments.hpp"
#include "common/exif.hpp"
#include "common/jpeg_turbo.hpp"
#include "common/orientation.hpp"

namespace dlfs {
namespace {

// Scratch memory above this is given back after the image that needed it.
constexpr int64_t kept_bytes = int64_t{64} << 20;

ImageHeader of_jpeg(const JpegHeader& jpeg) {
  const bool swapped = swaps_sides(jpeg.orientation);
  ImageHeader header{};
  header.format = ImageFormat::jpeg;
  header.width = swapped ? jpeg.height : jpeg.width;
  header.height = swapped ? jpeg.width : jpeg.height;
  header.stored_width = jpeg.width;
  header.stored_height = jpeg.height;
  header.orientation = jpeg.orientation;
  header.components = jpeg.components;
  header.bits = jpeg.bits;
  header.jpeg = jpeg;
  return header;
}

void decode_stored(uint8_t* rgb, const uint8_t* bytes, int64_t length, const ImageHeader& header) {
#ifdef DLFS_HAVE_LIBJPEG
  jpeg_turbo_decode(rgb, bytes, length, header.jpeg);
#else
  throw Error(DLFS_ERROR_UNSUPPORTED, "this library was built without libjpeg-turbo");
#endif
}

}  // namespace

ImageHeader read_image_header(const uint8_t* bytes, int64_t length) { return of_jpeg(read_jpeg_header(bytes, length)); }

ImageHeader check_image(const uint8_t* bytes, int64_t length) { return of_jpeg(check_jpeg(bytes, length)); }

void check_image_size(const ImageHeader& header, int32_t width, int32_t height) {
  DLFS_CHECK(header.width == width && header.height == height, DLFS_ERROR_SHAPE,
             "the image has %d x %d pixels%s, but width and height are %d x %d", header.width, header.height,
             header.orientation == orientation_upright ? "" : " when it is turned upright", width, height);
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

}  // namespace dlfs

extern "C" dlfs_status dlfs_image_info_sync(int32_t* values, const void* bytes, int64_t length) {
  return dlfs::guard("dlfs_image_info_sync", [&] {
    dlfs::check_pointer(values, "values");
    dlfs::check_count(length, "length");
    if (length > 0) dlfs::check_pointer(bytes, "bytes");
    const dlfs::ImageHeader header = dlfs::read_image_header(static_cast<const uint8_t*>(bytes), length);
    const bool jpeg = header.format == dlfs::ImageFormat::jpeg;
    values[0] = header.width;
    values[1] = header.height;
    values[2] = static_cast<int32_t>(header.format);
    values[3] = header.components;
    values[4] = header.bits;
    values[5] = jpeg ? static_cast<int32_t>(header.jpeg.process) : 0;
    values[6] = header.orientation;
    values[7] = jpeg ? header.jpeg.adobe_transform : -1;
  });
}
