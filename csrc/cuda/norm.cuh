// Reductions over the rows of a (rows, C) array to one value per channel, in two stages and a fixed order: blocks of
// tx channel vectors by ty row lanes each leave a partial result per channel in the workspace, a small second kernel
// combines those in double precision. Every thread keeps its channels for all of its rows, so per-channel coefficients
// are loaded once. An array of images (images, rows, C) is reduced image by image in the same launch.
#pragma once

#include "cuda/numeric.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {

constexpr int channel_threads = 256;

// Row r belongs to split (r / ty) % splits and to row lane r % ty.
struct ChannelGrid {
  int tx, ty;
  unsigned tiles;   // blocks along the channels
  unsigned splits;  // blocks along the rows of an image
  unsigned images;  // blocks along the images, each of which takes every images-th

  dim3 grid() const { return dim3(tiles, splits, images); }
  dim3 block() const { return dim3(static_cast<unsigned>(tx), static_cast<unsigned>(ty)); }
};

// vectors: C / V. blocks_per_sm: how many blocks of 256 threads each multiprocessor is given at most; min_rows: how
// many rows a thread should have at least, to be worth its start.
inline ChannelGrid channel_grid(const Context& context, int64_t rows, int64_t vectors, int blocks_per_sm, int min_rows,
                                int64_t images = 1) {
  ChannelGrid g{1, 1, 1, 1, 1};
  while (g.tx < 32 && g.tx < vectors) g.tx *= 2;
  g.ty = channel_threads / g.tx;
  g.tiles = static_cast<unsigned>(ceil_div<int64_t>(vectors, g.tx));
  g.images = static_cast<unsigned>(std::min<int64_t>(images, 65535));
  const int64_t most =
      std::max<int64_t>(1, static_cast<int64_t>(context.sm_count) * blocks_per_sm / g.tiles / g.images);
  g.splits = static_cast<unsigned>(
      std::clamp<int64_t>(ceil_div<int64_t>(rows, g.ty * min_rows), 1, std::min<int64_t>(most, 65535)));
  return g;
}

inline ChannelGrid reduce_grid(const Context& context, int64_t rows, int64_t vectors, int64_t images = 1) {
  return channel_grid(context, rows, vectors, 4, 4, images);
}

inline ChannelGrid apply_grid(const Context& context, int64_t rows, int64_t vectors, int64_t images = 1) {
  return channel_grid(context, rows, vectors, 8, 2, images);
}

// A grid that is on the device as a whole, of at most as many blocks as reduce_grid's: all of them sweep the rows from one
// end to the other side by side, so that what they touched last is still in the L2 cache when they have finished.
template <class... Parameters>
ChannelGrid sweep_grid(const Context& context, int64_t rows, int64_t vectors, void (*kernel)(Parameters...)) {
  int resident = 0;
  CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, channel_threads, 0));
  return channel_grid(context, rows, vectors, std::clamp(resident, 1, 4), 4);
}

// Bytes of workspace for `sums` partial results per channel and image, whatever vector width the addresses allow.
inline int64_t partial_bytes(const Context& context, int64_t rows, int64_t c, int sums, int64_t images = 1) {
  int64_t most = 0;
  for (int width : {8, 4, 1}) {
    if (c % width == 0) most = std::max<int64_t>(most, reduce_grid(context, rows, c / width, images).splits);
  }
  return images * most * c * sums * static_cast<int64_t>(sizeof(float));
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

// The same, `batch` rows at a time: use(row, fetch(row)) for each row after the batch's fetches have been issued. From the
// last row to the first where `reversed`.
template <bool reversed, int batch, class Fetch, class Use>
__device__ __forceinline__ void for_row_batches(int64_t rows, Fetch&& fetch, Use&& use) {
  const int64_t stride = static_cast<int64_t>(gridDim.y) * blockDim.y;
  const auto at = [&](int64_t i) { return reversed ? rows - 1 - i : i; };
  int64_t i = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y;
  for (; i + (batch - 1) * stride < rows; i += batch * stride) {
    decltype(fetch(i)) loaded[batch];
#pragma unroll
    for (int k = 0; k < batch; ++k) loaded[k] = fetch(at(i + k * stride));
#pragma unroll
    for (int k = 0; k < batch; ++k) use(at(i + k * stride), loaded[k]);
  }
  if (i >= rows) return;
  decltype(fetch(i)) loaded[batch - 1];
#pragma unroll
  for (int k = 0; k < batch - 1; ++k) {
    if (i + k * stride < rows) loaded[k] = fetch(at(i + k * stride));
  }
#pragma unroll
  for (int k = 0; k < batch - 1; ++k) {
    if (i + k * stride < rows) use(at(i + k * stride), loaded[k]);
  }
}

// The images of the calling thread: body(image) for each; all threads of a block have the same ones.
template <class Body>
__device__ __forceinline__ void for_my_images(int32_t images, Body&& body) {
  for (int64_t image = blockIdx.z; image < images; image += gridDim.z) body(image);
}

// ReLU's gradient: 0 where its output y is not positive.
template <int V, class T>
__device__ __forceinline__ void mask_relu(float (&gradient)[V], const T* y) {
  float out[V];
  load(out, y);
#pragma unroll
  for (int j = 0; j < V; ++j) gradient[j] = out[j] <= 0.0f ? 0.0f : gradient[j];
}

// How many rows a thread loads before it adds the first, so that its sums and loads fit into 128 registers.
template <int S>
inline constexpr int rows_in_flight = S < 3 ? 4 : 2;

// Sums per channel: partial (images, S, splits, C) = sums over the split's rows of S values. Rows are counted through all
// images.
//   op.begin(image, channel): loads the coefficients of V channels
//   op.fetch(row, channel): loads what the row has for those channels
//   op.add(sums, row, channel, fetched): adds its values
template <int S, int V, class Op>
__global__ void __launch_bounds__(channel_threads, 2)
    channel_sums_kernel(float* partial, int64_t rows, int32_t c, int32_t images, Op op) {
  __shared__ float shared[S * V][channel_threads];
  const int32_t channel = static_cast<int32_t>((static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V);
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  const bool active = channel < c;
  for_my_images(images, [&](int64_t image) {
    float sums[S][V] = {};
    if (active) {
      op.begin(image, channel);
      const int64_t first = image * rows;
      for_row_batches<false, rows_in_flight<S>>(
          rows, [&](int64_t row) { return op.fetch(first + row, channel); },
          [&](int64_t row, const auto& fetched) { op.add(sums, first + row, channel, fetched); });
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
          partial[((image * S + i) * gridDim.y + blockIdx.y) * c + channel + j] = sums[i][j];
        }
      }
    }
  });
}

// Mean and sum of squared distances from it, of n values.
struct Moments {
  float n, mean, m2;
};

// Chan, Golub and LeVeque 1979: the moments of two sets together.
__device__ __forceinline__ void merge(Moments& a, const Moments& b) {
  if (b.n == 0.0f) return;
  const float n = a.n + b.n;
  const float delta = b.mean - a.mean;
  const float share = b.n / n;
  a.mean += delta * share;
  a.m2 += b.m2 + delta * delta * a.n * share;
  a.n = n;
}

// partial (images, 2, splits, C): the mean, then the sum of squared distances from it, of each split's rows. A thread
// sums distances from its own first value, which avoids cancellation, and threads are merged by their moments. counts
// (splits), nullable: how many rows each split has.
template <class T, int V>
__global__ void __launch_bounds__(channel_threads)
    statistics_kernel(float* partial, float* counts, const T* x, int64_t rows, int32_t c, int32_t images) {
  __shared__ float shared_mean[V][channel_threads];
  __shared__ float shared_m2[V][channel_threads];
  __shared__ float shared_n[channel_threads];
  const int32_t channel = static_cast<int32_t>((static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V);
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  const bool active = channel < c;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y;
  if (counts && blockIdx.x == 0 && blockIdx.z == 0 && thread == 0) {
    counts[blockIdx.y] = static_cast<float>(split_rows(rows, blockIdx.y, gridDim.y, blockDim.y));
  }
  for_my_images(images, [&](int64_t image) {
    float n = 0.0f;
    float mean[V] = {}, m2[V] = {};
    if (active && first < rows) {
      const T* const in = x + image * rows * c + channel;
      float shift[V], sum[V] = {}, squares[V] = {};
      load(shift, in + first * c);
      for_row_batches<false, 4>(
          rows, [&](int64_t row) { return load_pack<V>(in + row * c); },
          [&](int64_t, const Pack<T, V>& pack) {
            float value[V];
            unpack(value, pack);
            n += 1.0f;
#pragma unroll
            for (int j = 0; j < V; ++j) {
              const float distance = value[j] - shift[j];
              sum[j] += distance;
              squares[j] += distance * distance;
            }
          });
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const float offset = sum[j] / n;
        mean[j] = shift[j] + offset;
        m2[j] = fmaxf(squares[j] - sum[j] * offset, 0.0f);
        if (isnan(squares[j])) m2[j] = squares[j];  // fmaxf would hide it
      }
    }
    for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {
      if (threadIdx.y >= half && threadIdx.y < 2 * half) {
        shared_n[thread] = n;
#pragma unroll
        for (int j = 0; j < V; ++j) {
          shared_mean[j][thread] = mean[j];
          shared_m2[j][thread] = m2[j];
        }
      }
      __syncthreads();
      if (threadIdx.y < half) {
        const int other = thread + static_cast<int>(half * blockDim.x);
        const float other_n = shared_n[other];
        Moments merged{n, 0.0f, 0.0f};
#pragma unroll
        for (int j = 0; j < V; ++j) {
          merged = {n, mean[j], m2[j]};
          merge(merged, {other_n, shared_mean[j][other], shared_m2[j][other]});
          mean[j] = merged.mean;
          m2[j] = merged.m2;
        }
        n = merged.n;
      }
      __syncthreads();
    }
    if (active && threadIdx.y == 0) {
      float* const out = partial + (image * 2 * gridDim.y + blockIdx.y) * c + channel;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        out[j] = mean[j];
        out[static_cast<int64_t>(gridDim.y) * c + j] = m2[j];
      }
    }
  });
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

// The parts of each channel combined in one pass: blocks of 8 channels by 128 lanes, which share the parts.
constexpr int parts_channels = 8, parts_lanes = 128;
inline dim3 parts_grid(int32_t c) { return dim3(static_cast<unsigned>(ceil_div<int64_t>(c, parts_channels))); }
inline dim3 parts_block() { return dim3(parts_channels * parts_lanes); }

__device__ __forceinline__ int32_t parts_channel() {
  return static_cast<int32_t>(blockIdx.x * parts_channels + threadIdx.x % parts_channels);
}

// S sums over the parts of the thread's channel: term(sums, part) adds a part's. All threads of the block must call it;
// true in the one thread of each channel that has the totals, added in a fixed order.
template <int S, class Term>
__device__ __forceinline__ bool sum_parts(double (&sums)[S], int64_t parts, bool active, Term&& term) {
  constexpr int warps = parts_channels * parts_lanes / 32;
  __shared__ double shared[S][warps][parts_channels];
  const int warp = static_cast<int>(threadIdx.x / 32), place = static_cast<int>(threadIdx.x % parts_channels);
  const auto add_lanes = [&] {
#pragma unroll
    for (int i = 0; i < S; ++i) {
      sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], 8);
      sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], 16);
    }
  };
#pragma unroll
  for (int i = 0; i < S; ++i) sums[i] = 0;
  if (active) {
#pragma unroll 4
    for (int64_t part = threadIdx.x / parts_channels; part < parts; part += parts_lanes) term(sums, part);
  }
  // 128 lanes to 32 to 8 to 1.
  for (int left = warps; left > 4; left /= 4) {
    add_lanes();
    if (warp < left && threadIdx.x % 32 < parts_channels) {
#pragma unroll
      for (int i = 0; i < S; ++i) shared[i][warp][place] = sums[i];
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.x / parts_channels) < left) {
#pragma unroll
      for (int i = 0; i < S; ++i) sums[i] = shared[i][threadIdx.x / parts_channels][place];
    }
    __syncthreads();
  }
  add_lanes();
  if (warp < 2 && threadIdx.x % 32 < parts_channels) {
#pragma unroll
    for (int i = 0; i < S; ++i) shared[i][warp][place] = sums[i];
  }
  __syncthreads();
  if (threadIdx.x >= parts_channels) return false;
#pragma unroll
  for (int i = 0; i < S; ++i) sums[i] = shared[i][0][place] + shared[i][1][place];
  return active;
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
