// Reductions over the rows of a (rows, C) array to one value per channel, in two stages and a fixed order: blocks of
// tx channel vectors by ty row lanes each leave a partial result per channel in the workspace, a small second kernel
// combines those in double precision. Every thread keeps its channels for all of its rows, so per-channel coefficients
// are loaded once.
#pragma once

#include "cuda/numeric.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {

constexpr int channel_threads = 256;

// Row r belongs to split (r / ty) % splits and to row lane r % ty.
struct ChannelGrid {
  int tx, ty;
  unsigned tiles;   // blocks along the channels
  unsigned splits;  // blocks along the rows

  dim3 grid() const { return dim3(tiles, splits); }
  dim3 block() const { return dim3(static_cast<unsigned>(tx), static_cast<unsigned>(ty)); }
};

// vectors: C / V. blocks_per_sm: how many blocks of 256 threads each multiprocessor is given at most; min_rows: how
// many rows a thread should have at least, to be worth its start.
inline ChannelGrid channel_grid(const Context& context, int64_t rows, int64_t vectors, int blocks_per_sm,
                                int min_rows) {
  ChannelGrid g{1, 1, 1, 1};
  while (g.tx < 32 && g.tx < vectors) g.tx *= 2;
  g.ty = channel_threads / g.tx;
  g.tiles = static_cast<unsigned>(ceil_div<int64_t>(vectors, g.tx));
  const int64_t most = std::max<int64_t>(1, static_cast<int64_t>(context.sm_count) * blocks_per_sm / g.tiles);
  g.splits = static_cast<unsigned>(
      std::clamp<int64_t>(ceil_div<int64_t>(rows, g.ty * min_rows), 1, std::min<int64_t>(most, 65535)));
  return g;
}

inline ChannelGrid reduce_grid(const Context& context, int64_t rows, int64_t vectors) {
  return channel_grid(context, rows, vectors, 4, 4);
}

inline ChannelGrid apply_grid(const Context& context, int64_t rows, int64_t vectors) {
  return channel_grid(context, rows, vectors, 8, 2);
}

// Bytes of workspace for `sums` partial results per channel, whatever vector width the addresses allow.
inline int64_t partial_bytes(const Context& context, int64_t rows, int64_t c, int sums) {
  int64_t most = 0;
  for (int width : {8, 4, 1}) {
    if (c % width == 0) most = std::max<int64_t>(most, reduce_grid(context, rows, c / width).splits);
  }
  return most * c * sums * static_cast<int64_t>(sizeof(float));
}

// How many of the rows belong to a split.
__device__ __forceinline__ int64_t split_rows(int64_t rows, int64_t split, int64_t splits, int64_t ty) {
  const int64_t groups = (rows + ty - 1) / ty;
  if (split >= groups) return 0;
  const int64_t mine = (groups - split - 1) / splits + 1;
  const bool has_last = (groups - 1) % splits == split;
  return mine * ty - (has_last ? groups * ty - rows : 0);
}

// The rows of the calling thread: body(row) for each, four at a time so that their loads are in flight together.
template <class Body>
__device__ __forceinline__ void for_my_rows(int64_t rows, Body&& body) {
  const int64_t stride = static_cast<int64_t>(gridDim.y) * blockDim.y;
#pragma unroll 4
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; row < rows; row += stride) body(row);
}

// Sums per channel: partial (S, splits, C) = sums over the split's rows of S values.
//   op.begin(channel): loads the coefficients of V channels; op.add(sums, at): adds the values of elements at ... at +
//   V.
template <int S, int V, class Op>
__global__ void __launch_bounds__(channel_threads) channel_sums_kernel(float* partial, int64_t rows, int32_t c, Op op) {
  __shared__ float shared[S * V][channel_threads];
  const int32_t channel = static_cast<int32_t>((static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V);
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  const bool active = channel < c;
  float sums[S][V] = {};
  if (active) {
    op.begin(channel);
    for_my_rows(rows, [&](int64_t row) { op.add(sums, row * c + channel); });
  }
  for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {
    if (threadIdx.y >= half && threadIdx.y < 2 * half) {
#pragma unroll
      for (int i = 0; i < S; ++i) {
#pragma unroll
        for (int j = 0; j < V; ++j) shared[i * V + j][thread] = sums[i][j];
      }
    }
    __syncthreads();
    if (threadIdx.y < half) {
#pragma unroll
      for (int i = 0; i < S; ++i) {
#pragma unroll
        for (int j = 0; j < V; ++j) sums[i][j] += shared[i * V + j][thread + half * blockDim.x];
      }
    }
    __syncthreads();
  }
  if (active && threadIdx.y == 0) {
#pragma unroll
    for (int i = 0; i < S; ++i) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        partial[(static_cast<int64_t>(i) * gridDim.y + blockIdx.y) * c + channel + j] = sums[i][j];
      }
    }
  }
}

// Blocks of 32 channels by 32 lanes combine the splits of each channel. Returns the total in every lane of the channel;
// all threads of the block must call it. term(split) gives a split's contribution.
template <class Term>
__device__ __forceinline__ double sum_splits(int64_t splits, bool active, Term&& term) {
  __shared__ double shared[32][33];
  double sum = 0;
  if (active) {
    for (int64_t split = threadIdx.y; split < splits; split += 32) sum += term(split);
  }
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  for (unsigned half = 16; half > 0; half /= 2) {
    if (threadIdx.y < half) shared[threadIdx.y][threadIdx.x] += shared[threadIdx.y + half][threadIdx.x];
    __syncthreads();
  }
  const double total = shared[0][threadIdx.x];
  __syncthreads();
  return total;
}

constexpr dim3 finish_block(32, 32);
inline dim3 finish_grid(int32_t c) { return dim3(static_cast<unsigned>(ceil_div<int64_t>(c, 32))); }

// Coefficients of V consecutive channels; any alignment, faster for multiples of 16 bytes.
template <int V>
__device__ __forceinline__ void load_channels(float (&out)[V], const float* p) {
  if constexpr (V % 4 == 0) {
    if (reinterpret_cast<uintptr_t>(p) % 16 == 0) {
#pragma unroll
      for (int j = 0; j < V; j += 4) {
        const float4 part = *reinterpret_cast<const float4*>(p + j);
        out[j] = part.x;
        out[j + 1] = part.y;
        out[j + 2] = part.z;
        out[j + 3] = part.w;
      }
      return;
    }
  }
#pragma unroll
  for (int j = 0; j < V; ++j) out[j] = p[j];
}

}  // namespace dlfs
