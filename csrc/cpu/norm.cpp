// Sums per channel and batch normalization on the CPU; see norm_channels.hpp for the order of sums.
#include <cmath>
#include <type_traits>

#include "cpu/norm_channels.hpp"

namespace dlfs::cpu {

namespace {

void check_rows(int64_t rows, int32_t c, int64_t least_rows) {
  DLFS_CHECK(rows >= least_rows && rows <= max_elements, DLFS_ERROR_SHAPE, "expected at least %lld rows, got %lld",
             static_cast<long long>(least_rows), static_cast<long long>(rows));
  DLFS_CHECK(c >= 1, DLFS_ERROR_SHAPE, "expected at least 1 channel, got %d", c);
  checked_product({rows, c}, "x");
}

struct TrainStatistics {
  float *save_mean, *save_invstd, *running_mean, *running_var;
  double eps, momentum;
};

// Statistics of x by groups of rows: means (parts, C), sums of squared distances from them (parts, C), rows (parts).
struct GivenMoments {
  const float* values;  // nullable
  int64_t parts;

  // How many rows there are: x's, or those of several processes.
  double rows(const ChannelLayout& l) const {
    if (!values) return static_cast<double>(l.rows);
    double sum = 0;
    for (int64_t i = 0; i < parts; ++i) sum += values[2 * parts * l.c + i];
    return sum;
  }

  // The moments of all rows, (2, C), in the workspace.
  double* join(const ChannelLayout& l, void* workspace) const {
    double* totals = static_cast<double*>(workspace);
    std::fill_n(totals, 2 * l.c, 0.0);
    std::vector<double> part(static_cast<size_t>(2 * l.c));
    int64_t count = 0;
    for (int64_t i = 0; i < parts; ++i) {
      const float *mean = values + i * l.c, *squares = mean + parts * l.c;
      std::copy_n(mean, l.c, part.begin());
      std::copy_n(squares, l.c, part.begin() + l.c);
      const int64_t n = static_cast<int64_t>(values[2 * parts * l.c + i]);
      join_moments(l.c, totals, totals + l.c, count, part.data(), part.data() + l.c, n);
      count += n;
    }
    return totals;
  }
};

template <class T>
void batch_statistics(const ChannelLayout& l, const T* x, const GivenMoments& given, void* workspace,
                      const TrainStatistics& s) {
  const double* moments = given.values ? given.join(l, workspace) : channel_moments(l, workspace, x);
  const double n = given.rows(l);
  for (int64_t j = 0; j < l.c; ++j) {
    const double mean = moments[j], squares = std::max(0.0, moments[l.c + j]), variance = squares / n;
    s.save_mean[j] = static_cast<float>(mean);
    s.save_invstd[j] = static_cast<float>(1.0 / std::sqrt(variance + s.eps));
    if (!s.running_mean) continue;
    const double unbiased = squares / (n - 1);
    if (mean - mean != 0 || unbiased - unbiased != 0) continue;
    s.running_mean[j] = static_cast<float>((1 - s.momentum) * s.running_mean[j] + s.momentum * mean);
    s.running_var[j] = static_cast<float>((1 - s.momentum) * s.running_var[j] + s.momentum * unbiased);
  }
}

template <class T>
void batch_norm_train(const ChannelLayout& l, T* y, uint8_t* mask, const T* x, const T* residual, const float* weight,
                      const float* bias, const TrainStatistics& s, dlfs_activation activation) {
  std::vector<float> scale(static_cast<size_t>(l.c));
  for (int64_t j = 0; j < l.c; ++j) scale[static_cast<size_t>(j)] = s.save_invstd[j] * weight[j];
  normalise(l, y, x, residual, s.save_mean, scale.data(), bias, activation);
  if (mask) write_mask(l, mask, y);
}

// What a call for statistics may be given, on any thread.
void check_statistics(int64_t rows, int32_t c, int64_t parts, dlfs_dtype dtype, const void* x, const float* moments,
                      const void* workspace, const TrainStatistics& s) {
  check_float_dtype(dtype);
  check_rows(rows, c, 2);
  check_eps(s.eps);
  DLFS_CHECK(s.momentum >= 0 && s.momentum <= 1, DLFS_ERROR_ARGUMENT, "expected momentum from 0 to 1, got %g",
             s.momentum);
  check_pointer(x, "x");
  check_pointer(s.save_mean, "save_mean");
  check_pointer(s.save_invstd, "save_invstd");
  check_moments(moments, parts);
  check_workspace(workspace, ChannelLayout(rows, c).workspace(moments_width));
  DLFS_CHECK(!s.running_mean == !s.running_var, DLFS_ERROR_ARGUMENT,
             "running_mean and running_var: expected both or neither");
}

// The backward pass: g = dy, or, with ReLU, dy where forward's result was positive.
template <class T, bool relu>
struct Backward {
  const ChannelLayout& l;
  const T *dy, *x;
  const float* invstd;
  std::vector<float> mean, scale, bias;  // of a wide row; scale = weight * invstd

  Backward(const ChannelLayout& l, const T* dy, const T* x, const float* weight, const float* bias, const float* save_mean,
           const float* save_invstd)
      : l(l), dy(dy), x(x), invstd(save_invstd), mean(l.widen(save_mean)) {
    std::vector<float> factor(static_cast<size_t>(l.c));
    for (size_t j = 0; j < factor.size(); ++j) factor[j] = save_invstd[j] * weight[j];
    scale = l.widen(factor.data());
    if (relu) this->bias = l.widen(bias);
  }

  auto gradient() const {
    constexpr float zero = largest_zero(std::is_same_v<T, Bf16> ? DLFS_BF16 : DLFS_F32);
    return [dy = dy, x = x, m = mean.data(), a = scale.data(), w = bias.data()](int64_t i, int64_t j) {
      const float g = to_float(dy[i + j]);
      if constexpr (relu) return affine(to_float(x[i + j]), m[j], a[j], w[j]) <= zero ? 0.0f : g;
      return g;
    };
  }

  // Sums of g, then of g (x - mean), per channel, in the workspace.
  const double* sums(void* workspace) const {
    return sum_channels<2>(l, workspace,
                           [gradient_at = gradient(), x = x, m = mean.data(), width = l.width](int64_t i, int64_t count,
                                                                                              float* tile) {
                             float* products = tile + width;
#pragma omp simd
                             for (int64_t j = 0; j < count; ++j) {
                               const float g = gradient_at(i, j);
                               tile[j] += g;
                               products[j] += g * (to_float(x[i + j]) - m[j]);
                             }
                           });
  }

  void weights(const double* totals, float* dweight, float* dbias) const {
    for (int64_t j = 0; j < l.c; ++j) {
      dbias[j] = static_cast<float>(totals[j]);
      dweight[j] = static_cast<float>(totals[l.c + j] * invstd[j]);
    }
  }

  // dx = weight * invstd * (g - offset - (x - mean) * slope); dresidual, nullable, receives g.
  void input(T* dx, T* dresidual, const float* offset, const float* slope) const {
    const std::vector<float> wide_offset = l.widen(offset), wide_slope = l.widen(slope);
    const auto pass = [&](auto with_residual) {
      map_wide_rows(l, [=, gradient_at = gradient(), x = x, m = mean.data(), a = scale.data(), b = wide_offset.data(),
                        k = wide_slope.data()](int64_t i, int64_t count) {
#pragma omp simd
        for (int64_t j = 0; j < count; ++j) {
          const float g = gradient_at(i, j);
          const float gradient = a[j] * (g - b[j] - (to_float(x[i + j]) - m[j]) * k[j]);
          if constexpr (decltype(with_residual)::value) dresidual[i + j] = from_float<T>(g);
          dx[i + j] = from_float<T>(gradient);
        }
      });
    };
    dresidual ? pass(std::true_type{}) : pass(std::false_type{});
  }
};

// offset = sum(g) / n, slope = invstd^2 * sum(g (x - mean)) / n.
template <class T, bool relu>
void batch_norm_backward(const ChannelLayout& l, T* dx, T* dresidual, float* dweight, float* dbias, const T* dy,
                         const T* x, const float* weight, const float* bias, const float* save_mean,
                         const float* save_invstd, void* workspace) {
  const Backward<T, relu> pass(l, dy, x, weight, bias, save_mean, save_invstd);
  const double* totals = pass.sums(workspace);
  pass.weights(totals, dweight, dbias);
  const size_t c = static_cast<size_t>(l.c);
  const double n = static_cast<double>(l.rows);
  std::vector<float> offset(c), slope(c);
  for (size_t j = 0; j < c; ++j) {
    const double invstd = save_invstd[j];
    offset[j] = static_cast<float>(totals[j] / n);
    slope[j] = static_cast<float>(totals[c + j] * invstd * invstd / n);
  }
  pass.input(dx, dresidual, offset.data(), slope.data());
}

// What the backward pass and both of its halves are given.
void check_backward(int64_t rows, int32_t c, dlfs_dtype dtype, const void* dy, const void* x, const uint8_t* mask,
                    const float* weight, const float* bias, const float* save_mean, const float* save_invstd,
                    const float* dweight, const float* dbias, dlfs_activation activation) {
  check_float_dtype(dtype);
  check_rows(rows, c, 2);
  check_activation(activation, {DLFS_ACT_NONE, DLFS_ACT_RELU});
  check_pointer(dweight, "dweight");
  check_pointer(dbias, "dbias");
  check_pointer(dy, "dy");
  check_pointer(x, "x");
  check_pointer(weight, "weight");
  check_pointer(save_mean, "save_mean");
  check_pointer(save_invstd, "save_invstd");
  if (activation == DLFS_ACT_RELU && !mask) check_pointer(bias, "bias (read by the gradient of relu without a mask)");
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

extern "C" dlfs_status dlfs_add_bias(dlfs_stream stream, void* y, const void* x, const float* bias, int64_t rows,
                                     int32_t c, dlfs_dtype dtype, dlfs_activation activation) {
  return on_stream("dlfs_add_bias", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_activation(activation);
    check_rows(rows, c, 1);
    check_pointer(y, "y");
    check_pointer(x, "x");
    check_pointer(bias, "bias");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      T* out = static_cast<T*>(y);
      const T* in = static_cast<const T*>(x);
      s.enqueue([=] {
        const ChannelLayout layout(rows, c);
        const std::vector<float> wide_bias = layout.widen(bias);
        const float* b = wide_bias.data();
        dispatch_activation(activation, [&](auto act) {
          map_wide_rows(layout, [=](int64_t i, int64_t count) {
#pragma omp simd
            for (int64_t j = 0; j < count; ++j)
              store(out + i + j, activate<decltype(act)::value>(load(in + i + j) + b[j]));
          });
        });
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

extern "C" dlfs_status dlfs_batch_norm_statistics(dlfs_stream stream, float* save_mean, float* save_invstd,
                                                  float* running_mean, float* running_var, const void* x,
                                                  const float* moments, void* workspace, int64_t rows, int32_t c,
                                                  int64_t parts, dlfs_dtype dtype, double eps, double momentum) {
  return on_stream("dlfs_batch_norm_statistics", stream, [&](Stream& s) {
    const TrainStatistics statistics{save_mean, save_invstd, running_mean, running_var, eps, momentum};
    check_statistics(rows, c, parts, dtype, x, moments, workspace, statistics);
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] {
        batch_statistics(ChannelLayout(rows, c), static_cast<const T*>(x), GivenMoments{moments, parts}, workspace,
                         statistics);
      });
    });
  });
}

extern "C" dlfs_status dlfs_batch_norm_train(dlfs_stream stream, void* y, uint8_t* mask, float* save_mean,
                                             float* save_invstd, float* running_mean, float* running_var, const void* x,
                                             const void* residual, const float* weight, const float* bias,
                                             const float* moments, void* workspace, int64_t rows, int32_t c,
                                             int64_t parts, dlfs_dtype dtype, double eps, double momentum,
                                             dlfs_activation activation) {
  return on_stream("dlfs_batch_norm_train", stream, [&](Stream& s) {
    const TrainStatistics statistics{save_mean, save_invstd, running_mean, running_var, eps, momentum};
    check_statistics(rows, c, parts, dtype, x, moments, workspace, statistics);
    check_activation(activation, {DLFS_ACT_NONE, DLFS_ACT_RELU});
    check_pointer(y, "y");
    check_pointer(weight, "weight");
    check_pointer(bias, "bias");
    check_mask(mask, activation);
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] {
        const ChannelLayout layout(rows, c);
        const T* const in = static_cast<const T*>(x);
        batch_statistics(layout, in, GivenMoments{moments, parts}, workspace, statistics);
        batch_norm_train(layout, static_cast<T*>(y), mask, in, static_cast<const T*>(residual), weight, bias,
                         statistics, activation);
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

extern "C" dlfs_status dlfs_batch_norm_moments(dlfs_stream stream, float* out, const void* x, const float* moments,
                                               void* workspace, int64_t rows, int32_t c, int64_t parts,
                                               dlfs_dtype dtype) {
  return on_stream("dlfs_batch_norm_moments", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_rows(rows, c, 1);
    check_pointer(out, "out");
    check_pointer(x, "x");
    check_moments(moments, parts);
    check_workspace(workspace, ChannelLayout(rows, c).workspace(moments_width));
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] {
        const ChannelLayout layout(rows, c);
        const GivenMoments given{moments, parts};
        const double* joined =
            moments ? given.join(layout, workspace) : channel_moments(layout, workspace, static_cast<const T*>(x));
        for (int64_t j = 0; j < 2 * layout.c; ++j) out[j] = static_cast<float>(joined[j]);
        out[2 * layout.c] = static_cast<float>(given.rows(layout));
      });
    });
  });
}

extern "C" dlfs_status dlfs_batch_norm_backward_sums(dlfs_stream stream, void* dresidual, float* dweight, float* dbias,
                                                     const void* dy, const void* x, const uint8_t* mask,
                                                     const float* weight, const float* bias, const float* save_mean,
                                                     const float* save_invstd, void* workspace, int64_t rows, int32_t c,
                                                     dlfs_dtype dtype, dlfs_activation activation) {
  return on_stream("dlfs_batch_norm_backward_sums", stream, [&](Stream& s) {
    check_backward(rows, c, dtype, dy, x, mask, weight, bias, save_mean, save_invstd, dweight, dbias, activation);
    check_workspace(workspace, ChannelLayout(rows, c).workspace(moments_width));
    const bool relu = activation == DLFS_ACT_RELU;
    DLFS_CHECK(!(relu && mask) || dresidual, DLFS_ERROR_ARGUMENT, "expected dresidual where there is a mask");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] {
        const ChannelLayout layout(rows, c);
        T* const residual = static_cast<T*>(dresidual);
        const T *in = static_cast<const T*>(x), *upstream = static_cast<const T*>(dy);
        if (relu && mask) {
          apply_mask(layout, residual, upstream, mask);
          upstream = residual;
        }
        const auto run = [&](const auto& pass) {
          pass.weights(pass.sums(workspace), dweight, dbias);
          if (!residual || upstream == residual) return;
          map_wide_rows(layout, [=, gradient_at = pass.gradient()](int64_t i, int64_t count) {
            for (int64_t j = 0; j < count; ++j) residual[i + j] = from_float<T>(gradient_at(i, j));
          });
        };
        if (relu && !mask) {
          run(Backward<T, true>(layout, upstream, in, weight, bias, save_mean, save_invstd));
        } else {
          run(Backward<T, false>(layout, upstream, in, weight, bias, save_mean, save_invstd));
        }
      });
    });
  });
}

extern "C" dlfs_status dlfs_batch_norm_backward_input(dlfs_stream stream, void* dx, const void* dy, const void* x,
                                                      const uint8_t* mask, const float* weight, const float* bias,
                                                      const float* save_mean, const float* save_invstd,
                                                      const float* dweight, const float* dbias, int64_t rows, int32_t c,
                                                      dlfs_dtype dtype, dlfs_activation activation) {
  return on_stream("dlfs_batch_norm_backward_input", stream, [&](Stream& s) {
    check_backward(rows, c, dtype, dy, x, mask, weight, bias, save_mean, save_invstd, dweight, dbias, activation);
    check_pointer(dx, "dx");
    const bool relu = activation == DLFS_ACT_RELU;
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] {
        const ChannelLayout layout(rows, c);
        T* const out = static_cast<T*>(dx);
        const T *in = static_cast<const T*>(x), *upstream = static_cast<const T*>(dy);
        if (relu && mask) {
          apply_mask(layout, out, upstream, mask);  // element by element, so that dx may be dy
          upstream = out;
        }
        const double n = static_cast<double>(rows);
        std::vector<float> offset(static_cast<size_t>(c)), slope(static_cast<size_t>(c));
        for (int32_t j = 0; j < c; ++j) {
          offset[static_cast<size_t>(j)] = static_cast<float>(dbias[j] / n);
          slope[static_cast<size_t>(j)] = static_cast<float>(static_cast<double>(dweight[j]) * save_invstd[j] / n);
        }
        const auto run = [&](const auto& pass) { pass.input(out, nullptr, offset.data(), slope.data()); };
        if (relu && !mask) {
          run(Backward<T, true>(layout, upstream, in, weight, bias, save_mean, save_invstd));
        } else {
          run(Backward<T, false>(layout, upstream, in, weight, bias, save_mean, save_invstd));
        }
      });
    });
  });
}

extern "C" dlfs_status dlfs_batch_norm_backward(dlfs_stream stream, void* dx, void* dresidual, float* dweight,
                                                float* dbias, const void* dy, const void* x, const uint8_t* mask,
                                                const float* weight, const float* bias, const float* save_mean,
                                                const float* save_invstd, void* workspace, int64_t rows, int32_t c,
                                                dlfs_dtype dtype, dlfs_activation activation) {
  return on_stream("dlfs_batch_norm_backward", stream, [&](Stream& s) {
    check_backward(rows, c, dtype, dy, x, mask, weight, bias, save_mean, save_invstd, dweight, dbias, activation);
    check_pointer(dx, "dx");
    check_workspace(workspace, ChannelLayout(rows, c).workspace(moments_width));
    const bool relu = activation == DLFS_ACT_RELU;
    DLFS_CHECK(dx != dresidual, DLFS_ERROR_ARGUMENT, "dx and dresidual are the same memory");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] {
        const ChannelLayout layout(rows, c);
        T* const out = static_cast<T*>(dx);
        T* residual = static_cast<T*>(dresidual);
        const T* upstream = static_cast<const T*>(dy);
        if (relu && mask) {
          // The masked dy takes the residual's memory, or dx's, which is written element by element after it was read.
          T* const masked = residual ? residual : out;
          apply_mask(layout, masked, upstream, mask);
          upstream = masked;
          residual = nullptr;
        }
        const auto run = relu && !mask ? batch_norm_backward<T, true> : batch_norm_backward<T, false>;
        run(layout, out, residual, dweight, dbias, upstream, static_cast<const T*>(x), weight, bias, save_mean,
            save_invstd, workspace);
      });
    });
  });
}
