// What the CPU's detection losses share: blocks of anchors, sums, and the pass over all blocks.
//
// Sums: every block of block_anchors anchors of an image has one float64 partial sum, itself of fixed lanes, and
// partials are added in order, so the result does not depend on the number of threads.
#pragma once

#include <algorithm>

#include "common/losses.hpp"
#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {

constexpr int64_t block_anchors = 256;

inline int64_t blocks_of(int32_t anchors) { return (int64_t{anchors} + block_anchors - 1) / block_anchors; }

// Bytes of the partial sums.
inline int64_t partials_bytes(int32_t n, int32_t anchors) {
  check_range(n, 1, INT32_MAX, "n");
  check_range(anchors, 1, INT32_MAX, "anchors");
  return checked_product({n, blocks_of(anchors), sizeof(double)}, "the workspace");
}

// What every loss has: the scalar, how it is normalized, and where its partial sums go.
struct LossPass {
  float* loss;
  const int32_t* foreground;  // (N)
  double* partials;           // (N, blocks)
  int32_t n, anchors, normalization;

  LossScale scale() const {
    int64_t total = -1;
    if (normalization == DLFS_LOSS_WHOLE_BATCH) {
      total = 0;
      for (int64_t image = 0; image < n; ++image) total += foreground[image];
    }
    return {foreground, n, total};
  }

  // *loss = the sum of block(scale, image, index), the sum of one block's terms, over all blocks in parallel, each times
  // its image's weight; rounded once.
  template <class Block>
  void run(const Block& block) const {
    const int64_t blocks = blocks_of(anchors);
    const LossScale scale = this->scale();
    parallel_for(n * blocks, 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) partials[i] = block(scale, i / blocks, i % blocks);
    });
    double total = 0;
    for (int64_t image = 0; image < n; ++image) {
      double sum = 0;
      for (int64_t i = 0; i < blocks; ++i) sum += partials[image * blocks + i];
      total += sum * scale.weight(image, 1.0);
    }
    *loss = static_cast<float>(total);
  }
};

}  // namespace dlfs::cpu
