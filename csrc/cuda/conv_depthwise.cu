// Depthwise convolution (one filter per channel) in all three directions, bound by memory. Threads own V channels of
// one pixel at a time; a block keeps the filters of its channels in shared memory as fp32. The weight gradient sums
// kernel positions in registers over many pixels, then over the block, and last over the blocks, in a fixed order.
#include "cuda/conv.hpp"
#include "cuda/norm.cuh"
#include "cuda/pixel.cuh"

namespace dlfs {
namespace {

constexpr size_t shared_limit = 48 * 1024;

// Kernel positions that a thread of the weight gradient sums at once: all of a 3x3 filter.
constexpr int taps_at_once = 9;

// Loads the filters of the block's channels, w (C, R, S), as filters[tap][channel in the block].
template <class T>
__device__ __forceinline__ void load_filters(float* filters, const T* w, int32_t first, int32_t count, int32_t c,
                                             int32_t taps) {
  const int32_t threads = static_cast<int32_t>(blockDim.x * blockDim.y);
  for (int32_t i = static_cast<int32_t>(threadIdx.y * blockDim.x + threadIdx.x); i < count * taps; i += threads) {
    const int32_t channel = i / taps, tap = i % taps;
    filters[tap * count + channel] = first + channel < c ? to_float(w[int64_t{first} * taps + i]) : 0.0f;
  }
  __syncthreads();
}

// ---- forward and data gradient ------------------------------------------------------------------------------------

template <class T, int V, class Index>
__global__ void __launch_bounds__(channel_threads, 4)
    depthwise_forward_kernel(T* y, const T* x, const T* w, const float* bias, const T* residual, ConvGeometry g,
                             Index pixels, dlfs_activation activation) {
  extern __shared__ float filters[];
  const int32_t count = static_cast<int32_t>(blockDim.x) * V;
  const int32_t first = static_cast<int32_t>(blockIdx.x) * count;
  load_filters(filters, w, first, count, g.c, g.r * g.s);
  const int32_t lane = static_cast<int32_t>(threadIdx.x) * V, channel = first + lane;
  if (channel >= g.c) return;
  for_my_rows(static_cast<int64_t>(pixels), [&](int64_t pixel) {
    const Pixel out = pixel_of(static_cast<Index>(pixel), g.p, g.q);
    float sum[V] = {};
    for (int32_t r = 0; r < g.r; ++r) {
      const int32_t h = out.row * g.stride_h - g.pad_h + r * g.dilation_h;
      if (h < 0 || h >= g.h) continue;
      for (int32_t s = 0; s < g.s; ++s) {
        const int32_t v = out.column * g.stride_w - g.pad_w + s * g.dilation_w;
        if (v < 0 || v >= g.w) continue;
        float value[V];
        load(value, x + pixel_offset(out.n, h, v, g.h, g.w, g.c) + channel);
        const float* const filter = filters + (r * g.s + s) * count + lane;
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += value[j] * filter[j];
      }
    }
    const int64_t at = pixel * g.c + channel;
    if (bias) {
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] += bias[channel + j];
    }
    if (residual) {
      float other[V];
      load(other, residual + at);
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] += other[j];
    }
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] = activate(activation, sum[j]);
    store(y + at, sum);
  });
}

template <class T, int V, class Index>
__global__ void __launch_bounds__(channel_threads, 4)
    depthwise_data_gradient_kernel(T* dx, const T* dy, const T* w, ConvGeometry g, Index pixels) {
  extern __shared__ float filters[];
  const int32_t count = static_cast<int32_t>(blockDim.x) * V;
  const int32_t first = static_cast<int32_t>(blockIdx.x) * count;
  load_filters(filters, w, first, count, g.c, g.r * g.s);
  const int32_t lane = static_cast<int32_t>(threadIdx.x) * V, channel = first + lane;
  if (channel >= g.c) return;
  for_my_rows(static_cast<int64_t>(pixels), [&](int64_t pixel) {
    const Pixel in = pixel_of(static_cast<Index>(pixel), g.h, g.w);
    float sum[V] = {};
    for (int32_t r = 0; r < g.r; ++r) {
      int32_t p = in.row + g.pad_h - r * g.dilation_h;
      if (p < 0 || (g.stride_h > 1 && p % g.stride_h != 0)) continue;
      if (g.stride_h > 1) p /= g.stride_h;
      if (p >= g.p) continue;
      for (int32_t s = 0; s < g.s; ++s) {
        int32_t q = in.column + g.pad_w - s * g.dilation_w;
        if (q < 0 || (g.stride_w > 1 && q % g.stride_w != 0)) continue;
        if (g.stride_w > 1) q /= g.stride_w;
        if (q >= g.q) continue;
        float gradient[V];
        load(gradient, dy + pixel_offset(in.n, p, q, g.p, g.q, g.c) + channel);
        const float* const filter = filters + (r * g.s + s) * count + lane;
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += gradient[j] * filter[j];
      }
    }
    store(dx + pixel * g.c + channel, sum);
  });
}

// ---- weight gradient ----------------------------------------------------------------------------------------------

// partial (splits, R S, C); blockIdx.z counts groups of taps_at_once kernel positions.
template <class T, int V, class Index>
__global__ void __launch_bounds__(channel_threads, 2)
    depthwise_weight_gradient_kernel(float* partial, const T* x, const T* dy, ConvGeometry g, Index pixels) {
  __shared__ float shared[V][channel_threads];
  const int32_t taps = g.r * g.s;
  const int32_t first_tap = static_cast<int32_t>(blockIdx.z) * taps_at_once;
  const int32_t channel =
      (static_cast<int32_t>(blockIdx.x) * static_cast<int32_t>(blockDim.x) + static_cast<int32_t>(threadIdx.x)) * V;
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  const bool active = channel < g.c;
  float sums[taps_at_once][V] = {};
  if (active) {
    const int64_t stride = static_cast<int64_t>(gridDim.y) * blockDim.y;
    for (int64_t pixel = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y;
         pixel < static_cast<int64_t>(pixels); pixel += stride) {
      const Pixel out = pixel_of(static_cast<Index>(pixel), g.p, g.q);
      float gradient[V];
      load(gradient, dy + pixel * g.c + channel);
      const int32_t top = out.row * g.stride_h - g.pad_h, left = out.column * g.stride_w - g.pad_w;
      int32_t r = first_tap / g.s, s = first_tap % g.s;
#pragma unroll
      for (int i = 0; i < taps_at_once; ++i) {
        const int32_t h = top + r * g.dilation_h, v = left + s * g.dilation_w;
        if (r < g.r && h >= 0 && h < g.h && v >= 0 && v < g.w) {
          float value[V];
          load(value, x + pixel_offset(out.n, h, v, g.h, g.w, g.c) + channel);
#pragma unroll
          for (int j = 0; j < V; ++j) sums[i][j] += gradient[j] * value[j];
        }
        if (++s == g.s) {
          s = 0;
          ++r;
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < taps_at_once; ++i) {
    for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {
      if (threadIdx.y >= half && threadIdx.y < 2 * half) {
#pragma unroll
        for (int j = 0; j < V; ++j) shared[j][thread] = sums[i][j];
      }
      __syncthreads();
      if (threadIdx.y < half) {
#pragma unroll
        for (int j = 0; j < V; ++j) sums[i][j] += shared[j][thread + static_cast<int>(half * blockDim.x)];
      }
      __syncthreads();
    }
    if (active && threadIdx.y == 0 && first_tap + i < taps) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        partial[(static_cast<int64_t>(blockIdx.y) * taps + first_tap + i) * g.c + channel + j] = sums[i][j];
      }
    }
  }
}

// dw (C, R, S) from partial; blockIdx.y is the kernel position.
__global__ void __launch_bounds__(1024)
    depthwise_finish_kernel(float* dw, const float* partial, int64_t splits, int32_t taps, int32_t c) {
  const int32_t channel = static_cast<int32_t>(blockIdx.x * 32 + threadIdx.x);
  const bool active = channel < c;
  for (int32_t tap = static_cast<int32_t>(blockIdx.y); tap < taps; tap += static_cast<int32_t>(gridDim.y)) {
    const double sum = sum_splits(splits, active, [&](int64_t split) {
      return static_cast<double>(partial[(split * taps + tap) * c + channel]);
    });
    if (active && threadIdx.y == 0) dw[int64_t{channel} * taps + tap] = static_cast<float>(sum);
  }
}

// ---- the algorithm ------------------------------------------------------------------------------------------------

ChannelGrid weight_grid(const Context& context, const ConvGeometry& g, int width) {
  return channel_grid(context, int64_t{g.n} * g.p * g.q, g.c / width, 4, 16);
}

class DepthwiseConv final : public ConvAlgorithm {
 public:
  DepthwiseConv(Context& context, const ConvProblem& problem) : problem_(problem) {
    if (problem.direction == DLFS_CONV_BACKWARD_WEIGHT) {
      int64_t splits = 0;
      for (int width : {4, 1}) {
        if (problem.g.c % width == 0) splits = std::max<int64_t>(splits, weight_grid(context, problem.g, width).splits);
      }
      bytes_ = splits * problem.g.w_elements() * static_cast<int64_t>(sizeof(float));
    }
  }

  int64_t workspace_bytes() const override { return bytes_; }
  std::string pick() const override { return "depthwise"; }

  void run(Stream& s, const ConvTensors& t, void* workspace) const override {
    const ConvGeometry& g = problem_.g;
    if (problem_.direction == DLFS_CONV_BACKWARD_WEIGHT) return run_weight(s, t, static_cast<float*>(workspace));
    const bool forward = problem_.direction == DLFS_CONV_FORWARD;
    const int64_t pixels = forward ? int64_t{g.n} * g.p * g.q : int64_t{g.n} * g.h * g.w;
    dispatch_channels(problem_.dtype, g.c, aligned16({t.x, t.y, t.residual}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      ChannelGrid grid = channel_grid(*s.context, pixels, g.c / V, 8, 4);
      const size_t per_vector = sizeof(float) * V * static_cast<size_t>(g.r) * static_cast<size_t>(g.s);
      while (grid.tx > 1 && static_cast<size_t>(grid.tx) * per_vector > shared_limit) {
        grid.tx /= 2;
        grid.ty *= 2;
        grid.tiles = static_cast<unsigned>(ceil_div<int64_t>(g.c / V, grid.tx));
      }
      const size_t shared = static_cast<size_t>(grid.tx) * per_vector;
      dispatch_index(pixels, [&](auto index_tag) {
        using Index = typename decltype(index_tag)::type;
        if (forward) {
          launch(s, grid.grid(), grid.block(), shared, depthwise_forward_kernel<T, V, Index>, static_cast<T*>(t.y),
                 static_cast<const T*>(t.x), static_cast<const T*>(t.w), t.bias, static_cast<const T*>(t.residual), g,
                 static_cast<Index>(pixels), problem_.activation);
        } else {
          launch(s, grid.grid(), grid.block(), shared, depthwise_data_gradient_kernel<T, V, Index>,
                 static_cast<T*>(t.x), static_cast<const T*>(t.y), static_cast<const T*>(t.w), g,
                 static_cast<Index>(pixels));
        }
      });
    });
  }

 private:
  void run_weight(Stream& s, const ConvTensors& t, float* partial) const {
    const ConvGeometry& g = problem_.g;
    const int64_t pixels = int64_t{g.n} * g.p * g.q;
    const int32_t taps = g.r * g.s;
    const auto sum = [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      const ChannelGrid grid = weight_grid(*s.context, g, V);
      const dim3 blocks(grid.tiles, grid.splits, static_cast<unsigned>(ceil_div(taps, taps_at_once)));
      dispatch_index(pixels, [&](auto index_tag) {
        using Index = typename decltype(index_tag)::type;
        launch(s, blocks, grid.block(), 0, depthwise_weight_gradient_kernel<T, V, Index>, partial,
               static_cast<const T*>(t.x), static_cast<const T*>(t.y), g, static_cast<Index>(pixels));
      });
      launch(s, dim3(static_cast<unsigned>(ceil_div<int64_t>(g.c, 32)), static_cast<unsigned>(std::min(taps, 65535))),
             finish_block, 0, depthwise_finish_kernel, static_cast<float*>(t.w), partial,
             static_cast<int64_t>(grid.splits), taps, g.c);
    };
    dispatch_float(problem_.dtype, [&](auto tag) {
      if (g.c % 4 == 0 && aligned16({t.x, t.y})) {
        sum(tag, Width<4>{});
      } else {
        sum(tag, Width<1>{});
      }
    });
  }

  const ConvProblem problem_;
  int64_t bytes_ = 0;
};

}  // namespace

bool depthwise_supports(const ConvProblem& problem) {
  const ConvGeometry& g = problem.g;
  // One channel vector's filters must fit in shared memory, and image coordinates in 32 bits with padding.
  const int64_t taps = int64_t{g.r} * g.s;
  const int64_t reach = std::max(int64_t{g.h} + 2 * int64_t{g.pad_h} + int64_t{g.r} * g.dilation_h,
                                 int64_t{g.w} + 2 * int64_t{g.pad_w} + int64_t{g.s} * g.dilation_w);
  return g.depthwise() && !problem.quantized() && !problem.gradient_epilogue() && taps * 8 * static_cast<int64_t>(sizeof(float)) <= static_cast<int64_t>(shared_limit) &&
         reach < (int64_t{1} << 30);
}

std::shared_ptr<const ConvAlgorithm> depthwise_algorithm(Context& context, const ConvProblem& problem) {
  return std::make_shared<DepthwiseConv>(context, problem);
}

}  // namespace dlfs
