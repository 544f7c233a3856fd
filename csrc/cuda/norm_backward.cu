// Gradients of batch normalization, and the sum over rows that is the gradient of a bias. One pass over (dy, x, y) for
// the sums, one that writes dx and the residual's gradient.
#include "common/arguments.hpp"
#include "cuda/norm.cuh"

namespace dlfs {
namespace {

// ---- sums ---------------------------------------------------------------------------------------------------------

template <class T, int V>
struct Sum {
  const T* x;
  __device__ __forceinline__ void begin(int64_t, int32_t) {}
  __device__ __forceinline__ void add(float (&sums)[1][V], int64_t at) const {
    float value[V];
    load(value, x + at);
#pragma unroll
    for (int j = 0; j < V; ++j) sums[0][j] += value[j];
  }
};

// Sums of the masked dy, and of it times x - mean.
template <class T, int V, bool relu>
struct GradientSums {
  const T* dy;
  const T* x;
  const T* y;  // read with ReLU
  const float* mean;
  float centre[V];

  __device__ __forceinline__ void begin(int64_t, int32_t channel) { load_channels(centre, mean + channel); }
  __device__ __forceinline__ void add(float (&sums)[2][V], int64_t at) const {
    float gradient[V], value[V];
    load(gradient, dy + at);
    load(value, x + at);
    if constexpr (relu) mask_relu(gradient, y + at);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      sums[0][j] += gradient[j];
      sums[1][j] += gradient[j] * (value[j] - centre[j]);
    }
  }
};

__global__ void __launch_bounds__(1024) finish_sum_kernel(float* out, const float* partial, int64_t splits, int32_t c) {
  const int32_t channel = static_cast<int32_t>(blockIdx.x * 32 + threadIdx.x);
  const bool active = channel < c;
  const double sum =
      sum_splits(splits, active, [&](int64_t split) { return static_cast<double>(partial[split * c + channel]); });
  if (active && threadIdx.y == 0) out[channel] = static_cast<float>(sum);
}

// dbias = sum of dy, dweight = invstd * sum of dy (x - mean).
__global__ void __launch_bounds__(1024) finish_gradients_kernel(float* dweight, float* dbias, const float* partial,
                                                                const float* invstd, int64_t splits, int32_t c) {
  const int32_t channel = static_cast<int32_t>(blockIdx.x * 32 + threadIdx.x);
  const bool active = channel < c;
  const double sum =
      sum_splits(splits, active, [&](int64_t split) { return static_cast<double>(partial[split * c + channel]); });
  const double product = sum_splits(
      splits, active, [&](int64_t split) { return static_cast<double>(partial[(splits + split) * c + channel]); });
  if (!active || threadIdx.y != 0) return;
  dbias[channel] = static_cast<float>(sum);
  dweight[channel] = static_cast<float>(product * invstd[channel]);
}

// ---- dx -----------------------------------------------------------------------------------------------------------

// dx = weight invstd (dy - dbias / rows - (x - mean) invstd dweight / rows), dy masked; dresidual = the masked dy.
template <class T, int V, bool relu>
__global__ void __launch_bounds__(channel_threads)
    input_gradient_kernel(T* dx, T* dresidual, const T* dy, const T* x, const T* y, const float* weight,
                          const float* mean, const float* invstd, const float* dweight, const float* dbias,
                          int64_t rows, int32_t c) {
  const int32_t channel = static_cast<int32_t>((static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V);
  if (channel >= c) return;
  const float by = 1.0f / static_cast<float>(rows);
  float centre[V], factor[V], average[V], slope[V], spread[V];
  load_channels(centre, mean + channel);
  load_channels(factor, weight + channel);
  load_channels(average, dbias + channel);
  load_channels(slope, dweight + channel);
  load_channels(spread, invstd + channel);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    factor[j] *= spread[j];
    average[j] *= by;
    slope[j] *= spread[j] * by;
  }
  for_my_rows(rows, [&](int64_t row) {
    const int64_t at = row * c + channel;
    float gradient[V], value[V];
    load(gradient, dy + at);
    load(value, x + at);
    if constexpr (relu) mask_relu(gradient, y + at);
    if (dresidual) store(dresidual + at, gradient);
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] = factor[j] * (gradient[j] - average[j] - (value[j] - centre[j]) * slope[j]);
    store(dx + at, value);
  });
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_channel_sum_workspace(dlfs_context ctx, int64_t* out, int64_t rows, int32_t c, dlfs_dtype dtype) {
  return context_call("dlfs_channel_sum_workspace", ctx, [&](Context& context) {
    check_pointer(out, "out");
    check_size(rows, "rows");
    check_size(c, "c");
    check_float_dtype(dtype);
    *out = partial_bytes(context, rows, c, 1);
  });
}

dlfs_status dlfs_channel_sum(dlfs_stream stream, float* out, const void* x, void* workspace, int64_t rows, int32_t c,
                             dlfs_dtype dtype) {
  return stream_call("dlfs_channel_sum", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_size(rows, "rows");
    check_size(c, "c");
    checked_product({rows, c}, "x");
    check_pointer(out, "out");
    check_pointer(x, "x");
    check_workspace(workspace, partial_bytes(*s.context, rows, c, 1));
    float* const partial = static_cast<float*>(workspace);
    dispatch_channels(dtype, c, aligned16({x}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      const ChannelGrid g = reduce_grid(*s.context, rows, c / V);
      launch(s, g.grid(), g.block(), 0, channel_sums_kernel<1, V, Sum<T, V>>, partial, rows, c, 1,
             Sum<T, V>{static_cast<const T*>(x)});
      launch(s, finish_grid(c), finish_block, 0, finish_sum_kernel, out, partial, static_cast<int64_t>(g.splits), c);
    });
  });
}

dlfs_status dlfs_batch_norm_backward(dlfs_stream stream, void* dx, void* dresidual, float* dweight, float* dbias,
                                     const void* dy, const void* x, const void* y, const float* weight,
                                     const float* save_mean, const float* save_invstd, void* workspace, int64_t rows,
                                     int32_t c, dlfs_dtype dtype, dlfs_activation activation) {
  return stream_call("dlfs_batch_norm_backward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_activation(activation, {DLFS_ACT_NONE, DLFS_ACT_RELU});
    check_size(rows, "rows");
    check_size(c, "c");
    checked_product({rows, c}, "x");
    check_pointer(dx, "dx");
    check_pointer(dweight, "dweight");
    check_pointer(dbias, "dbias");
    check_pointer(dy, "dy");
    check_pointer(x, "x");
    check_pointer(weight, "weight");
    check_pointer(save_mean, "save_mean");
    check_pointer(save_invstd, "save_invstd");
    check_workspace(workspace, partial_bytes(*s.context, rows, c, 2));
    DLFS_CHECK(!dresidual || dresidual != dx, DLFS_ERROR_ARGUMENT, "dx and dresidual are the same buffer");
    const bool relu = activation == DLFS_ACT_RELU;
    if (relu) check_pointer(y, "y");
    float* const partial = static_cast<float*>(workspace);
    const void* const mask = relu ? y : nullptr;
    dispatch_channels(dtype, c, aligned16({dx, dresidual, dy, x, mask}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      const ChannelGrid g = reduce_grid(*s.context, rows, c / V);
      const ChannelGrid a = apply_grid(*s.context, rows, c / V);
      const auto run = [&](auto flag) {
        constexpr bool masked = decltype(flag)::value;
        using Sums = GradientSums<T, V, masked>;
        Sums sums{};
        sums.dy = static_cast<const T*>(dy);
        sums.x = static_cast<const T*>(x);
        sums.y = static_cast<const T*>(mask);
        sums.mean = save_mean;
        launch(s, g.grid(), g.block(), 0, channel_sums_kernel<2, V, Sums>, partial, rows, c, 1, sums);
        launch(s, finish_grid(c), finish_block, 0, finish_gradients_kernel, dweight, dbias, partial, save_invstd,
               static_cast<int64_t>(g.splits), c);
        launch(s, a.grid(), a.block(), 0, input_gradient_kernel<T, V, masked>, static_cast<T*>(dx),
               static_cast<T*>(dresidual), static_cast<const T*>(dy), static_cast<const T*>(x),
               static_cast<const T*>(mask), weight, save_mean, save_invstd, dweight, dbias, rows, c);
      };
      if (relu) {
        run(std::true_type{});
      } else {
        run(std::false_type{});
      }
    });
  });
}

}  // extern "C"
