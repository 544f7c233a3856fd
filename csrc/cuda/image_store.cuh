// How the image kernels write a batch: a block is a tile of 32 x 8 output pixels, one to a thread, block (x, y, z) at
// column 32 x and row 8 y of image z.
#pragma once

#include "common/sampling.hpp"
#include "cuda/numeric.cuh"

namespace dlfs {

constexpr int tile_w = 32;  // a warp to a row
constexpr int tile_h = 8;

__device__ __forceinline__ void put(uint8_t& out, float value) { out = static_cast<uint8_t>(round_u8(value)); }
template <class T>
__device__ __forceinline__ void put(T& out, float value) {
  out = from_float<T>(value);
}

// The channels that store_pixel's C is to be: 3, 4 or 8 where they can be stored by vectors, else 0.
inline int stored_channels(const void* dst, int32_t out_w, int32_t out_c) {
  if (!aligned16({dst})) return 0;
  return (out_c == 3 && out_w % 16 == 0) || out_c == 4 || out_c == 8 ? out_c : 0;
}

// Writes the thread's pixel, further channels 0; called by all threads of a block, those outside the output as well. dst:
// image 0 of the grid. C: 3, 4 or 8 channels stored by vectors (see stored_channels), or 0 for any number, one by one.
template <class T, int C>
__device__ __forceinline__ void store_pixel(T* dst, const float (&value)[3], int32_t out_h, int32_t out_w,
                                            int32_t out_c) {
  const int32_t u0 = static_cast<int32_t>(blockIdx.x) * tile_w;
  const int32_t u = u0 + static_cast<int32_t>(threadIdx.x);
  const int32_t v = static_cast<int32_t>(blockIdx.y) * tile_h + static_cast<int32_t>(threadIdx.y);
  const bool inside = u < out_w && v < out_h;
  const int64_t row = (int64_t{blockIdx.z} * out_h + v) * out_w;
  if constexpr (C == 3) {
    // A warp's 32 pixels are 96 consecutive values: written through shared memory by 16-byte accesses.
    constexpr int V = vector_width<T>;
    __shared__ __align__(16) T staged[tile_h][tile_w * 3];
    T* const line = staged[threadIdx.y];
#pragma unroll
    for (int c = 0; c < 3; ++c) put(line[3 * threadIdx.x + c], value[c]);
    __syncwarp();
    // out_w is a multiple of 16, so that a tile has 16 or 32 of the row's pixels, a whole number of vectors.
    const int32_t values = min(tile_w, out_w - u0) * 3;
    const int32_t first = static_cast<int32_t>(threadIdx.x) * V;
    if (v < out_h && first < values) {
      *reinterpret_cast<uint4*>(dst + (row + u0) * 3 + first) = *reinterpret_cast<const uint4*>(line + first);
    }
  } else if constexpr (C > 0) {
    if (!inside) return;
    constexpr int V = C < vector_width<T> ? C : vector_width<T>;
    T* out = dst + (row + u) * C;
#pragma unroll
    for (int first = 0; first < C; first += V) {
      Pack<T, V> pack;
#pragma unroll
      for (int i = 0; i < V; ++i) put(pack.value[i], first + i < 3 ? value[(first + i) % 3] : 0.0f);
      *reinterpret_cast<Pack<T, V>*>(out + first) = pack;
    }
  } else {
    if (!inside) return;
    T* out = dst + (row + u) * out_c;
    for (int32_t c = 0; c < out_c; ++c) {
      put(out[c], c == 0 ? value[0] : c == 1 ? value[1] : c == 2 ? value[2] : 0.0f);
    }
  }
}

}  // namespace dlfs
