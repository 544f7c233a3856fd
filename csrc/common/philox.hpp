// Philox4x32-10, a counter-based random generator: J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011. Element i of a tensor takes word i % 4 of the block with counter (i / 4, offset), so any element can be
// drawn alone and the same seed gives the same numbers whatever the number of threads.
#pragma once

#include <cmath>

#include "common/status.hpp"

namespace dlfs {

struct PhiloxBlock {
  uint32_t word[4];
};

// key: the low 32 bits first. Counter: the low then the high half of `block`, the low then the high half of `offset`.
DLFS_HD inline PhiloxBlock philox4x32_10(uint64_t key, uint64_t block, uint64_t offset) {
  uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32);
  uint32_t c2 = static_cast<uint32_t>(offset), c3 = static_cast<uint32_t>(offset >> 32);
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Uniform in [low, high) from the upper 24 bits of a word. fmaf is rounded once wherever it runs, so the bits are equal
// on every backend; rounding up to `high` is undone.
DLFS_HD inline float philox_uniform(uint32_t word, float low, float high) {
  const float unit = static_cast<float>(word >> 8) * 5.9604644775390625e-8f;  // 2^-24, exact
  const float value = fmaf(unit, high - low, low);
  return value < high ? value : (high > low ? nextafterf(high, low) : low);
}

// Box-Muller: two normal values of mean 0 and standard deviation 1 from two words, in double precision, so that
// backends with other logarithms and cosines agree after rounding to fp32.
DLFS_HD inline void philox_normal_pair(uint32_t word0, uint32_t word1, double* z0, double* z1) {
  const double unit0 = (static_cast<double>(word0) + 0.5) * 2.3283064365386963e-10;  // 2^-32: in (0, 1)
  const double angle = (static_cast<double>(word1) + 0.5) * 1.4629180792671596e-9;   // 2 pi 2^-32: in (0, 2 pi)
  const double radius = sqrt(-2.0 * log(unit0));
  *z0 = radius * cos(angle);
  *z1 = radius * sin(angle);
}

// The four normal values of a block, pairs (0, 1) and (2, 3), scaled and rounded to fp32.
DLFS_HD inline void philox_normal_block(const PhiloxBlock& block, double mean, double std, float out[4]) {
  double z[4];
  philox_normal_pair(block.word[0], block.word[1], &z[0], &z[1]);
  philox_normal_pair(block.word[2], block.word[3], &z[2], &z[3]);
  for (int i = 0; i < 4; ++i) out[i] = static_cast<float>(fma(z[i], std, mean));
}

}  // namespace dlfs
