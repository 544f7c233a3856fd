// JPEG decoding and encoding for one stream: nvJPEG, and libjpeg-turbo (where the library was built with it) for what
// nvJPEG refuses or does not convert as libjpeg does. Which of the two decodes depends on the file alone.
#pragma once

#include "common/jpeg_header.hpp"
#include "cuda/runtime.hpp"

namespace dlfs {

struct NvjpegDevice;
struct NvjpegDecoder;
struct NvjpegEncoder;

// Pinned host memory that grows; released by way of Context::release.
class PinnedBuffer {
 public:
  // least: the first size, in bytes.
  explicit PinnedBuffer(Context& context, int64_t least) : context_(context.shared_from_this()), least_(least) {}
  ~PinnedBuffer() { reset(); }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  // At least `bytes`, content undefined.
  uint8_t* reserve(int64_t bytes);
  int64_t bytes() const { return bytes_; }
  void reset() noexcept;

 private:
  std::shared_ptr<Context> context_;
  int64_t least_;
  std::shared_ptr<void> memory_;
  int64_t bytes_ = 0;
};

// Not thread-safe: one per stream or thread. Memory grows to what the largest image needed; trim() gives back what is
// above the usual.
class JpegCodec {
 public:
  explicit JpegCodec(Context& context);
  ~JpegCodec();
  JpegCodec(const JpegCodec&) = delete;
  JpegCodec& operator=(const JpegCodec&) = delete;

  // Decodes to rgb (height, width, 3) on the device: the host's part is done on return, the device's is enqueued on the
  // stream. header must be check_jpeg's of these bytes. Every earlier decode of this object must have been passed by
  // its stream. Throws DLFS_ERROR_IMAGE for damaged files; the stream has been waited for then.
  void decode(const Stream& stream, uint8_t* rgb, const uint8_t* bytes, int64_t length, const JpegHeader& header);

  // Encodes rgb (height, width, 3) on the device as a baseline JPEG, 4:2:0; waits. Returns the length; throws
  // DLFS_ERROR_ARGUMENT where capacity is less.
  int64_t encode(const Stream& stream, uint8_t* out, int64_t capacity, const uint8_t* rgb, int32_t width,
                 int32_t height, int32_t quality);

  // After an image of more than 2^24 pixels was decoded: drops the memory. Its stream must have passed.
  void trim();

 private:
  const std::shared_ptr<Context> context_;
  std::shared_ptr<NvjpegDevice> device_;
  std::unique_ptr<NvjpegDecoder> decoder_;
  std::unique_ptr<NvjpegEncoder> encoder_;
  PinnedBuffer staging_;
  int64_t largest_pixels_ = 0;
};

}  // namespace dlfs
