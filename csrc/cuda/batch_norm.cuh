// Batch normalization's affine map and the bits of its ReLU, which forward and backward must compute alike.
#pragma once

#include "common/batch_norm.hpp"
#include "cuda/norm.cuh"

namespace dlfs {

template <class T>
inline constexpr dlfs_dtype dtype_of = DLFS_F32;
template <>
inline constexpr dlfs_dtype dtype_of<bf16> = DLFS_BF16;
template <>
inline constexpr dlfs_dtype dtype_of<f16> = DLFS_F16;

// (x - centre) * factor + shift, with factor = invstd * weight: the same bits in every kernel.
__device__ __forceinline__ float normalized(float x, float centre, float factor, float shift) {
  return __fmaf_rn(__fsub_rn(x, centre), factor, shift);
}

// Whether ReLU makes 0 of this value, or rounding to T does. NaN is passed on.
template <class T>
__device__ __forceinline__ bool relu_zero(float value) {
  return value <= largest_zero(dtype_of<T>);
}

// How backward knows where ReLU passed a value on.
enum class ReluMask {
  none,   // everywhere: there was no ReLU
  input,  // from x, as forward computed its result
  bits,   // from forward's mask
};

// The row's byte of the mask that V channels are in, shifted so that bit 0 is the first of them.
template <int V>
__device__ __forceinline__ uint32_t load_bits(const uint8_t* mask, int64_t row, int32_t channel, int32_t c) {
  return static_cast<uint32_t>(mask[row * mask_pitch(c) + channel / 8]) >> (channel % 8);
}

// Writes the bits of V channels of a row. Threads that share a byte are neighbours of one warp and call this together.
template <int V>
__device__ __forceinline__ void store_bits(uint8_t* mask, int64_t row, int32_t channel, int32_t c, uint32_t bits) {
  static_assert(8 % V == 0, "bytes are shared by whole vectors");
  constexpr int sharing = 8 / V;
  if constexpr (sharing > 1) {
    const int lane = static_cast<int>((threadIdx.y * blockDim.x + threadIdx.x) % 32);
    const int place = channel / V % sharing;
    const int members = min(sharing, (c - (channel - place * V)) / V);
    const uint32_t group = ((1u << members) - 1u) << (lane - place);
    uint32_t joined = 0;
    for (int other = 0; other < members; ++other) {
      joined |= __shfl_sync(group, bits, lane - place + other) << (other * V);
    }
    bits = joined;
    if (place != 0) return;
  }
  mask[row * mask_pitch(c) + channel / 8] = static_cast<uint8_t>(bits);
}

// ReLU of V channels of a row; where there is a mask, writes its bits, which are 0 where the result is stored as 0.
template <class T, int V>
__device__ __forceinline__ void store_relu_mask(uint8_t* mask, int64_t row, int32_t channel, int32_t c,
                                                float (&value)[V]) {
  if (mask) {
    uint32_t bits = 0;
#pragma unroll
    for (int j = 0; j < V; ++j) bits |= relu_zero<T>(value[j]) ? 0u : 1u << j;
    store_bits<V>(mask, row, channel, c, bits);
  }
#pragma unroll
  for (int j = 0; j < V; ++j) value[j] = activate<DLFS_ACT_RELU>(value[j]);
}

}  // namespace dlfs
