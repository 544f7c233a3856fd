// What dropout keeps: decided by Philox blocks, equally on every backend.
#pragma once

#include "common/arguments.hpp"
#include "common/philox.hpp"

namespace dlfs {

// Draws of one element in 8 at a time: a byte of the mask.
constexpr int dropout_group = 8;

// After so many draws the counter, an fp32, starts again: the whole numbers that it holds exactly.
constexpr float dropout_period = 16777216.0f;

// p and what follows from it.
struct DropoutRate {
  uint32_t threshold;  // words below it are dropped
  float scale;         // of what is kept
};

inline DropoutRate dropout_rate(double p) {
  DLFS_CHECK(p >= 0 && p < 1, DLFS_ERROR_ARGUMENT, "expected p in [0, 1), got %g", p);
  return {static_cast<uint32_t>(p * 4294967296.0), static_cast<float>(1.0 / (1.0 - p))};
}

// The mask of elements 8 group to 8 group + 7; bits of elements from n on are 0.
DLFS_HD inline uint8_t dropout_mask(uint64_t seed, uint64_t counter, int64_t group, int64_t n, uint32_t threshold) {
  uint32_t bits = 0;
  for (int half = 0; half < 2; ++half) {
    const PhiloxBlock block = philox4x32_10(seed, static_cast<uint64_t>(2 * group + half), counter);
    for (int i = 0; i < 4; ++i) bits |= (block.word[i] >= threshold ? 1u : 0u) << (4 * half + i);
  }
  const int64_t left = n - dropout_group * group;
  return static_cast<uint8_t>(left >= dropout_group ? bits : bits & ((1u << static_cast<int>(left)) - 1u));
}

// The counter's value as Philox's offset, and its successor.
DLFS_HD inline uint64_t dropout_offset(float counter) { return static_cast<uint64_t>(counter); }
DLFS_HD inline float dropout_next(float counter) {
  return counter + 1.0f < dropout_period ? counter + 1.0f : 0.0f;
}

}  // namespace dlfs
