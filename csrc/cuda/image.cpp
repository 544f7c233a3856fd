#include "cuda/image.hpp"

#include "common/arguments.hpp"
#include "common/exif.hpp"

namespace dlfs {
namespace {

// Memory above this is given back after the image that needed it.
constexpr int64_t kept_bytes = int64_t{64} << 20;

// The codec that a stream keeps.
ImageCodec& codec_of(Stream& stream) {
  if (!stream.images) stream.images = std::make_shared<ImageCodec>(*stream.context);
  return *static_cast<ImageCodec*>(stream.images.get());
}

}  // namespace

void ImageCodec::decode(const Stream& stream, uint8_t* rgb, const uint8_t* bytes, int64_t length,
                        const ImageHeader& header) {
  if (header.format != ImageFormat::jpeg) {
    uint8_t* const host = staging_.reserve(header.bytes());
    decode_image(host, bytes, length, header, scratch_);
    CUDA_CHECK(cudaMemcpyAsync(rgb, host, static_cast<size_t>(header.bytes()), cudaMemcpyHostToDevice, stream.stream));
    return;
  }
  if (header.orientation == orientation_upright) {
    jpeg_.decode(stream, rgb, bytes, length, header.jpeg);
    return;
  }
  if (header.bytes() > stored_.bytes()) {
    stored_ = DeviceBuffer();
    stored_ = DeviceBuffer(context_, header.bytes(), "a decoded image");
  }
  jpeg_.decode(stream, stored_.as<uint8_t>(), bytes, length, header.jpeg);
  turn_upright(stream, rgb, stored_.as<uint8_t>(), header.stored_width, header.stored_height, header.orientation);
}

void ImageCodec::trim() {
  jpeg_.trim();
  if (stored_.bytes() > kept_bytes) stored_ = DeviceBuffer();
  if (staging_.bytes() > kept_bytes) staging_.reset();
  scratch_.trim();
}

}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_image_decode_sync(dlfs_stream stream, void* dst, const void* bytes, int64_t length, int32_t width,
                                   int32_t height) {
  return stream_call("dlfs_image_decode_sync", stream, [&](Stream& s) {
    s.require_not_capturing("decoding");
    const ImageHeader header = check_image_arguments(dst, bytes, length, width, height);
    const uint8_t* file = static_cast<const uint8_t*>(bytes);
    s.synchronize();  // reports errors of earlier work as such, not as this file's
    ImageCodec& codec = codec_of(s);
    codec.decode(s, static_cast<uint8_t*>(dst), file, length, header);
    s.synchronize();
    codec.trim();
  });
}

dlfs_status dlfs_jpeg_encode_sync(dlfs_stream stream, void* out, int64_t* length, const void* pixels, int64_t capacity,
                                  int32_t width, int32_t height, int32_t quality) {
  return stream_call("dlfs_jpeg_encode_sync", stream, [&](Stream& s) {
    s.require_not_capturing("encoding");
    check_pointer(out, "out");
    check_pointer(length, "length");
    check_pointer(pixels, "pixels");
    check_count(capacity, "capacity");
    DLFS_CHECK(width >= 1 && height >= 1 && width <= 65500 && height <= 65500, DLFS_ERROR_ARGUMENT,
               "expected an image of 1 to 65500 pixels in width and height, got %d x %d", width, height);
    DLFS_CHECK(quality >= 1 && quality <= 100, DLFS_ERROR_ARGUMENT, "expected a quality from 1 to 100, got %d",
               quality);
    *length = codec_of(s).jpeg().encode(s, static_cast<uint8_t*>(out), capacity, static_cast<const uint8_t*>(pixels),
                                        width, height, quality);
  });
}

}  // extern "C"
