// Decoding of image files and encoding of JPEGs on the CPU (common/image.hpp, common/jpeg_turbo.hpp).
#include "common/image.hpp"
#include "common/jpeg_turbo.hpp"

#include <cstring>

#include "cpu/runtime.hpp"

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_image_decode_sync(dlfs_stream stream, void* dst, const void* bytes, int64_t length,
                                              int32_t width, int32_t height) {
  return on_stream("dlfs_image_decode_sync", stream, [&](Stream& s) {
    const ImageHeader header = check_image_arguments(dst, bytes, length, width, height);
    const uint8_t* file = static_cast<const uint8_t*>(bytes);
    s.run_sync(
        [&] {
          ImageScratch scratch;
          decode_image(static_cast<uint8_t*>(dst), file, length, header, scratch);
        },
        Lane::copy);
  });
}

extern "C" dlfs_status dlfs_jpeg_encode_sync(dlfs_stream stream, void* out, int64_t* length, const void* pixels,
                                             int64_t capacity, int32_t width, int32_t height, int32_t quality) {
  return on_stream("dlfs_jpeg_encode_sync", stream, [&](Stream& s) {
    check_pointer(out, "out");
    check_pointer(length, "length");
    check_pointer(pixels, "pixels");
    check_count(capacity, "capacity");
    EncodedJpeg jpeg;
    s.run_sync([&] { jpeg = jpeg_turbo_encode(static_cast<const uint8_t*>(pixels), width, height, quality); },
               Lane::copy);
    DLFS_CHECK(jpeg.length <= capacity, DLFS_ERROR_ARGUMENT, "expected a capacity of at least %lld bytes, got %lld",
               static_cast<long long>(jpeg.length), static_cast<long long>(capacity));
    std::memcpy(out, jpeg.bytes.get(), static_cast<size_t>(jpeg.length));
    *length = jpeg.length;
  });
}
