// What the CPU's detection losses share: blocks of anchors, sums, and the pass over all blocks.
//
// Sums: every block of anchors of an image has one float64 partial sum, itself of fixed lanes, and
// partials are added in order, so the result does not depend on the number of threads.
#pragma once

#include <algorithm>

#include "common/levels.hpp"
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

// The blocks of an image whose anchors lie in level maps: runs of cells of one level, of about block_anchors anchors.
struct LevelBlocks {
  Levels levels;
  int32_t cells;                        // of a block
  int64_t first[DLFS_MAX_LEVELS] = {};  // block of each level
  int64_t count = 0;

  explicit LevelBlocks(const Levels& sizes)
      : levels(sizes), cells(std::max<int32_t>(1, static_cast<int32_t>(block_anchors / sizes.per_cell))) {
    for (int32_t level = 0; level < levels.count; ++level) {
      first[level] = count;
      count += (int64_t{levels.cells[level]} + cells - 1) / cells;
    }
  }

  // More blocks than any levels of so many anchors have: a block of a level but its last has over half of
  // block_anchors.
  static int64_t most(int32_t anchors) { return 2 * blocks_of(anchors) + DLFS_MAX_LEVELS; }

  struct Run {
    int32_t level, first_cell, cells;
  };

  Run run(int64_t block) const {
    int32_t level = 0;
    while (level + 1 < levels.count && block >= first[level + 1]) ++level;
    const int32_t first_cell = static_cast<int32_t>(block - first[level]) * cells;
    return {level, first_cell, std::min(cells, levels.cells[level] - first_cell)};
  }
};

// What every loss has: the scalar, how it is normalized, and where its partial sums go.
struct LossPass {
  float* loss;
  const int32_t* foreground;  // (N)
  double* partials;           // (N, blocks)
  int32_t n;
  int64_t blocks;  // of an image
  int32_t normalization;

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
