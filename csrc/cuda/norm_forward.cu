// Batch normalization forward over (rows, C): the batch's statistics in one pass over x, then one pass that normalises,
// adds the residual and applies ReLU; inference with given statistics.
#include "common/arguments.hpp"
#include "cuda/batch_norm.cuh"

namespace dlfs {
namespace {

// ---- statistics ---------------------------------------------------------------------------------------------------

struct Moments {
  double mean, squares, rows;
};

// The moments of a channel by parts, joined: means (parts, C), sums of squared distances from them (parts, C), then how many
// rows each part has (parts). All threads of the block must call it; true in the one that has the result.
__device__ __forceinline__ bool join_parts(Moments& joined, const float* partial, int64_t parts, int32_t c,
                                           int32_t channel) {
  const bool active = channel < c;
  const float* const counts = partial + 2 * parts * c;
  // They are joined around the first one's mean, so that nothing cancels.
  const double centre = active ? static_cast<double>(partial[channel]) : 0.0;
  double sums[3];
  const bool mine = sum_parts(sums, parts, active, [&](double (&sums)[3], int64_t part) {
    const double n = counts[part];
    const double distance = static_cast<double>(partial[part * c + channel]) - centre;
    sums[0] += n * distance;
    sums[1] += static_cast<double>(partial[(parts + part) * c + channel]) + n * distance * distance;
    sums[2] += n;
  });
  const double offset = sums[0] / sums[2];
  const double m2 = fmax(sums[1] - sums[0] * offset, 0.0);
  joined.mean = centre + offset;
  joined.squares = isnan(sums[1]) ? sums[1] : m2;  // fmax would hide it
  joined.rows = sums[2];
  return mine;
}

__global__ void __launch_bounds__(1024)
    finish_statistics_kernel(float* save_mean, float* save_invstd, float* running_mean, float* running_var,
                             const float* partial, int64_t parts, int32_t c, double eps, double momentum) {
  const int32_t channel = parts_channel();
  Moments joined;
  if (!join_parts(joined, partial, parts, c, channel)) return;
  const auto [mean, squares, rows] = joined;
  save_mean[channel] = static_cast<float>(mean);
  save_invstd[channel] = static_cast<float>(1.0 / sqrt(squares / rows + eps));
  if (running_mean) {
    const double unbiased = squares / (rows - 1);
    if (!isfinite(mean) || !isfinite(unbiased)) return;
    running_mean[channel] = static_cast<float>((1.0 - momentum) * running_mean[channel] + momentum * mean);
    running_var[channel] = static_cast<float>((1.0 - momentum) * running_var[channel] + momentum * unbiased);
  }
}

// One part of them: means (C), sums of squared distances (C), rows.
__global__ void __launch_bounds__(1024)
    finish_moments_kernel(float* out, const float* partial, int64_t parts, int32_t c) {
  const int32_t channel = parts_channel();
  Moments joined;
  if (!join_parts(joined, partial, parts, c, channel)) return;
  out[channel] = static_cast<float>(joined.mean);
  out[c + channel] = static_cast<float>(joined.squares);
  if (channel == 0) out[2 * static_cast<int64_t>(c)] = static_cast<float>(joined.rows);
}

int64_t statistics_bytes(const Context& context, int64_t rows, int32_t c) {
  return partial_bytes(context, rows, c, 2) + partial_bytes(context, rows, c, 1) / c;
}

// Checks operands, and hands the moments of x by parts to finish(moments, parts): those given, or those of x.
template <class Finish>
void with_moments(const Stream& s, const void* x, const float* moments, void* workspace, int64_t rows, int32_t c,
                  int64_t parts, dlfs_dtype dtype, Finish&& finish) {
  check_float_dtype(dtype);
  check_size(rows, "rows");
  check_size(c, "c");
  checked_product({rows, c}, "x");
  check_pointer(x, "x");
  check_moments(moments, parts);
  check_workspace(workspace, statistics_bytes(*s.context, rows, c));
  if (moments) return finish(moments, parts);
  float* const partial = static_cast<float*>(workspace);
  dispatch_channels(dtype, c, aligned16({x}), [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    constexpr int V = decltype(width)::value;
    const auto kernel = statistics_kernel<T, V>;
    const ChannelGrid g = sweep_grid(*s.context, rows, c / V, kernel);
    float* const counts = partial + 2 * static_cast<int64_t>(g.splits) * c;
    launch(s, g.grid(), g.block(), 0, kernel, partial, counts, static_cast<const T*>(x), rows, c, 1);
    finish(static_cast<const float*>(partial), static_cast<int64_t>(g.splits));
  });
}

// Checks its operands and computes the mean and the inverse standard deviation of each channel, from the moments where
// they are given, else from x.
void batch_statistics(const Stream& s, float* save_mean, float* save_invstd, float* running_mean, float* running_var,
                      const void* x, const float* moments, void* workspace, int64_t rows, int32_t c, int64_t parts,
                      dlfs_dtype dtype, double eps, double momentum) {
  check_size(rows, "rows");
  DLFS_CHECK(rows > 1, DLFS_ERROR_SHAPE, "expected more than 1 value per channel when training, got 1 for %d channels",
             c);
  check_number(eps, "eps");
  check_number(momentum, "momentum");
  check_pointer(save_mean, "save_mean");
  check_pointer(save_invstd, "save_invstd");
  DLFS_CHECK(!running_mean == !running_var, DLFS_ERROR_ARGUMENT,
             "running_mean and running_var must both be NULL or neither");
  with_moments(s, x, moments, workspace, rows, c, parts, dtype, [&](const float* from, int64_t count) {
    launch(s, parts_grid(c), parts_block(), 0, finish_statistics_kernel, save_mean, save_invstd, running_mean,
           running_var, from, count, c, eps, momentum);
  });
}

// ---- normalisation ------------------------------------------------------------------------------------------------

template <class T>
struct Normalization {
  T* y;
  uint8_t* mask;  // nullable
  const T* x;
  const T* residual;
  const float *weight, *bias, *mean;
  const float* spread;  // the variance where spread_is_variance, else the inverse standard deviation
  int64_t rows;
  int32_t c;
  float eps;
  bool spread_is_variance;
};

// y = activation((x - mean) * invstd * weight + bias + residual). Rows are taken in the opposite order of
// statistics_kernel: what that read last is still in the L2 cache.
template <class T, int V, bool relu, bool has_residual>
__global__ void __launch_bounds__(channel_threads, 2) normalize_kernel(Normalization<T> o) {
  const int32_t channel = static_cast<int32_t>((static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V);
  if (channel >= o.c) return;
  float centre[V], factor[V], shift[V], gain[V];
  load_channels(centre, o.mean + channel);
  load_channels(factor, o.spread + channel);
  load_channels(gain, o.weight + channel);
  load_channels(shift, o.bias + channel);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    factor[j] = (o.spread_is_variance ? 1.0f / sqrtf(factor[j] + o.eps) : factor[j]) * gain[j];
  }
  struct Fetched {
    Pack<T, V> x, residual;
  };
  for_row_batches<true, 4>(
      o.rows,
      [&](int64_t row) {
        const int64_t at = row * o.c + channel;
        Fetched fetched;
        fetched.x = load_pack_once<V>(o.x + at);
        if constexpr (has_residual) fetched.residual = load_pack_once<V>(o.residual + at);
        return fetched;
      },
      [&](int64_t row, const Fetched& fetched) {
        float value[V];
        unpack(value, fetched.x);
#pragma unroll
        for (int j = 0; j < V; ++j) value[j] = normalized(value[j], centre[j], factor[j], shift[j]);
        if constexpr (has_residual) {
          float other[V];
          unpack(other, fetched.residual);
#pragma unroll
          for (int j = 0; j < V; ++j) value[j] += other[j];
        }
        if constexpr (relu) store_relu_mask<T>(o.mask, row, channel, o.c, value);
        store(o.y + row * o.c + channel, value);
      });
}

void normalize(const Stream& s, void* y, uint8_t* mask, const void* x, const void* residual, const float* weight,
               const float* bias, const float* mean, const float* spread, int64_t rows, int32_t c, dlfs_dtype dtype,
               double eps, bool spread_is_variance, dlfs_activation activation) {
  dispatch_channels(dtype, c, aligned16({y, x, residual}), [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    constexpr int V = decltype(width)::value;
    const Normalization<T> operands{static_cast<T*>(y),
                                    mask,
                                    static_cast<const T*>(x),
                                    static_cast<const T*>(residual),
                                    weight,
                                    bias,
                                    mean,
                                    spread,
                                    rows,
                                    c,
                                    static_cast<float>(eps),
                                    spread_is_variance};
    const auto run = [&](auto kernel) {
      const ChannelGrid g = sweep_grid(*s.context, rows, c / V, kernel);
      launch(s, g.grid(), g.block(), 0, kernel, operands);
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
    *out = statistics_bytes(context, rows, c);
  });
}

dlfs_status dlfs_batch_norm_train(dlfs_stream stream, void* y, uint8_t* mask, float* save_mean, float* save_invstd,
                                  float* running_mean, float* running_var, const void* x, const void* residual,
                                  const float* weight, const float* bias, const float* moments, void* workspace,
                                  int64_t rows, int32_t c, int64_t parts, dlfs_dtype dtype, double eps,
                                  double momentum, dlfs_activation activation) {
  return stream_call("dlfs_batch_norm_train", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_activation(activation, {DLFS_ACT_NONE, DLFS_ACT_RELU});
    check_pointer(y, "y");
    check_pointer(weight, "weight");
    check_pointer(bias, "bias");
    check_mask(mask, activation);
    batch_statistics(s, save_mean, save_invstd, running_mean, running_var, x, moments, workspace, rows, c, parts, dtype,
                     eps, momentum);
    normalize(s, y, mask, x, residual, weight, bias, save_mean, save_invstd, rows, c, dtype, 0.0, false, activation);
  });
}

dlfs_status dlfs_batch_norm_statistics(dlfs_stream stream, float* save_mean, float* save_invstd, float* running_mean,
                                       float* running_var, const void* x, const float* moments, void* workspace,
                                       int64_t rows, int32_t c, int64_t parts, dlfs_dtype dtype, double eps,
                                       double momentum) {
  return stream_call("dlfs_batch_norm_statistics", stream, [&](Stream& s) {
    batch_statistics(s, save_mean, save_invstd, running_mean, running_var, x, moments, workspace, rows, c, parts, dtype,
                     eps, momentum);
  });
}

dlfs_status dlfs_batch_norm_moments(dlfs_stream stream, float* out, const void* x, const float* moments, void* workspace,
                                    int64_t rows, int32_t c, int64_t parts, dlfs_dtype dtype) {
  return stream_call("dlfs_batch_norm_moments", stream, [&](Stream& s) {
    check_pointer(out, "out");
    with_moments(s, x, moments, workspace, rows, c, parts, dtype, [&](const float* from, int64_t count) {
      launch(s, parts_grid(c), parts_block(), 0, finish_moments_kernel, out, from, count, c);
    });
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
    normalize(s, y, nullptr, x, residual, weight, bias, mean, var, rows, c, dtype, eps, true, activation);
  });
}

}  // extern "C"
