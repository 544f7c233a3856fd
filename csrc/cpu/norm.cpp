// Sums per channel and batch normalization on the CPU; see norm_channels.hpp for the order of sums.
#include <cmath>

#include "cpu/norm_channels.hpp"

namespace dlfs::cpu {

namespace {

void check_rows(int64_t rows, int32_t c, int64_t least_rows) {
  DLFS_CHECK(rows >= least_rows && rows <= max_elements, DLFS_ERROR_SHAPE, "expected at least %lld rows, got %lld",
             static_cast<long long>(least_rows), static_cast<long long>(rows));
  DLFS_CHECK(c >= 1, DLFS_ERROR_SHAPE, "expected at least 1 channel, got %d", c);
  checked_product({rows, c}, "x");
}

void check_eps(double eps) {
  DLFS_CHECK(eps >= 0 && eps - eps == 0, DLFS_ERROR_ARGUMENT, "expected eps >= 0, got %g", eps);
}

// Joins the mean and the sum of squared differences of n values into those of `count` values (Chan, Golub and LeVeque
// 1979), per channel.
void join_moments(int64_t c, double* mean, double* squares, int64_t count, const double* other_mean,
                  const double* other_squares, int64_t n) {
  const double share = static_cast<double>(n) / static_cast<double>(count + n);
  const double factor = static_cast<double>(count) * share;
#pragma omp simd
  for (int64_t j = 0; j < c; ++j) {
    const double delta = other_mean[j] - mean[j];
    mean[j] += delta * share;
    squares[j] += other_squares[j] + delta * delta * factor;
  }
}

// Adds up the folds of a tile's sums: (fold, C) -> (C).
void fold_sums(const ChannelLayout& l, float* sums) {
  for (int64_t f = 1; f < l.fold; ++f) {
    for (int64_t j = 0; j < l.c; ++j) sums[j] += sums[f * l.c + j];
  }
}

constexpr int64_t moments_width = 4;  // doubles per channel of a block: its moments and a tile's

// Mean and sum of squared differences from it, per channel, in one pass over memory: each tile is read twice while it
// is in the cache. Returns (2, C): means, then sums of squares, in the workspace.
template <class T>
double* channel_moments(const ChannelLayout& l, void* workspace, const T* x) {
  for_each_tile(l, [&](int64_t block, int64_t first, int64_t last) {
    double* moments = l.block_sums(workspace, moments_width, block);
    double* tile_moments = moments + 2 * l.c;
    float* mean = l.block_tile(workspace, moments_width, block);
    float* squares = mean + l.width;
    float* rest = squares + l.width;
    const int64_t start = block * l.block_rows * l.width;
    if (first == start) std::fill_n(moments, 2 * l.c, 0.0);
    const int64_t n = (last - first) / l.c;
    const float scale = 1.0f / static_cast<float>(n);

    std::fill_n(mean, 3 * l.width, 0.0f);
    for_each_wide_row(l, first, last, [&](int64_t i, int64_t count) {
      const T* row = x + i;
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) mean[j] += to_float(row[j]);
    });
    fold_sums(l, mean);
    for (int64_t j = 0; j < l.c; ++j) mean[j] *= scale;
    for (int64_t j = l.c; j < l.width; ++j) mean[j] = mean[j - l.c];

    for_each_wide_row(l, first, last, [&](int64_t i, int64_t count) {
      const T* row = x + i;
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) {
        const float difference = to_float(row[j]) - mean[j];
        squares[j] += difference * difference;
        rest[j] += difference;
      }
    });
    fold_sums(l, squares);
    fold_sums(l, rest);
    // The tile's mean was rounded to fp32: the rest, the sum of what it left, corrects both moments.
#pragma omp simd
    for (int64_t j = 0; j < l.c; ++j) {
      const double correction = static_cast<double>(rest[j]) / static_cast<double>(n);
      tile_moments[j] = mean[j] + correction;
      tile_moments[l.c + j] = squares[j] - rest[j] * correction;
    }
    join_moments(l.c, moments, moments + l.c, (first - start) / l.c, tile_moments, tile_moments + l.c, n);
  });

  double* totals = static_cast<double*>(workspace);
  std::fill_n(totals, 2 * l.c, 0.0);
  int64_t count = 0;
  for (int64_t block = 0; block < l.blocks; ++block) {
    const double* part = l.block_sums(workspace, moments_width, block);
    const int64_t end = std::min(l.rows, (block + 1) * l.block_rows * l.fold);
    const int64_t n = end - block * l.block_rows * l.fold;
    join_moments(l.c, totals, totals + l.c, count, part, part + l.c, n);
    count += n;
  }
  return totals;
}

// y = activation((x - mean) * scale + shift + residual); mean, scale, shift (C). y may be x or residual.
template <class T, bool relu, bool residual>
void normalise(const ChannelLayout& l, T* y, const T* x, const T* added, const float* mean, const float* scale,
               const float* shift) {
  const std::vector<float> wide_mean = l.widen(mean), wide_scale = l.widen(scale), wide_shift = l.widen(shift);
  const float *m = wide_mean.data(), *a = wide_scale.data(), *b = wide_shift.data();
  map_wide_rows(l, [=](int64_t i, int64_t count) {
    const T* in = x + i;
    T* out = y + i;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      float value = (to_float(in[j]) - m[j]) * a[j] + b[j];
      if constexpr (residual) value += to_float(added[i + j]);
      if constexpr (relu) value = value < 0.0f ? 0.0f : value;
      out[j] = from_float<T>(value);
    }
  });
}

template <class T>
void normalise(const ChannelLayout& l, T* y, const T* x, const T* added, const float* mean, const float* scale,
               const float* shift, dlfs_activation activation) {
  const bool relu = activation == DLFS_ACT_RELU;
  if (relu && added) return normalise<T, true, true>(l, y, x, added, mean, scale, shift);
  if (relu) return normalise<T, true, false>(l, y, x, added, mean, scale, shift);
  if (added) return normalise<T, false, true>(l, y, x, added, mean, scale, shift);
  return normalise<T, false, false>(l, y, x, added, mean, scale, shift);
}

struct TrainStatistics {
  float *save_mean, *save_invstd, *running_mean, *running_var;
  double eps, momentum;
};

template <class T>
void batch_norm_train(const ChannelLayout& l, T* y, const T* x, const T* residual, const float* weight,
                      const float* bias, void* workspace, const TrainStatistics& s, dlfs_activation activation) {
  const double* moments = channel_moments(l, workspace, x);
  const double n = static_cast<double>(l.rows);
  std::vector<float> scale(static_cast<size_t>(l.c)), shift(scale);
  for (int64_t j = 0; j < l.c; ++j) {
    const double mean = moments[j], squares = std::max(0.0, moments[l.c + j]), variance = squares / n;
    const double invstd = 1.0 / std::sqrt(variance + s.eps);
    s.save_mean[j] = static_cast<float>(mean);
    s.save_invstd[j] = static_cast<float>(invstd);
    scale[static_cast<size_t>(j)] = static_cast<float>(invstd * weight[j]);
    // What rounding took from the mean goes into the shift.
    shift[static_cast<size_t>(j)] = static_cast<float>(bias[j] - (mean - s.save_mean[j]) * invstd * weight[j]);
    if (!s.running_mean) continue;
    const double unbiased = squares / (n - 1);
    s.running_mean[j] = static_cast<float>((1 - s.momentum) * s.running_mean[j] + s.momentum * mean);
    s.running_var[j] = static_cast<float>((1 - s.momentum) * s.running_var[j] + s.momentum * unbiased);
  }
  normalise(l, y, x, residual, s.save_mean, scale.data(), shift.data(), activation);
}

// dx = weight * invstd * (g - sum(g) / n - (x - mean) * invstd^2 * sum(g (x - mean)) / n), g = dy where y > 0 with
// ReLU.
template <class T, bool relu>
void batch_norm_backward(const ChannelLayout& l, T* dx, T* dresidual, float* dweight, float* dbias, const T* dy,
                         const T* x, const T* y, const float* weight, const float* save_mean, const float* save_invstd,
                         void* workspace) {
  const std::vector<float> wide_mean = l.widen(save_mean);
  const float* m = wide_mean.data();
  const double* totals = sum_channels<2>(l, workspace, [=, width = l.width](int64_t i, int64_t count, float* tile) {
    float* products = tile + width;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      float g = to_float(dy[i + j]);
      if constexpr (relu) g = to_float(y[i + j]) <= 0.0f ? 0.0f : g;
      tile[j] += g;
      products[j] += g * (to_float(x[i + j]) - m[j]);
    }
  });
  const size_t c = static_cast<size_t>(l.c);
  std::vector<float> scale(c), offset(c), slope(c);
  const double n = static_cast<double>(l.rows);
  for (size_t j = 0; j < c; ++j) {
    const double invstd = save_invstd[j];
    dbias[j] = static_cast<float>(totals[j]);
    dweight[j] = static_cast<float>(totals[c + j] * invstd);
    scale[j] = static_cast<float>(weight[j] * invstd);
    offset[j] = static_cast<float>(totals[j] / n);
    slope[j] = static_cast<float>(totals[c + j] * invstd * invstd / n);
  }
  const std::vector<float> wide_scale = l.widen(scale.data()), wide_offset = l.widen(offset.data()),
                           wide_slope = l.widen(slope.data());
  const float *a = wide_scale.data(), *b = wide_offset.data(), *k = wide_slope.data();
  const auto pass = [=, &l](auto with_residual) {
    map_wide_rows(l, [=](int64_t i, int64_t count) {
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) {
        float g = to_float(dy[i + j]);
        if constexpr (relu) g = to_float(y[i + j]) <= 0.0f ? 0.0f : g;
        const float gradient = a[j] * (g - b[j] - (to_float(x[i + j]) - m[j]) * k[j]);
        if constexpr (decltype(with_residual)::value) dresidual[i + j] = from_float<T>(g);
        dx[i + j] = from_float<T>(gradient);
      }
    });
  };
  dresidual ? pass(std::true_type{}) : pass(std::false_type{});
}

}  // namespace

}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_channel_sum_workspace(dlfs_context ctx, int64_t* out, int64_t rows, int32_t c,
                                                  dlfs_dtype dtype) {
  return guard("dlfs_channel_sum_workspace", [&] {
    require_context(ctx);
    check_pointer(out, "out");
    check_float_dtype(dtype);
    check_rows(rows, c, 1);
    *out = ChannelLayout(rows, c).workspace(1);
  });
}

extern "C" dlfs_status dlfs_channel_sum(dlfs_stream stream, float* out, const void* x, void* workspace, int64_t rows,
                                        int32_t c, dlfs_dtype dtype) {
  return on_stream("dlfs_channel_sum", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_rows(rows, c, 1);
    check_pointer(out, "out");
    check_pointer(x, "x");
    check_workspace(workspace, ChannelLayout(rows, c).workspace(1));
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      const T* in = static_cast<const T*>(x);
      s.enqueue([=] {
        const ChannelLayout layout(rows, c);
        const double* totals = sum_channels<1>(layout, workspace, [=](int64_t i, int64_t count, float* tile) {
#pragma omp simd
          for (int64_t j = 0; j < count; ++j) tile[j] += to_float(in[i + j]);
        });
        for (int64_t j = 0; j < c; ++j) out[j] = static_cast<float>(totals[j]);
      });
    });
  });
}

extern "C" dlfs_status dlfs_batch_norm_workspace(dlfs_context ctx, int64_t* out, int64_t rows, int32_t c,
                                                 dlfs_dtype dtype) {
  return guard("dlfs_batch_norm_workspace", [&] {
    require_context(ctx);
    check_pointer(out, "out");
    check_float_dtype(dtype);
    check_rows(rows, c, 2);
    *out = ChannelLayout(rows, c).workspace(moments_width);  // the backward pass needs less
  });
}

extern "C" dlfs_status dlfs_batch_norm_train(dlfs_stream stream, void* y, float* save_mean, float* save_invstd,
                                             float* running_mean, float* running_var, const void* x,
                                             const void* residual, const float* weight, const float* bias,
                                             void* workspace, int64_t rows, int32_t c, dlfs_dtype dtype, double eps,
                                             double momentum, dlfs_activation activation) {
  return on_stream("dlfs_batch_norm_train", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_rows(rows, c, 2);
    check_activation(activation, {DLFS_ACT_NONE, DLFS_ACT_RELU});
    check_eps(eps);
    DLFS_CHECK(momentum >= 0 && momentum <= 1, DLFS_ERROR_ARGUMENT, "expected momentum from 0 to 1, got %g", momentum);
    check_pointer(y, "y");
    check_pointer(x, "x");
    check_pointer(save_mean, "save_mean");
    check_pointer(save_invstd, "save_invstd");
    check_pointer(weight, "weight");
    check_pointer(bias, "bias");
    check_workspace(workspace, ChannelLayout(rows, c).workspace(moments_width));
    DLFS_CHECK(!running_mean == !running_var, DLFS_ERROR_ARGUMENT,
               "running_mean and running_var: expected both or neither");
    const TrainStatistics statistics{save_mean, save_invstd, running_mean, running_var, eps, momentum};
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] {
        batch_norm_train(ChannelLayout(rows, c), static_cast<T*>(y), static_cast<const T*>(x),
                         static_cast<const T*>(residual), weight, bias, workspace, statistics, activation);
      });
    });
  });
}

extern "C" dlfs_status dlfs_batch_norm_infer(dlfs_stream stream, void* y, const void* x, const void* residual,
                                             const float* weight, const float* bias, const float* mean,
                                             const float* var, int64_t rows, int32_t c, dlfs_dtype dtype, double eps,
                                             dlfs_activation activation) {
  return on_stream("dlfs_batch_norm_infer", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_rows(rows, c, 1);
    check_activation(activation, {DLFS_ACT_NONE, DLFS_ACT_RELU});
    check_eps(eps);
    check_pointer(y, "y");
    check_pointer(x, "x");
    check_pointer(weight, "weight");
    check_pointer(bias, "bias");
    check_pointer(mean, "mean");
    check_pointer(var, "var");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] {
        std::vector<float> scale(static_cast<size_t>(c));
        for (int32_t j = 0; j < c; ++j)
          scale[static_cast<size_t>(j)] = static_cast<float>(weight[j] / std::sqrt(var[j] + eps));
        normalise(ChannelLayout(rows, c), static_cast<T*>(y), static_cast<const T*>(x), static_cast<const T*>(residual),
                  mean, scale.data(), bias, activation);
      });
    });
  });
}

extern "C" dlfs_status dlfs_batch_norm_backward(dlfs_stream stream, void* dx, void* dresidual, float* dweight,
                                                float* dbias, const void* dy, const void* x, const void* y,
                                                const float* weight, const float* save_mean, const float* save_invstd,
                                                void* workspace, int64_t rows, int32_t c, dlfs_dtype dtype,
                                                dlfs_activation activation) {
  return on_stream("dlfs_batch_norm_backward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_rows(rows, c, 2);
    check_activation(activation, {DLFS_ACT_NONE, DLFS_ACT_RELU});
    check_pointer(dx, "dx");
    check_pointer(dweight, "dweight");
    check_pointer(dbias, "dbias");
    check_pointer(dy, "dy");
    check_pointer(x, "x");
    check_pointer(weight, "weight");
    check_pointer(save_mean, "save_mean");
    check_pointer(save_invstd, "save_invstd");
    check_workspace(workspace, ChannelLayout(rows, c).workspace(moments_width));
    if (activation == DLFS_ACT_RELU) check_pointer(y, "y (read by the gradient of relu)");
    DLFS_CHECK(dx != dresidual, DLFS_ERROR_ARGUMENT, "dx and dresidual are the same memory");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] {
        const ChannelLayout layout(rows, c);
        const auto run = activation == DLFS_ACT_RELU ? batch_norm_backward<T, true> : batch_norm_backward<T, false>;
        run(layout, static_cast<T*>(dx), static_cast<T*>(dresidual), dweight, dbias, static_cast<const T*>(dy),
            static_cast<const T*>(x), static_cast<const T*>(y), weight, save_mean, save_invstd, workspace);
      });
    });
  });
}

extern "C" dlfs_status dlfs_batch_norm_fold(dlfs_stream stream, void* folded_w, float* folded_bias, const float* w,
                                            const float* conv_bias, const float* weight, const float* bias,
                                            const float* mean, const float* var, int32_t k, int64_t per_channel,
                                            dlfs_dtype dtype, double eps) {
  return on_stream("dlfs_batch_norm_fold", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_range(k, 1, INT32_MAX, "k");
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
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      T* out = static_cast<T*>(folded_w);
      s.enqueue([=] {
        parallel_for(k, std::max<int64_t>(1, 16384 / per_channel), [=](int64_t begin, int64_t end) {
          for (int64_t j = begin; j < end; ++j) {
            const double factor = weight[j] / std::sqrt(var[j] + eps);
            folded_bias[j] = static_cast<float>(((conv_bias ? conv_bias[j] : 0.0) - mean[j]) * factor + bias[j]);
            const float g = static_cast<float>(factor);
            const int64_t first = j * per_channel;
#pragma omp simd
            for (int64_t i = 0; i < per_channel; ++i) out[first + i] = from_float<T>(w[first + i] * g);
          }
        });
      });
    });
  });
}
