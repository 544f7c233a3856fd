// Batch normalization over rows (N H W) of NHWC tensors, and sums per channel. Rows are cut into a fixed number of parts, each
// summed by one thread with its channels in vector registers; the parts' results are combined in order, in fp64, so that the
// result depends neither on timing nor on the number of threads.
#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {
namespace {

constexpr int64_t kMaxParts = 64;
constexpr int64_t kRowsPerPart = 256;  // an fp32 sum over so few rows keeps its digits

// Parts of the rows: the same for any number of threads.
inline int64_t part_count(int64_t rows) { return std::max<int64_t>(1, std::min(kMaxParts, rows / kRowsPerPart)); }
inline int64_t part_begin(int64_t rows, int64_t parts, int64_t part) {
  return rows / parts * part + std::min(part, rows % parts);
}

// Sums of Count values per row and channel, for the rows of one part, in runs of kRowsPerPart rows whose fp32 sums are
// added up in fp64. term(row offset, channel, values) gives the values. out (Count, c) fp64.
template <int Count, class Term>
void sum_part(int64_t begin, int64_t end, int64_t c, double* out, const Term& term) {
  std::fill(out, out + Count * c, 0.0);
  std::vector<float> run(static_cast<size_t>(Count * c));
  for (int64_t first = begin; first < end; first += kRowsPerPart) {
    const int64_t last = std::min(end, first + kRowsPerPart);
    std::fill(run.begin(), run.end(), 0.0f);
    float* sums = run.data();
    for (int64_t row = first; row < last; ++row) {
      for (int64_t j = 0; j < c; ++j) {
        float values[Count];
        term(row * c + j, j, values);
        for (int i = 0; i < Count; ++i) sums[i * c + j] += values[i];
      }
    }
    for (int64_t i = 0; i < Count * c; ++i) out[i] += sums[i];
  }
}

// The sums over all rows: parts (parts, Count, c) fp64 in the workspace, then their total in the first of them.
template <int Count, class Term>
double* sum_rows(double* parts_memory, int64_t rows, int64_t c, const Term& term) {
  const int64_t parts = part_count(rows);
  parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      sum_part<Count>(part_begin(rows, parts, part), part_begin(rows, parts, part + 1), c, parts_memory + part * Count * c, term);
    }
  });
  for (int64_t part = 1; part < parts; ++part) {
    for (int64_t i = 0; i < Count * c; ++i) parts_memory[i] += parts_memory[part * Count * c + i];
  }
  return parts_memory;
}

// Two sums per part and channel, and two rows of coefficients.
int64_t workspace_bytes(int64_t rows, int64_t c) {
  return part_count(rows) * 2 * c * static_cast<int64_t>(sizeof(double)) + 3 * c * static_cast<int64_t>(sizeof(float));
}

float* coefficients(void* workspace, int64_t rows, int64_t c) {
  return reinterpret_cast<float*>(static_cast<double*>(workspace) + part_count(rows) * 2 * c);
}

// y = activation(x * scale + shift + residual), scale and shift (c)
template <class T, bool relu, bool with_residual>
void apply(T* y, const T* x, const T* residual, const float* scale, const float* shift, int64_t rows, int64_t c) {
  parallel_for(rows, std::max<int64_t>(1, 16384 / c), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* in = x + row * c;
      const T* add = with_residual ? residual + row * c : nullptr;
      T* out = y + row * c;
      for (int64_t j = 0; j < c; ++j) {
        float v = load(in + j) * scale[j] + shift[j];
        if constexpr (with_residual) v += load(add + j);
        if constexpr (relu) v = v < 0.0f ? 0.0f : v;
        store(out + j, v);
      }
    }
  });
}

template <class T>
void apply(T* y, const T* x, const T* residual, const float* scale, const float* shift, int64_t rows, int64_t c, bool relu) {
  if (relu) {
    residual ? apply<T, true, true>(y, x, residual, scale, shift, rows, c) : apply<T, true, false>(y, x, residual, scale, shift, rows, c);
  } else {
    residual ? apply<T, false, true>(y, x, residual, scale, shift, rows, c) : apply<T, false, false>(y, x, residual, scale, shift, rows, c);
  }
}

struct TrainArguments {
  float *save_mean, *save_invstd, *running_mean, *running_var;
  const float *weight, *bias;
  void* workspace;
  int64_t rows, c;
  double eps, momentum;
  bool relu;
};

template <class T>
void batch_norm_train(const TrainArguments& a, T* y, const T* x, const T* residual) {
  const int64_t rows = a.rows, c = a.c;
  double* parts = static_cast<double*>(a.workspace);
  float* scale = coefficients(a.workspace, rows, c);
  float* shift = scale + c;
  // Sums of x - x[0] and of its square: the shift takes the mean's size out of the squares (a one-pass variance that does
  // not cancel).
  float* origin = shift + c;
  for (int64_t j = 0; j < c; ++j) origin[j] = load(x + j);
  const double* sums = sum_rows<2>(parts, rows, c, [=](int64_t i, int64_t j, float* values) {
    const float d = load(x + i) - origin[j];
    values[0] = d;
    values[1] = d * d;
  });
  for (int64_t j = 0; j < c; ++j) {
    const double n = static_cast<double>(rows);
    const double offset = sums[j] / n;
    const double mean = origin[j] + offset;
    const double var = std::max(0.0, sums[c + j] / n - offset * offset);
    const double invstd = 1.0 / std::sqrt(var + a.eps);
    a.save_mean[j] = static_cast<float>(mean);
    a.save_invstd[j] = static_cast<float>(invstd);
    if (a.running_mean) {
      const double unbiased = var * n / (n - 1);
      a.running_mean[j] = static_cast<float>((1 - a.momentum) * a.running_mean[j] + a.momentum * mean);
      a.running_var[j] = static_cast<float>((1 - a.momentum) * a.running_var[j] + a.momentum * unbiased);
    }
    scale[j] = static_cast<float>(invstd * a.weight[j]);
    shift[j] = static_cast<float>(a.bias[j] - mean * invstd * a.weight[j]);
  }
  apply(y, x, residual, scale, shift, rows, c, a.relu);
}

struct BackwardArguments {
  float *dweight, *dbias;
  const float *weight, *save_mean, *save_invstd;
  void* workspace;
  int64_t rows, c;
};

template <class T, bool relu>
void batch_norm_backward(const BackwardArguments& a, T* dx, T* dresidual, const T* dy, const T* x, const T* y) {
  const int64_t rows = a.rows, c = a.c;
  const float *mean = a.save_mean, *invstd = a.save_invstd;
  const double* sums = sum_rows<2>(static_cast<double*>(a.workspace), rows, c, [=](int64_t i, int64_t j, float* values) {
    float g = load(dy + i);
    if constexpr (relu) g = load(y + i) > 0.0f ? g : 0.0f;
    values[0] = g;
    values[1] = g * (load(x + i) - mean[j]) * invstd[j];
  });
  // dx = weight invstd (g - mean(g) - xhat mean(g xhat)) = p g + q x + r
  float* p = coefficients(a.workspace, rows, c);
  float* q = p + c;
  float* r = q + c;
  for (int64_t j = 0; j < c; ++j) {
    a.dbias[j] = static_cast<float>(sums[j]);
    a.dweight[j] = static_cast<float>(sums[c + j]);
    const double n = static_cast<double>(rows);
    const double factor = static_cast<double>(a.weight[j]) * invstd[j];
    const double slope = -factor * invstd[j] * sums[c + j] / n;
    p[j] = static_cast<float>(factor);
    q[j] = static_cast<float>(slope);
    r[j] = static_cast<float>(-factor * sums[j] / n);
  }
  parallel_for(rows, std::max<int64_t>(1, 16384 / c), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * c;
      for (int64_t j = 0; j < c; ++j) {
        float g = load(dy + at + j);
        if constexpr (relu) g = load(y + at + j) > 0.0f ? g : 0.0f;
        const float v = p[j] * g + (q[j] * (load(x + at + j) - mean[j]) + r[j]);
        if (dresidual) store(dresidual + at + j, g);
        store(dx + at + j, v);
      }
    }
  });
}

}  // namespace
}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_channel_sum_workspace(dlfs_context ctx, int64_t* out, int64_t rows, int32_t c, dlfs_dtype dtype) {
  return guard("dlfs_channel_sum_workspace", [&] {
    require_context(ctx);
    check_pointer(out, "out");
    check_size(rows, "rows");
    check_size(c, "c");
    check_float_dtype(dtype);
    *out = part_count(rows) * c * static_cast<int64_t>(sizeof(double));
  });
}

extern "C" dlfs_status dlfs_channel_sum(dlfs_stream stream, float* out, const void* x, void* workspace, int64_t rows, int32_t c,
                                        dlfs_dtype dtype) {
  return on_stream("dlfs_channel_sum", stream, [&](Stream& s) {
    check_pointer(out, "out");
    check_pointer(x, "x");
    check_pointer(workspace, "workspace");
    check_size(rows, "rows");
    check_size(c, "c");
    dispatch_float(dtype, [](auto) {});
    s.enqueue([=] {
      dispatch_float(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        const T* in = static_cast<const T*>(x);
        const double* sums = sum_rows<1>(static_cast<double*>(workspace), rows, c,
                                         [=](int64_t i, int64_t, float* values) { values[0] = load(in + i); });
        for (int32_t j = 0; j < c; ++j) out[j] = static_cast<float>(sums[j]);
      });
    });
  });
}

extern "C" dlfs_status dlfs_batch_norm_workspace(dlfs_context ctx, int64_t* out, int64_t rows, int32_t c, dlfs_dtype dtype) {
  return guard("dlfs_batch_norm_workspace", [&] {
    require_context(ctx);
    check_pointer(out, "out");
    check_size(rows, "rows");
    check_size(c, "c");
    check_float_dtype(dtype);
    *out = workspace_bytes(rows, c);
  });
}

extern "C" dlfs_status dlfs_batch_norm_train(dlfs_stream stream, void* y, float* save_mean, float* save_invstd,
                                             float* running_mean, float* running_var, const void* x, const void* residual,
                                             const float* weight, const float* bias, void* workspace, int64_t rows, int32_t c,
                                             dlfs_dtype dtype, double eps, double momentum, dlfs_activation activation) {
  return on_stream("dlfs_batch_norm_train", stream, [&](Stream& s) {
    for (auto [pointer, name] : {std::pair<const void*, const char*>{y, "y"}, {save_mean, "save_mean"}, {save_invstd, "save_invstd"},
                                 {x, "x"}, {weight, "weight"}, {bias, "bias"}, {workspace, "workspace"}}) {
      check_pointer(pointer, name);
    }
    DLFS_CHECK((running_mean == nullptr) == (running_var == nullptr), DLFS_ERROR_ARGUMENT,
               "running_mean and running_var: expected both or neither");
    DLFS_CHECK(rows > 1, DLFS_ERROR_SHAPE, "expected more than 1 value per channel, got %lld", static_cast<long long>(rows));
    check_size(c, "c");
    checked_product({rows, c}, "x");
    dispatch_float(dtype, [](auto) {});
    check_activation(activation, {DLFS_ACT_NONE, DLFS_ACT_RELU});
    DLFS_CHECK(eps >= 0, DLFS_ERROR_ARGUMENT, "expected eps >= 0, got %g", eps);
    check_number(momentum, "momentum");
    const TrainArguments a{save_mean, save_invstd, running_mean, running_var, weight, bias, workspace, rows, c, eps, momentum,
                           activation == DLFS_ACT_RELU};
    s.enqueue([=] {
      dispatch_float(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        batch_norm_train(a, static_cast<T*>(y), static_cast<const T*>(x), static_cast<const T*>(residual));
      });
    });
  });
}

extern "C" dlfs_status dlfs_batch_norm_infer(dlfs_stream stream, void* y, const void* x, const void* residual,
                                             const float* weight, const float* bias, const float* mean, const float* var,
                                             int64_t rows, int32_t c, dlfs_dtype dtype, double eps,
                                             dlfs_activation activation) {
  return on_stream("dlfs_batch_norm_infer", stream, [&](Stream& s) {
    for (auto [pointer, name] : {std::pair<const void*, const char*>{y, "y"}, {x, "x"}, {weight, "weight"}, {bias, "bias"},
                                 {mean, "mean"}, {var, "var"}}) {
      check_pointer(pointer, name);
    }
    check_size(rows, "rows");
    check_size(c, "c");
    checked_product({rows, c}, "x");
    dispatch_float(dtype, [](auto) {});
    check_activation(activation, {DLFS_ACT_NONE, DLFS_ACT_RELU});
    DLFS_CHECK(eps >= 0, DLFS_ERROR_ARGUMENT, "expected eps >= 0, got %g", eps);
    const bool relu = activation == DLFS_ACT_RELU;
    s.enqueue([=] {
      std::vector<float> scale(static_cast<size_t>(c)), shift(static_cast<size_t>(c));
      for (int32_t j = 0; j < c; ++j) {
        const double g = weight[j] / std::sqrt(static_cast<double>(var[j]) + eps);
        scale[j] = static_cast<float>(g);
        shift[j] = static_cast<float>(bias[j] - mean[j] * g);
      }
      dispatch_float(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        apply(static_cast<T*>(y), static_cast<const T*>(x), static_cast<const T*>(residual), scale.data(), shift.data(), rows,
              c, relu);
      });
    });
  });
}

extern "C" dlfs_status dlfs_batch_norm_backward(dlfs_stream stream, void* dx, void* dresidual, float* dweight, float* dbias,
                                                const void* dy, const void* x, const void* y, const float* weight,
                                                const float* save_mean, const float* save_invstd, void* workspace,
                                                int64_t rows, int32_t c, dlfs_dtype dtype, dlfs_activation activation) {
  return on_stream("dlfs_batch_norm_backward", stream, [&](Stream& s) {
    for (auto [pointer, name] : {std::pair<const void*, const char*>{dx, "dx"}, {dweight, "dweight"}, {dbias, "dbias"}, {dy, "dy"},
                                 {x, "x"}, {weight, "weight"}, {save_mean, "save_mean"}, {save_invstd, "save_invstd"},
                                 {workspace, "workspace"}}) {
      check_pointer(pointer, name);
    }
    check_activation(activation, {DLFS_ACT_NONE, DLFS_ACT_RELU});
    const bool relu = activation == DLFS_ACT_RELU;
    if (relu) check_pointer(y, "y");
    DLFS_CHECK(rows > 1, DLFS_ERROR_SHAPE, "expected more than 1 value per channel, got %lld", static_cast<long long>(rows));
    check_size(c, "c");
    checked_product({rows, c}, "x");
    dispatch_float(dtype, [](auto) {});
    DLFS_CHECK(dresidual == nullptr || dresidual != dx, DLFS_ERROR_ARGUMENT, "dx and dresidual are the same memory");
    const BackwardArguments a{dweight, dbias, weight, save_mean, save_invstd, workspace, rows, c};
    s.enqueue([=] {
      dispatch_float(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        T *dx_out = static_cast<T*>(dx), *dresidual_out = static_cast<T*>(dresidual);
        const T *dy_in = static_cast<const T*>(dy), *x_in = static_cast<const T*>(x), *y_in = static_cast<const T*>(y);
        relu ? batch_norm_backward<T, true>(a, dx_out, dresidual_out, dy_in, x_in, y_in)
             : batch_norm_backward<T, false>(a, dx_out, dresidual_out, dy_in, x_in, y_in);
      });
    });
  });
}

extern "C" dlfs_status dlfs_batch_norm_fold(dlfs_stream stream, void* folded_w, float* folded_bias, const float* w,
                                            const float* conv_bias, const float* weight, const float* bias, const float* mean,
                                            const float* var, int32_t k, int64_t per_channel, dlfs_dtype dtype, double eps) {
  return on_stream("dlfs_batch_norm_fold", stream, [&](Stream& s) {
    for (auto [pointer, name] : {std::pair<const void*, const char*>{folded_w, "folded_w"}, {folded_bias, "folded_bias"}, {w, "w"},
                                 {weight, "weight"}, {bias, "bias"}, {mean, "mean"}, {var, "var"}}) {
      check_pointer(pointer, name);
    }
    check_size(k, "k");
    check_size(per_channel, "per_channel");
    checked_product({k, per_channel}, "w");
    dispatch_float(dtype, [](auto) {});
    DLFS_CHECK(eps >= 0, DLFS_ERROR_ARGUMENT, "expected eps >= 0, got %g", eps);
    s.enqueue([=] {
      dispatch_float(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        for (int32_t i = 0; i < k; ++i) {
          const double g = weight[i] / std::sqrt(static_cast<double>(var[i]) + eps);
          const double start = conv_bias ? conv_bias[i] : 0.0;
          folded_bias[i] = static_cast<float>((start - mean[i]) * g + bias[i]);
          T* out = static_cast<T*>(folded_w) + i * per_channel;
          const float factor = static_cast<float>(g);
          for (int64_t j = 0; j < per_channel; ++j) store(out + j, w[i * per_channel + j] * factor);
        }
      });
    });
  });
}
