// The preprocessing kernel's interface, for dlfs_preprocess and the decoding threads.
#pragma once

#include "common/sampling.hpp"
#include "cuda/runtime.hpp"

namespace dlfs {

// What one dlfs_preprocess or dlfs_decoder_submit asks of every image.
struct PreprocessFormat {
  int32_t out_h, out_w, out_c;
  dlfs_dtype dtype;
  int32_t flags;
  ColorTransform color;

  int64_t image_bytes() const { return int64_t{out_h} * out_w * out_c * dtype_size(dtype); }
};

// One image: pixels (height, width, 3) uint8 on the device; NULL fills its slot with the fill colour.
struct PreprocessSource {
  const uint8_t* pixels;
  SampleAxis columns, rows;
};

// Enqueues n images into consecutive slots of dst.
void preprocess(const Stream& stream, void* dst, const PreprocessSource* sources, int32_t n,
                const PreprocessFormat& format);

}  // namespace dlfs
