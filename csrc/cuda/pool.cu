// Maximum and average pooling over NHWC. Forward: one thread per output pixel and channel vector. Backward: one thread
// per input pixel and channel vector gathers from the windows that cover it, so nothing is added atomically and the
// order of sums is fixed. Averages over whole images have kernels of their own.
#include "common/geometry.hpp"
#include "cuda/image_sums.cuh"
#include "cuda/numeric.cuh"
#include "cuda/pixel.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

// A window's rows or columns inside the image: [first, last), and the window position of the first.
struct Span {
  int32_t first, last;
  int32_t start;  // image coordinate of window position 0, may be negative
};

__device__ __forceinline__ Span window_span(int32_t out, int32_t window, int32_t stride, int32_t pad, int32_t size) {
  const int64_t start = static_cast<int64_t>(out) * stride - pad;
  return {static_cast<int32_t>(max(start, int64_t{0})),
          static_cast<int32_t>(min(start + window, static_cast<int64_t>(size))), static_cast<int32_t>(start)};
}

// The windows, of `out` in a row, that cover an image coordinate: [first, last).
__device__ __forceinline__ Span covering_windows(int32_t at, int32_t window, int32_t stride, int32_t pad, int32_t out) {
  const int64_t padded = static_cast<int64_t>(at) + pad;
  const int64_t first = padded < window ? 0 : (padded - window) / stride + 1;
  const int64_t last = min(padded / stride + 1, static_cast<int64_t>(out));
  return {static_cast<int32_t>(min(first, last)), static_cast<int32_t>(last), 0};
}

// ---- maximum ------------------------------------------------------------------------------------------------------

// The largest value so far and where in the window it is, of V channels.
template <int V>
struct Winner {
  float best[V];
  int32_t position[V];

  __device__ __forceinline__ void meet(const float (&value)[V], int32_t at, bool first) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if (first || value[j] > best[j] || (isnan(value[j]) && !isnan(best[j]))) {
        best[j] = value[j];
        position[j] = at;
      }
    }
  }

  template <class T>
  __device__ __forceinline__ void write(T* y, uint8_t* index) const {
    store(y, best);
    if (!index) return;
    Pack<uint8_t, V> pack;
#pragma unroll
    for (int j = 0; j < V; ++j) pack.value[j] = static_cast<uint8_t>(position[j]);
    *reinterpret_cast<Pack<uint8_t, V>*>(index) = pack;
  }
};

template <class T, int V, class Index>
__global__ void __launch_bounds__(256, 4) max_pool_kernel(T* y, uint8_t* index, const T* x, PoolGeometry g) {
  for_rows(static_cast<Index>(int64_t{g.n} * g.p * g.q), g.c / V, [&](Index row, int32_t vector) {
    const Pixel out = pixel_of(row, g.p, g.q);
    const Span rows = window_span(out.row, g.r, g.stride_h, g.pad_h, g.h);
    const Span columns = window_span(out.column, g.s, g.stride_w, g.pad_w, g.w);
    Winner<V> winner;
    bool first = true;
    for (int32_t h = rows.first; h < rows.last; ++h) {
      for (int32_t w = columns.first; w < columns.last; ++w) {
        float value[V];
        load(value, x + pixel_offset(out.n, h, w, g.h, g.w, g.c) + vector * V);
        winner.meet(value, (h - rows.start) * g.s + (w - columns.start), first);
        first = false;
      }
    }
    const int64_t at = static_cast<int64_t>(row) * g.c + vector * V;
    winner.write(y + at, index ? index + at : nullptr);
  });
}

// The pair type of a 16-bit element.
template <class T>
struct PairOf;
template <>
struct PairOf<bf16> {
  using type = __nv_bfloat162;
};
template <>
struct PairOf<f16> {
  using type = __half2;
};

// Winners of 3x3 windows, two channels an instruction: the maximum first, then the first value that equals it. Comparing
// value by value takes three times the instructions, which then are what the kernel waits for. Position 255 is left where
// nothing equals the maximum: there is a NaN.
template <class T, int V>
struct PairWinner {
  using Pair = typename PairOf<T>::type;
  static constexpr int pairs = V / 2;
  static constexpr uint32_t none = 0x00ff00ffu;  // position 255 of both channels

  uint32_t best[pairs];      // bits of two values
  uint32_t position[pairs];  // two positions of 16 bits

  __device__ __forceinline__ static uint32_t bits_of(const Pack<T, V>& pack, int k) {
    return reinterpret_cast<const uint32_t*>(pack.value)[k];
  }
  __device__ __forceinline__ static Pair pair_of(uint32_t bits) { return *reinterpret_cast<const Pair*>(&bits); }

  // packs outside the image are not looked at.
  __device__ __forceinline__ PairWinner(const Pack<T, V> (&packs)[9], const bool (&inside)[9]) {
    const Pair lowest{from_float<T>(-INFINITY), from_float<T>(-INFINITY)};
#pragma unroll
    for (int k = 0; k < pairs; ++k) {
      Pair most = lowest;
#pragma unroll
      for (int i = 0; i < 9; ++i) {
        if (inside[i]) most = __hmax2_nan(most, pair_of(bits_of(packs[i], k)));
      }
      best[k] = 0;
      position[k] = none;
#pragma unroll
      for (int i = 8; i >= 0; --i) {
        if (!inside[i]) continue;
        const uint32_t bits = bits_of(packs[i], k), equal = __heq2_mask(pair_of(bits), most);
        best[k] = (best[k] & ~equal) | (bits & equal);  // not `most`, whose zero may have the other sign
        position[k] = (position[k] & ~equal) | (static_cast<uint32_t>(i * 0x10001) & equal);
      }
    }
  }

  __device__ __forceinline__ bool has_nan() const {
    uint32_t all = 0;
#pragma unroll
    for (int k = 0; k < pairs; ++k) all |= position[k];
    return (all & 0x00800080u) != 0;
  }

  __device__ __forceinline__ void write(T* y, uint8_t* index) const {
    Pack<T, V> values;
    Pack<uint8_t, V> positions;
#pragma unroll
    for (int k = 0; k < pairs; ++k) {
      reinterpret_cast<uint32_t*>(values.value)[k] = best[k];
      positions.value[2 * k] = static_cast<uint8_t>(position[k]);
      positions.value[2 * k + 1] = static_cast<uint8_t>(position[k] >> 16);
    }
    *reinterpret_cast<Pack<T, V>*>(y) = values;
    if (index) *reinterpret_cast<Pack<uint8_t, V>*>(index) = positions;
  }
};

// 3x3 windows of stride 2: all nine values are on their way before the first is compared.
template <class T, int V, class Index>
__global__ void __launch_bounds__(256, 3)
    max_pool_3x3_stride2_kernel(T* y, uint8_t* index, const T* x, PoolGeometry g) {
  for_rows(static_cast<Index>(int64_t{g.n} * g.p * g.q), g.c / V, [&](Index row, int32_t vector) {
    const Pixel out = pixel_of(row, g.p, g.q);
    const int32_t top = out.row * 2 - g.pad_h, left = out.column * 2 - g.pad_w;
    const int64_t corner = pixel_offset(out.n, top, left, g.h, g.w, g.c) + vector * V;
    const int64_t line = static_cast<int64_t>(g.w) * g.c;
    Pack<T, V> packs[9];
    bool inside[9];
#pragma unroll
    for (int i = 0; i < 9; ++i) {
      inside[i] = static_cast<uint32_t>(top + i / 3) < static_cast<uint32_t>(g.h) &&
                  static_cast<uint32_t>(left + i % 3) < static_cast<uint32_t>(g.w);
      if (inside[i]) packs[i] = load_pack<V>(x + (corner + i / 3 * line + i % 3 * g.c));
    }
    const int64_t at = static_cast<int64_t>(row) * g.c + vector * V;
    if constexpr (sizeof(T) == 2 && V % 2 == 0) {
      const PairWinner<T, V> pairs(packs, inside);
      if (!pairs.has_nan()) {
        pairs.write(y + at, index ? index + at : nullptr);
        return;
      }
    }
    Winner<V> winner;
    bool first = true;
#pragma unroll
    for (int i = 0; i < 9; ++i) {
      if (!inside[i]) continue;
      float value[V];
      unpack(value, packs[i]);
      winner.meet(value, i, first);
      first = false;
    }
    winner.write(y + at, index ? index + at : nullptr);
  });
}

template <class T, int V, class Index>
__global__ void __launch_bounds__(256, 4)
    max_pool_backward_kernel(T* dx, const T* dy, const uint8_t* index, PoolGeometry g) {
  for_rows(static_cast<Index>(int64_t{g.n} * g.h * g.w), g.c / V, [&](Index row, int32_t vector) {
    const Pixel in = pixel_of(row, g.h, g.w);
    const Span ps = covering_windows(in.row, g.r, g.stride_h, g.pad_h, g.p);
    const Span qs = covering_windows(in.column, g.s, g.stride_w, g.pad_w, g.q);
    float sum[V] = {};
    for (int32_t p = ps.first; p < ps.last; ++p) {
      for (int32_t q = qs.first; q < qs.last; ++q) {
        const int32_t position = (in.row + g.pad_h - p * g.stride_h) * g.s + (in.column + g.pad_w - q * g.stride_w);
        const int64_t at = pixel_offset(in.n, p, q, g.p, g.q, g.c) + vector * V;
        const Pack<uint8_t, V> winner = *reinterpret_cast<const Pack<uint8_t, V>*>(index + at);
        float gradient[V];
        load(gradient, dy + at);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += winner.value[j] == position ? gradient[j] : 0.0f;
      }
    }
    store(dx + static_cast<int64_t>(row) * g.c + vector * V, sum);
  });
}

// How many squares of 2x2 padded pixels a row or column of an image has.
DLFS_HD int32_t squares(int32_t size, int32_t pad) { return (size - 1 + pad) / 2 + 1; }

// 3x3 windows of stride 2: a thread has the pixels 2 a and 2 a + 1, counted from the padding's edge, in both directions,
// which the windows a - 1 and a cover; it reads those four once and writes up to four gradients.
template <class T, int V, class Index>
__global__ void __launch_bounds__(256)
    max_pool_3x3_stride2_backward_kernel(T* dx, const T* dy, const uint8_t* index, PoolGeometry g) {
  const int32_t across = squares(g.w, g.pad_w), down = squares(g.h, g.pad_h);
  for_rows(static_cast<Index>(int64_t{g.n} * down * across), g.c / V, [&](Index square, int32_t vector) {
    const Pixel at = pixel_of(square, down, across);
    Pack<T, V> gradients[4];
    Pack<uint8_t, V> winners[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t p = at.row - 1 + i / 2, q = at.column - 1 + i % 2;
      const bool inside =
          static_cast<uint32_t>(p) < static_cast<uint32_t>(g.p) && static_cast<uint32_t>(q) < static_cast<uint32_t>(g.q);
      if (inside) {
        const int64_t from = pixel_offset(at.n, p, q, g.p, g.q, g.c) + vector * V;
        gradients[i] = load_pack<V>(dy + from);
        winners[i] = load_pack<V>(index + from);
      } else {
#pragma unroll
        for (int j = 0; j < V; ++j) winners[i].value[j] = 255;  // no position
      }
    }
#pragma unroll
    for (int pixel = 0; pixel < 4; ++pixel) {
      const int32_t h = 2 * at.row + pixel / 2 - g.pad_h, w = 2 * at.column + pixel % 2 - g.pad_w;
      if (static_cast<uint32_t>(h) >= static_cast<uint32_t>(g.h)) continue;
      if (static_cast<uint32_t>(w) >= static_cast<uint32_t>(g.w)) continue;
      float sum[V] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = pixel / 2 + 2 - 2 * (i / 2), s = pixel % 2 + 2 - 2 * (i % 2);
        if (r > 2 || s > 2) continue;
        float gradient[V];
        unpack(gradient, gradients[i]);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += winners[i].value[j] == r * 3 + s ? gradient[j] : 0.0f;
      }
      store(dx + pixel_offset(at.n, h, w, g.h, g.w, g.c) + vector * V, sum);
    }
  });
}

bool is_3x3_stride2(const PoolGeometry& g) { return g.r == 3 && g.s == 3 && g.stride_h == 2 && g.stride_w == 2; }

// ---- average ------------------------------------------------------------------------------------------------------

// 1 / (number of values in a window's mean).
__device__ __forceinline__ float inverse_count(const Span& rows, const Span& columns, const PoolGeometry& g,
                                               bool padded) {
  const int64_t count = padded ? static_cast<int64_t>(g.r) * g.s
                               : static_cast<int64_t>(rows.last - rows.first) * (columns.last - columns.first);
  return 1.0f / static_cast<float>(count);
}

template <class T, int V, class Index>
__global__ void __launch_bounds__(256, 4) avg_pool_kernel(T* y, const T* x, PoolGeometry g, bool padded) {
  for_rows(static_cast<Index>(int64_t{g.n} * g.p * g.q), g.c / V, [&](Index row, int32_t vector) {
    const Pixel out = pixel_of(row, g.p, g.q);
    const Span rows = window_span(out.row, g.r, g.stride_h, g.pad_h, g.h);
    const Span columns = window_span(out.column, g.s, g.stride_w, g.pad_w, g.w);
    float sum[V] = {};
    for (int32_t h = rows.first; h < rows.last; ++h) {
      for (int32_t w = columns.first; w < columns.last; ++w) {
        float value[V];
        load(value, x + pixel_offset(out.n, h, w, g.h, g.w, g.c) + vector * V);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += value[j];
      }
    }
    const float by = inverse_count(rows, columns, g, padded);
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] *= by;
    store(y + static_cast<int64_t>(row) * g.c + vector * V, sum);
  });
}

// Large windows: a block of 32 channel vectors by 8 threads that share the window.
template <class T, int V>
__global__ void __launch_bounds__(256, 4) avg_pool_large_kernel(T* y, const T* x, PoolGeometry g, bool padded) {
  __shared__ float partial[8][32][V];
  const int32_t vectors = g.c / V;
  const int64_t pixels = int64_t{g.n} * g.p * g.q;
  for (int64_t row = blockIdx.x; row < pixels; row += gridDim.x) {
    const Pixel out = pixel_of(row, g.p, g.q);
    const Span rows = window_span(out.row, g.r, g.stride_h, g.pad_h, g.h);
    const Span columns = window_span(out.column, g.s, g.stride_w, g.pad_w, g.w);
    const int32_t width = columns.last - columns.first;
    const int64_t count = static_cast<int64_t>(rows.last - rows.first) * width;
    for (int32_t first = blockIdx.y * 32; first < vectors; first += gridDim.y * 32) {
      const int32_t vector = first + threadIdx.x;
      float sum[V] = {};
      if (vector < vectors) {
        for (int64_t i = threadIdx.y; i < count; i += 8) {
          const int32_t h = rows.first + static_cast<int32_t>(i / width);
          const int32_t w = columns.first + static_cast<int32_t>(i % width);
          float value[V];
          load(value, x + pixel_offset(out.n, h, w, g.h, g.w, g.c) + vector * V);
#pragma unroll
          for (int j = 0; j < V; ++j) sum[j] += value[j];
        }
      }
#pragma unroll
      for (int j = 0; j < V; ++j) partial[threadIdx.y][threadIdx.x][j] = sum[j];
      __syncthreads();
      if (threadIdx.y == 0 && vector < vectors) {
        const float by = inverse_count(rows, columns, g, padded);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          for (int k = 1; k < 8; ++k) sum[j] += partial[k][threadIdx.x][j];
          sum[j] *= by;
        }
        store(y + row * g.c + vector * V, sum);
      }
      __syncthreads();
    }
  }
}

// A window of the whole image (global pooling): the mean of each image's rows.
template <class T, int V>
struct GlobalMean {
  T* y;
  const T* x;
  int32_t c;
  float by;

  __device__ void add(float (&sum)[V], int64_t at) const {
    float value[V];
    load(value, x + at);
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] += value[j];
  }

  __device__ void write(int64_t image, unsigned, int64_t channel, float (&sum)[V]) const {
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] *= by;
    store(y + image * c + channel, sum);
  }
};

// Its gradient: dy (n, C) over the rows of each image.
template <class T, int V, class Index>
__global__ void __launch_bounds__(256)
    global_mean_backward_kernel(T* dx, const T* dy, Index all_rows, Index rows, int32_t c, float by) {
  for_rows(all_rows, c / V, [&](Index row, int32_t vector) {
    float value[V];
    load(value, dy + static_cast<int64_t>(row / rows) * c + vector * V);
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] *= by;
    store(dx + static_cast<int64_t>(row) * c + vector * V, value);
  });
}

// Whether the window is the whole image.
bool is_global(const PoolGeometry& g) { return g.r == g.h && g.s == g.w && g.pad_h == 0 && g.pad_w == 0; }

template <class T, int V, class Index>
__global__ void __launch_bounds__(256, 4) avg_pool_backward_kernel(T* dx, const T* dy, PoolGeometry g, bool padded) {
  for_rows(static_cast<Index>(int64_t{g.n} * g.h * g.w), g.c / V, [&](Index row, int32_t vector) {
    const Pixel in = pixel_of(row, g.h, g.w);
    const Span ps = covering_windows(in.row, g.r, g.stride_h, g.pad_h, g.p);
    const Span qs = covering_windows(in.column, g.s, g.stride_w, g.pad_w, g.q);
    float sum[V] = {};
    for (int32_t p = ps.first; p < ps.last; ++p) {
      const Span rows = window_span(p, g.r, g.stride_h, g.pad_h, g.h);
      for (int32_t q = qs.first; q < qs.last; ++q) {
        const Span columns = window_span(q, g.s, g.stride_w, g.pad_w, g.w);
        const float by = inverse_count(rows, columns, g, padded);
        float gradient[V];
        load(gradient, dy + pixel_offset(in.n, p, q, g.p, g.q, g.c) + vector * V);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += gradient[j] * by;
      }
    }
    store(dx + static_cast<int64_t>(row) * g.c + vector * V, sum);
  });
}

// Launches kernel<T, V, Index> over `rows` pixels of c channels.
#define LAUNCH_POOL(kernel, rows, aligned, ...)                                                                  \
  dispatch_channels(dtype, g.c, aligned, [&](auto tag, auto width) {                                             \
    using T = typename decltype(tag)::type;                                                                      \
    constexpr int V = decltype(width)::value;                                                                    \
    dispatch_index(rows, [&](auto index_tag) {                                                                   \
      const RowGrid grid = row_grid(*s.context, rows, g.c / V);                                                  \
      launch(s, grid.grid, grid.block, 0, kernel<T, V, typename decltype(index_tag)::type>, __VA_ARGS__);        \
    });                                                                                                          \
  })

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_max_pool_forward(dlfs_stream stream, void* y, void* index, const void* x, int32_t n, int32_t h,
                                  int32_t w, int32_t c, int32_t r, int32_t s_, int32_t stride_h, int32_t stride_w,
                                  int32_t pad_h, int32_t pad_w, dlfs_dtype dtype) {
  return stream_call("dlfs_max_pool_forward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    const PoolGeometry g = pool_geometry(n, h, w, c, r, s_, stride_h, stride_w, pad_h, pad_w, 255);
    check_pointer(y, "y");
    check_pointer(x, "x");
    const int64_t rows = int64_t{g.n} * g.p * g.q;
    if (is_3x3_stride2(g)) {
      LAUNCH_POOL(max_pool_3x3_stride2_kernel, rows, aligned16({y, x, index}), static_cast<T*>(y),
                  static_cast<uint8_t*>(index), static_cast<const T*>(x), g);
    } else {
      LAUNCH_POOL(max_pool_kernel, rows, aligned16({y, x, index}), static_cast<T*>(y), static_cast<uint8_t*>(index),
                  static_cast<const T*>(x), g);
    }
  });
}

dlfs_status dlfs_max_pool_backward(dlfs_stream stream, void* dx, const void* dy, const void* index, int32_t n,
                                   int32_t h, int32_t w, int32_t c, int32_t r, int32_t s_, int32_t stride_h,
                                   int32_t stride_w, int32_t pad_h, int32_t pad_w, dlfs_dtype dtype) {
  return stream_call("dlfs_max_pool_backward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    const PoolGeometry g = pool_geometry(n, h, w, c, r, s_, stride_h, stride_w, pad_h, pad_w, 255);
    check_pointer(dx, "dx");
    check_pointer(dy, "dy");
    check_pointer(index, "index");
    if (is_3x3_stride2(g)) {
      const int64_t count = int64_t{g.n} * squares(g.h, g.pad_h) * squares(g.w, g.pad_w);
      LAUNCH_POOL(max_pool_3x3_stride2_backward_kernel, count, aligned16({dx, dy, index}), static_cast<T*>(dx),
                  static_cast<const T*>(dy), static_cast<const uint8_t*>(index), g);
    } else {
      const int64_t rows = int64_t{g.n} * g.h * g.w;
      LAUNCH_POOL(max_pool_backward_kernel, rows, aligned16({dx, dy, index}), static_cast<T*>(dx),
                  static_cast<const T*>(dy), static_cast<const uint8_t*>(index), g);
    }
  });
}

dlfs_status dlfs_avg_pool_forward(dlfs_stream stream, void* y, const void* x, int32_t n, int32_t h, int32_t w,
                                  int32_t c, int32_t r, int32_t s_, int32_t stride_h, int32_t stride_w, int32_t pad_h,
                                  int32_t pad_w, int32_t count_include_pad, dlfs_dtype dtype) {
  return stream_call("dlfs_avg_pool_forward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    const PoolGeometry g = pool_geometry(n, h, w, c, r, s_, stride_h, stride_w, pad_h, pad_w, INT32_MAX);
    check_pointer(y, "y");
    check_pointer(x, "x");
    const bool padded = count_include_pad != 0;
    const int64_t rows = int64_t{g.n} * g.p * g.q;
    if (is_global(g)) {
      const int64_t window = int64_t{g.h} * g.w;
      dispatch_channels(dtype, g.c, aligned16({y, x}), [&](auto tag, auto width) {
        using T = typename decltype(tag)::type;
        constexpr int V = decltype(width)::value;
        const ImageSumGrid grid = image_sum_grid(*s.context, g.n, window, g.c / V, false);
        const GlobalMean<T, V> mean{static_cast<T*>(y), static_cast<const T*>(x), g.c,
                                    1.0f / static_cast<float>(window)};
        launch(s, grid.grid(), grid.block(), 0, image_sums_kernel<V, GlobalMean<T, V>>, g.n, window, g.c, mean);
      });
    } else if (int64_t{g.r} * g.s >= 64) {
      dispatch_channels(dtype, g.c, aligned16({y, x}), [&](auto tag, auto width) {
        using T = typename decltype(tag)::type;
        constexpr int V = decltype(width)::value;
        const int64_t tiles = ceil_div<int64_t>(g.c / V, 32);
        const dim3 grid(static_cast<unsigned>(std::min<int64_t>(rows, 1 << 16)),
                        static_cast<unsigned>(std::min<int64_t>(tiles, 1 << 10)));
        launch(s, grid, dim3(32, 8), 0, avg_pool_large_kernel<T, V>, static_cast<T*>(y), static_cast<const T*>(x), g,
               padded);
      });
    } else {
      LAUNCH_POOL(avg_pool_kernel, rows, aligned16({y, x}), static_cast<T*>(y), static_cast<const T*>(x), g, padded);
    }
  });
}

dlfs_status dlfs_avg_pool_backward(dlfs_stream stream, void* dx, const void* dy, int32_t n, int32_t h, int32_t w,
                                   int32_t c, int32_t r, int32_t s_, int32_t stride_h, int32_t stride_w, int32_t pad_h,
                                   int32_t pad_w, int32_t count_include_pad, dlfs_dtype dtype) {
  return stream_call("dlfs_avg_pool_backward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    const PoolGeometry g = pool_geometry(n, h, w, c, r, s_, stride_h, stride_w, pad_h, pad_w, INT32_MAX);
    check_pointer(dx, "dx");
    check_pointer(dy, "dy");
    const bool padded = count_include_pad != 0;
    const int64_t rows = int64_t{g.n} * g.h * g.w;
    if (is_global(g)) {
      const int64_t window = int64_t{g.h} * g.w;
      dispatch_channels(dtype, g.c, aligned16({dx, dy}), [&](auto tag, auto width) {
        using T = typename decltype(tag)::type;
        constexpr int V = decltype(width)::value;
        dispatch_index(rows, [&](auto index_tag) {
          using Index = typename decltype(index_tag)::type;
          const RowGrid grid = row_grid(*s.context, rows, g.c / V);
          launch(s, grid.grid, grid.block, 0, global_mean_backward_kernel<T, V, Index>, static_cast<T*>(dx),
                 static_cast<const T*>(dy), static_cast<Index>(rows), static_cast<Index>(window), g.c,
                 1.0f / static_cast<float>(window));
        });
      });
      return;
    }
    LAUNCH_POOL(avg_pool_backward_kernel, rows, aligned16({dx, dy}), static_cast<T*>(dx), static_cast<const T*>(dy), g,
                padded);
  });
}

}  // extern "C"
