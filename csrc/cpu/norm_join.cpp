// The sum of two normalized tensors on the CPU, with ReLU: where a residual block's shortcut has a batch normalization of
// its own.
#include "cpu/norm_channels.hpp"

namespace dlfs::cpu {

namespace {

// One of the normalizations.
template <class T>
struct Branch {
  const T* x;
  const float *weight, *bias, *mean, *invstd;

  std::vector<float> scale(int64_t c) const {
    std::vector<float> product(static_cast<size_t>(c));
    for (int64_t j = 0; j < c; ++j) product[static_cast<size_t>(j)] = invstd[j] * weight[j];
    return product;
  }
};

template <class T, bool relu>
void join(const ChannelLayout& l, T* y, const Branch<T>& a, const Branch<T>& b) {
  std::vector<float> bias(static_cast<size_t>(l.c));
  for (int64_t j = 0; j < l.c; ++j) bias[static_cast<size_t>(j)] = a.bias[j] + b.bias[j];
  const std::vector<float> a_mean = l.widen(a.mean), b_mean = l.widen(b.mean), shift = l.widen(bias.data()),
                           a_scale = l.widen(a.scale(l.c).data()), b_scale = l.widen(b.scale(l.c).data());
  const float *ma = a_mean.data(), *mb = b_mean.data(), *ka = a_scale.data(), *kb = b_scale.data(), *s = shift.data();
  map_wide_rows(l, [=, x = a.x, z = b.x](int64_t i, int64_t count) {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      const float second = affine(to_float(z[i + j]), mb[j], kb[j], s[j]);
      float value = affine(to_float(x[i + j]), ma[j], ka[j], second);
      if constexpr (relu) value = value < 0.0f ? 0.0f : value;
      y[i + j] = from_float<T>(value);
    }
  });
}

// dx = weight * invstd * (g - sum(g) / n - (x - mean) * invstd^2 * sum(g (x - mean)) / n), g = dy where the mask has its
// bit, and dz likewise. g is kept in dx until then.
template <class T>
void join_backward(const ChannelLayout& l, T* dx, T* dz, float* x_dweight, float* x_dbias, float* z_dweight,
                   float* z_dbias, const T* dy, const uint8_t* mask, const Branch<T>& a, const Branch<T>& b,
                   void* workspace) {
  if (mask) {
    T* const masked = dz == dy ? dz : dx;
    apply_mask(l, masked, dy, mask);
    dy = masked;
  }
  const std::vector<float> a_mean = l.widen(a.mean), b_mean = l.widen(b.mean);
  const float *ma = a_mean.data(), *mb = b_mean.data();
  const T *x = a.x, *z = b.x;
  const double* totals = sum_channels<3>(l, workspace, [=, width = l.width](int64_t i, int64_t count, float* tile) {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      const float g = to_float(dy[i + j]);
      tile[j] += g;
      tile[width + j] += g * (to_float(x[i + j]) - ma[j]);
      tile[2 * width + j] += g * (to_float(z[i + j]) - mb[j]);
    }
  });
  const size_t c = static_cast<size_t>(l.c);
  const double n = static_cast<double>(l.rows);
  std::vector<float> offset(c), a_slope(c), b_slope(c);
  for (size_t j = 0; j < c; ++j) {
    const double sum = totals[j], a_product = totals[c + j] * a.invstd[j], b_product = totals[2 * c + j] * b.invstd[j];
    x_dbias[j] = z_dbias[j] = static_cast<float>(sum);
    x_dweight[j] = static_cast<float>(a_product);
    z_dweight[j] = static_cast<float>(b_product);
    offset[j] = static_cast<float>(sum / n);
    a_slope[j] = static_cast<float>(a_product * a.invstd[j] / n);
    b_slope[j] = static_cast<float>(b_product * b.invstd[j] / n);
  }
  const std::vector<float> wide_offset = l.widen(offset.data()), wide_a = l.widen(a_slope.data()),
                           wide_b = l.widen(b_slope.data()), a_scale = l.widen(a.scale(l.c).data()),
                           b_scale = l.widen(b.scale(l.c).data());
  const float *o = wide_offset.data(), *sa = wide_a.data(), *sb = wide_b.data(), *ka = a_scale.data(),
              *kb = b_scale.data();
  map_wide_rows(l, [=](int64_t i, int64_t count) {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      const float g = to_float(dy[i + j]) - o[j];
      dx[i + j] = from_float<T>(ka[j] * (g - (to_float(x[i + j]) - ma[j]) * sa[j]));
      dz[i + j] = from_float<T>(kb[j] * (g - (to_float(z[i + j]) - mb[j]) * sb[j]));
    }
  });
}

}  // namespace

}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_batch_norm_join(dlfs_stream stream, void* y, uint8_t* mask, const void* x, const void* z,
                                            const float* x_weight, const float* x_bias, const float* x_mean,
                                            const float* x_invstd, const float* z_weight, const float* z_bias,
                                            const float* z_mean, const float* z_invstd, int64_t rows, int32_t c,
                                            dlfs_dtype dtype, dlfs_activation activation) {
  return on_stream("dlfs_batch_norm_join", stream, [&](Stream& s) {
    check_join(dtype, rows, c,
               {{y, "y"}, {x, "x"}, {z, "z"}, {x_weight, "x_weight"}, {x_bias, "x_bias"}, {x_mean, "x_mean"},
                {x_invstd, "x_invstd"}, {z_weight, "z_weight"}, {z_bias, "z_bias"}, {z_mean, "z_mean"},
                {z_invstd, "z_invstd"}});
    check_activation(activation, {DLFS_ACT_NONE, DLFS_ACT_RELU});
    check_mask(mask, activation);
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      const Branch<T> a{static_cast<const T*>(x), x_weight, x_bias, x_mean, x_invstd};
      const Branch<T> b{static_cast<const T*>(z), z_weight, z_bias, z_mean, z_invstd};
      T* const out = static_cast<T*>(y);
      s.enqueue([=] {
        const ChannelLayout layout(rows, c);
        activation == DLFS_ACT_RELU ? join<T, true>(layout, out, a, b) : join<T, false>(layout, out, a, b);
        if (mask) write_mask(layout, mask, out);
      });
    });
  });
}

extern "C" dlfs_status dlfs_batch_norm_join_workspace(dlfs_context ctx, int64_t* out, int64_t rows, int32_t c,
                                                      dlfs_dtype dtype) {
  return guard("dlfs_batch_norm_join_workspace", [&] {
    require_context(ctx);
    check_pointer(out, "out");
    check_float_dtype(dtype);
    check_size(rows, "rows");
    check_size(c, "c");
    *out = ChannelLayout(rows, c).workspace(3);
  });
}

extern "C" dlfs_status dlfs_batch_norm_join_backward(dlfs_stream stream, void* dx, void* dz, float* x_dweight,
                                                     float* x_dbias, float* z_dweight, float* z_dbias, const void* dy,
                                                     const void* x, const void* z, const uint8_t* mask,
                                                     const float* x_weight, const float* x_mean, const float* x_invstd,
                                                     const float* z_weight, const float* z_mean, const float* z_invstd,
                                                     void* workspace, int64_t rows, int32_t c, dlfs_dtype dtype) {
  return on_stream("dlfs_batch_norm_join_backward", stream, [&](Stream& s) {
    check_join(dtype, rows, c,
               {{dx, "dx"}, {dz, "dz"}, {x_dweight, "x_dweight"}, {x_dbias, "x_dbias"}, {z_dweight, "z_dweight"},
                {z_dbias, "z_dbias"}, {dy, "dy"}, {x, "x"}, {z, "z"}, {x_weight, "x_weight"}, {x_mean, "x_mean"},
                {x_invstd, "x_invstd"}, {z_weight, "z_weight"}, {z_mean, "z_mean"}, {z_invstd, "z_invstd"}});
    DLFS_CHECK(dx != dz, DLFS_ERROR_ARGUMENT, "dx and dz are the same memory");
    check_workspace(workspace, ChannelLayout(rows, c).workspace(3));
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      const Branch<T> a{static_cast<const T*>(x), x_weight, nullptr, x_mean, x_invstd};
      const Branch<T> b{static_cast<const T*>(z), z_weight, nullptr, z_mean, z_invstd};
      s.enqueue([=] {
        join_backward(ChannelLayout(rows, c), static_cast<T*>(dx), static_cast<T*>(dz), x_dweight, x_dbias, z_dweight,
                      z_dbias, static_cast<const T*>(dy), mask, a, b, workspace);
      });
    });
  });
}
