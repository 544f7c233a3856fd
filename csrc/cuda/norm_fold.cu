// Given statistics of a batch normalization folded into the weights of the convolution before it, and the gradient of
// these weights. w (K, per_channel), one row per output channel.
#include "common/arguments.hpp"
#include "cuda/numeric.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

__device__ __forceinline__ float gain_of(const float* weight, const float* var, int32_t row, float eps) {
  return weight[row] / sqrtf(var[row] + eps);
}

template <class T, int V>
__global__ void __launch_bounds__(256)
    fold_kernel(T* folded_w, float* folded_bias, const float* w, const float* conv_bias, const float* weight,
                const float* bias, const float* mean, const float* var, int32_t k, int64_t per_channel, float eps) {
  for_rows(k, per_channel / V, [&](int32_t row, int64_t vector) {
    const float gain = gain_of(weight, var, row, eps);
    const int64_t at = row * per_channel + vector * V;
    float value[V];
    load(value, w + at);
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] *= gain;
    store(folded_w + at, value);
    if (vector == 0) folded_bias[row] = ((conv_bias ? conv_bias[row] : 0.0f) - mean[row]) * gain + bias[row];
  });
}

template <int V>
__global__ void __launch_bounds__(256) fold_backward_kernel(float* dw, const float* dfolded, const float* weight,
                                                            const float* var, int32_t k, int64_t per_channel,
                                                            float eps) {
  for_rows(k, per_channel / V, [&](int32_t row, int64_t vector) {
    const float gain = gain_of(weight, var, row, eps);
    const int64_t at = row * per_channel + vector * V;
    float value[V];
    load(value, dfolded + at);
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] *= gain;
    store(dw + at, value);
  });
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_batch_norm_fold(dlfs_stream stream, void* folded_w, float* folded_bias, const float* w,
                                 const float* conv_bias, const float* weight, const float* bias, const float* mean,
                                 const float* var, int32_t k, int64_t per_channel, dlfs_dtype dtype, double eps) {
  return stream_call("dlfs_batch_norm_fold", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_size(k, "k");
    check_size(per_channel, "per_channel");
    checked_product({k, per_channel}, "w");
    check_eps(eps);
    check_pointer(folded_w, "folded_w");
    check_pointer(folded_bias, "folded_bias");
    check_pointer(w, "w");
    check_pointer(weight, "weight");
    check_pointer(bias, "bias");
    check_pointer(mean, "mean");
    check_pointer(var, "var");
    dispatch_channels(dtype, per_channel, aligned16({folded_w, w}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      const RowGrid grid = row_grid(*s.context, k, per_channel / V);
      launch(s, grid.grid, grid.block, 0, fold_kernel<T, V>, static_cast<T*>(folded_w), folded_bias, w, conv_bias,
             weight, bias, mean, var, k, per_channel, static_cast<float>(eps));
    });
  });
}

dlfs_status dlfs_batch_norm_fold_backward(dlfs_stream stream, float* dw, const float* dfolded, const float* weight,
                                          const float* var, int32_t k, int64_t per_channel, double eps) {
  return stream_call("dlfs_batch_norm_fold_backward", stream, [&](Stream& s) {
    check_size(k, "k");
    check_size(per_channel, "per_channel");
    checked_product({k, per_channel}, "w");
    check_eps(eps);
    check_pointer(dw, "dw");
    check_pointer(dfolded, "dfolded");
    check_pointer(weight, "weight");
    check_pointer(var, "var");
    const auto run = [&](auto width) {
      constexpr int V = decltype(width)::value;
      const RowGrid grid = row_grid(*s.context, k, per_channel / V);
      launch(s, grid.grid, grid.block, 0, fold_backward_kernel<V>, dw, dfolded, weight, var, k, per_channel,
             static_cast<float>(eps));
    };
    if (per_channel % 4 == 0 && aligned16({dw, dfolded})) {
      run(Width<4>{});
    } else {
      run(Width<1>{});
    }
  });
}

}  // extern "C"
