// The JPEG engines of a GPU (A100, H100 and others have them), through nvJPEG's batched decoding.
#pragma once

#include "cuda/runtime.hpp"

namespace dlfs {

// What nvJPEG says of a device's engines: none where it has none, or nvJPEG cannot use them.
struct JpegEngineInfo {
  int engines = 0;
  int cores = 0;  // that decode at a time, of each engine

  // Images to be handed over together. The engines take engines * cores at a time; some more keep them busy while what
  // comes before and after is done for others.
  int batch() const;
};

// Looked up once for each device.
JpegEngineInfo jpeg_engines(Context& context);

// One image of a batch: length bytes in pinned memory, and where its pixels go: (height, width, 3) uint8 RGB.
struct EngineImage {
  const uint8_t* bytes;
  size_t length;
  uint8_t* rgb;
  int32_t width, height;
};

struct NvjpegEngine;

// A decoding state with memory of its own, which is kept: allocating and freeing wait for the device. Not thread-safe; one
// for each thread, on one stream.
class JpegEngine {
 public:
  explicit JpegEngine(Context& context);
  ~JpegEngine();
  JpegEngine(const JpegEngine&) = delete;
  JpegEngine& operator=(const JpegEngine&) = delete;

  // Whether nvJPEG gives this file to the engines. Depends on the file and the device alone.
  bool takes(const uint8_t* bytes, int64_t length);

  // Enqueues images that takes() has said yes to. What was enqueued before must have passed the stream, and the bytes must
  // stay until this has. False where nvJPEG refuses one of them; it does not say which. The stream has been waited for then.
  bool decode(const Stream& stream, const EngineImage* images, int n);

  // Gives memory above the usual back. The stream must have passed.
  void trim();

 private:
  const std::shared_ptr<Context> context_;
  std::unique_ptr<NvjpegEngine> engine_;
};

}  // namespace dlfs
