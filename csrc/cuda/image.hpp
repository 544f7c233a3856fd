// Decoding of image files of every format for one stream: JPEGs by JpegCodec, turned upright on the device; others on the
// host (common/image.hpp), copied by way of pinned memory.
#pragma once

#include "common/image.hpp"
#include "cuda/jpeg.hpp"

namespace dlfs {

// Not thread-safe: one per stream or thread. Memory grows to what the largest image needed; trim() gives back what is
// above the usual.
class ImageCodec {
 public:
  explicit ImageCodec(Context& context) : context_(context), jpeg_(context), staging_(context, int64_t{4} << 20) {}

  // Decodes to rgb (height, width, 3) on the device, upright: the host's part is done on return, the device's is enqueued
  // on the stream. header must be check_image's of these bytes. Every earlier decode of this object must have been passed
  // by its stream. Throws DLFS_ERROR_IMAGE for damaged files.
  void decode(const Stream& stream, uint8_t* rgb, const uint8_t* bytes, int64_t length, const ImageHeader& header);

  // JpegCodec::encode.
  JpegCodec& jpeg() { return jpeg_; }

  // After a large image was decoded: drops the memory. The stream must have passed.
  void trim();

 private:
  Context& context_;  // held by jpeg_
  JpegCodec jpeg_;
  DeviceBuffer stored_;   // pixels as they lie in a JPEG, of those that are not stored upright
  PinnedBuffer staging_;  // pixels of what is decoded on the host
  ImageScratch scratch_;
};

// Copies the stored picture src (height, width, 3) to dst, upright, both on the device (common/orientation.hpp).
void turn_upright(const Stream& stream, uint8_t* dst, const uint8_t* src, int32_t width, int32_t height,
                  int32_t orientation);

}  // namespace dlfs
