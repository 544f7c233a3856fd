// What the CPU's selections of the best candidates share: a chunk's keys (candidate_key) are collected and its best
// selected, not sorted; only the chunks' bests are selected again and sorted.
#pragma once

#include <algorithm>
#include <cstring>

#include "common/boxes.hpp"
#include "cpu/numeric.hpp"

namespace dlfs::cpu {

constexpr int64_t topk_chunk = 32768;  // logits
constexpr int64_t topk_block = 64;     // logits whose scores are computed together, in vector registers

// Keeps the `most` smallest keys of [begin, end) in front, in any order; returns how many there are.
inline int64_t select_keys(uint64_t* begin, uint64_t* end, int64_t most) {
  if (end - begin <= most) return end - begin;
  std::nth_element(begin, begin + most, end);
  return most;
}

// Scores of up to topk_block logits.
template <class T>
void sigmoid_scores(float (&scores)[topk_block], const T* logits, int64_t size) {
  if (size == topk_block) {
    for (int64_t i = 0; i < topk_block; ++i) scores[i] = dlfs::sigmoid_f32(load(logits + i));
  } else {
    for (int64_t i = 0; i < size; ++i) scores[i] = dlfs::sigmoid_f32(load(logits + i));
  }
}

// Appends the keys of the scores above the threshold to found[0, count); returns the new count. found has room for all.
inline int64_t append_keys(uint64_t* found, int64_t count, const float* scores, int64_t size, int32_t first_index,
                           float threshold) {
  for (int64_t i = 0; i < size; ++i) {
    // Written first and counted after, which spares a branch that would often be mispredicted.
    found[count] = candidate_key(scores[i], first_index + static_cast<int32_t>(i));
    count += scores[i] > threshold;
  }
  return count;
}

// Moves the keys of `chunks` chunks, each of `capacity` of which counts[i] are filled, together, keeps the k best and
// sorts them; returns how many there are.
inline int64_t merge_chunks(uint64_t* keys, const int64_t* counts, int64_t chunks, int64_t capacity, int64_t k) {
  uint64_t* end = keys;
  for (int64_t i = 0; i < chunks; ++i) {
    std::memmove(end, keys + i * capacity, static_cast<size_t>(counts[i]) * sizeof *end);
    end += counts[i];
  }
  const int64_t count = select_keys(keys, end, k);
  std::sort(keys, keys + count);
  return count;
}

}  // namespace dlfs::cpu
