// The preprocessing kernel's interface, for dlfs_preprocess and the decoding threads.
#pragma once

#include "common/sampling.hpp"
#include "cuda/runtime.hpp"

namespace dlfs {

// One image: pixels (height, width, 3) uint8 on the device; NULL fills its slot with the fill colour.
struct PreprocessSource {
  const uint8_t* pixels;
  SampleAxis columns, rows;
};

// Enqueues n images into consecutive slots of dst.
void preprocess(const Stream& stream, void* dst, const PreprocessSource* sources, int32_t n,
                const PreprocessFormat& format);

}  // namespace dlfs
