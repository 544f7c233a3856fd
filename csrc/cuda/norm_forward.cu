// Batch normalization forward over (rows, C): the batch's statistics in one pass over x, then one pass that normalises,
// adds the residual and applies ReLU; inference with given statistics.
#include "common/arguments.hpp"
#include "cuda/norm.cuh"

namespace dlfs {
namespace {

// ---- statistics ---------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(1024)
    finish_statistics_kernel(float* save_mean, float* save_invstd, float* running_mean, float* running_var,
                             const float* partial, int64_t splits, int64_t rows, int32_t ty, int32_t c, double eps,
                             double momentum) {
  const int32_t channel = static_cast<int32_t>(blockIdx.x * 32 + threadIdx.x);
  const bool active = channel < c;
  const auto mean_of = [&](int64_t split) { return static_cast<double>(partial[split * c + channel]); };
  const auto rows_of = [&](int64_t split) { return static_cast<double>(split_rows(rows, split, splits, ty)); };
  const double mean = sum_splits(splits, active, [&](int64_t split) { return mean_of(split) * rows_of(split); }) /
                      static_cast<double>(rows);
  const double m2 = sum_splits(splits, active, [&](int64_t split) {
    const double delta = mean_of(split) - mean;
    return static_cast<double>(partial[(splits + split) * c + channel]) + delta * delta * rows_of(split);
  });
  if (!active || threadIdx.y != 0) return;
  save_mean[channel] = static_cast<float>(mean);
  save_invstd[channel] = static_cast<float>(1.0 / sqrt(m2 / static_cast<double>(rows) + eps));
  if (running_mean) {
    const double unbiased = m2 / static_cast<double>(rows - 1);
    running_mean[channel] = static_cast<float>((1.0 - momentum) * running_mean[channel] + momentum * mean);
    running_var[channel] = static_cast<float>((1.0 - momentum) * running_var[channel] + momentum * unbiased);
  }
}

// ---- normalisation ------------------------------------------------------------------------------------------------

// y = activation((x - mean) * invstd * weight + bias + residual). spread: the variance where spread_is_variance, else
// the inverse standard deviation.
template <class T, int V, bool relu, bool has_residual>
__global__ void __launch_bounds__(channel_threads)
    normalize_kernel(T* y, const T* x, const T* residual, const float* weight, const float* bias, const float* mean,
                     const float* spread, int64_t rows, int32_t c, float eps, bool spread_is_variance) {
  const int32_t channel = static_cast<int32_t>((static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V);
  if (channel >= c) return;
  float centre[V], factor[V], shift[V], gain[V];
  load_channels(centre, mean + channel);
  load_channels(factor, spread + channel);
  load_channels(gain, weight + channel);
  load_channels(shift, bias + channel);
#pragma unroll
  for (int j = 0; j < V; ++j) factor[j] = (spread_is_variance ? 1.0f / sqrtf(factor[j] + eps) : factor[j]) * gain[j];
  for_my_rows(rows, [&](int64_t row) {
    const int64_t at = row * c + channel;
    float value[V];
    load(value, x + at);
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] = (value[j] - centre[j]) * factor[j] + shift[j];
    if constexpr (has_residual) {
      float other[V];
      load(other, residual + at);
#pragma unroll
      for (int j = 0; j < V; ++j) value[j] += other[j];
    }
    if constexpr (relu) {
#pragma unroll
      for (int j = 0; j < V; ++j) value[j] = activate<DLFS_ACT_RELU>(value[j]);
    }
    store(y + at, value);
  });
}

void normalize(const Stream& s, void* y, const void* x, const void* residual, const float* weight, const float* bias,
               const float* mean, const float* spread, int64_t rows, int32_t c, dlfs_dtype dtype, double eps,
               bool spread_is_variance, dlfs_activation activation) {
  dispatch_channels(dtype, c, aligned16({y, x, residual}), [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    constexpr int V = decltype(width)::value;
    const ChannelGrid g = apply_grid(*s.context, rows, c / V);
    const auto run = [&](auto kernel) {
      launch(s, g.grid(), g.block(), 0, kernel, static_cast<T*>(y), static_cast<const T*>(x),
             static_cast<const T*>(residual), weight, bias, mean, spread, rows, c, static_cast<float>(eps),
             spread_is_variance);
    };
    const bool relu = activation == DLFS_ACT_RELU;
    if (residual) {
      relu ? run(normalize_kernel<T, V, true, true>) : run(normalize_kernel<T, V, false, true>);
    } else {
      relu ? run(normalize_kernel<T, V, true, false>) : run(normalize_kernel<T, V, false, false>);
    }
  });
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_batch_norm_workspace(dlfs_context ctx, int64_t* out, int64_t rows, int32_t c, dlfs_dtype dtype) {
  return context_call("dlfs_batch_norm_workspace", ctx, [&](Context& context) {
    check_pointer(out, "out");
    check_size(rows, "rows");
    check_size(c, "c");
    check_float_dtype(dtype);
    *out = partial_bytes(context, rows, c, 2);
  });
}

dlfs_status dlfs_batch_norm_train(dlfs_stream stream, void* y, float* save_mean, float* save_invstd,
                                  float* running_mean, float* running_var, const void* x, const void* residual,
                                  const float* weight, const float* bias, void* workspace, int64_t rows, int32_t c,
                                  dlfs_dtype dtype, double eps, double momentum, dlfs_activation activation) {
  return stream_call("dlfs_batch_norm_train", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_activation(activation, {DLFS_ACT_NONE, DLFS_ACT_RELU});
    check_size(rows, "rows");
    check_size(c, "c");
    DLFS_CHECK(rows > 1, DLFS_ERROR_SHAPE,
               "expected more than 1 value per channel when training, got 1 for %d channels", c);
    checked_product({rows, c}, "x");
    check_number(eps, "eps");
    check_number(momentum, "momentum");
    check_pointer(y, "y");
    check_pointer(save_mean, "save_mean");
    check_pointer(save_invstd, "save_invstd");
    DLFS_CHECK(!running_mean == !running_var, DLFS_ERROR_ARGUMENT,
               "running_mean and running_var must both be NULL or neither");
    check_pointer(x, "x");
    check_pointer(weight, "weight");
    check_pointer(bias, "bias");
    check_workspace(workspace, partial_bytes(*s.context, rows, c, 2));
    float* const partial = static_cast<float*>(workspace);
    dispatch_channels(dtype, c, aligned16({x}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      const ChannelGrid g = reduce_grid(*s.context, rows, c / V);
      launch(s, g.grid(), g.block(), 0, statistics_kernel<T, V>, partial, static_cast<const T*>(x), rows, c, 1);
      launch(s, finish_grid(c), finish_block, 0, finish_statistics_kernel, save_mean, save_invstd, running_mean,
             running_var, partial, static_cast<int64_t>(g.splits), rows, g.ty, c, eps, momentum);
    });
    normalize(s, y, x, residual, weight, bias, save_mean, save_invstd, rows, c, dtype, 0.0, false, activation);
  });
}

dlfs_status dlfs_batch_norm_infer(dlfs_stream stream, void* y, const void* x, const void* residual, const float* weight,
                                  const float* bias, const float* mean, const float* var, int64_t rows, int32_t c,
                                  dlfs_dtype dtype, double eps, dlfs_activation activation) {
  return stream_call("dlfs_batch_norm_infer", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_activation(activation, {DLFS_ACT_NONE, DLFS_ACT_RELU});
    check_size(rows, "rows");
    check_size(c, "c");
    checked_product({rows, c}, "x");
    check_number(eps, "eps");
    check_pointer(y, "y");
    check_pointer(x, "x");
    check_pointer(weight, "weight");
    check_pointer(bias, "bias");
    check_pointer(mean, "mean");
    check_pointer(var, "var");
    normalize(s, y, x, residual, weight, bias, mean, var, rows, c, dtype, eps, true, activation);
  });
}

}  // extern "C"
