// Group normalization on the CPU: the sums per channel of norm_channels.hpp, image by image, joined to those of groups
// of neighbouring channels.
#include <cmath>

#include "common/group_norm.hpp"
#include "cpu/norm_channels.hpp"

namespace dlfs::cpu {

namespace {

template <class T>
void group_norm_forward(const GroupNormGeometry& g, const GroupNormForward& a, void* workspace) {
  const ChannelLayout layout(g.rows, g.c);
  const int32_t width = g.per_group();
  const double rows = static_cast<double>(g.rows), count = rows * width;
  const size_t c = static_cast<size_t>(g.c);
  std::vector<float> centre(c), scale(c), shift(c);
  for (int64_t n = 0; n < g.n; ++n) {
    const T* x = static_cast<const T*>(a.x) + n * g.image_elements();
    const double* means = channel_moments(layout, workspace, x);
    const double* squares = means + g.c;
    for (int32_t group = 0; group < g.groups; ++group) {
      const int32_t first = group * width;
      double mean = 0;
      for (int32_t j = first; j < first + width; ++j) mean += means[j] / width;
      double sum = 0;
      for (int32_t j = first; j < first + width; ++j) {
        const double delta = means[j] - mean;
        sum += squares[j] + delta * delta * rows;
      }
      const double invstd = 1.0 / std::sqrt(std::max(0.0, sum) / count + a.eps);
      const float rounded = static_cast<float>(mean);
      a.save_mean[n * g.groups + group] = rounded;
      a.save_invstd[n * g.groups + group] = static_cast<float>(invstd);
      for (int32_t j = first; j < first + width; ++j) {
        const size_t at = static_cast<size_t>(j);
        centre[at] = rounded;
        scale[at] = static_cast<float>(invstd * a.weight[j]);
        // What rounding took from the mean goes into the shift.
        shift[at] = static_cast<float>(a.bias[j] - (mean - rounded) * invstd * a.weight[j]);
      }
    }
    normalise(layout, static_cast<T*>(a.y) + n * g.image_elements(), x, static_cast<const T*>(nullptr), centre.data(),
              scale.data(), shift.data(), a.activation);
  }
}

// With g = dy where y > 0 with ReLU, and sums over the values of an image's group:
//   dx = invstd (weight g - sum(weight g) / count - (x - mean) invstd^2 sum(weight g (x - mean)) / count).
template <class T, bool relu>
void group_norm_backward(const GroupNormGeometry& g, const GroupNormBackward& a, void* workspace) {
  const ChannelLayout layout(g.rows, g.c);
  const int32_t width = g.per_group();
  const double count = static_cast<double>(g.rows) * width;
  const size_t c = static_cast<size_t>(g.c);
  std::vector<double> dweight(c), dbias(c);
  std::vector<float> centre(c), scale(c), offset(c), slope(c);
  for (int64_t n = 0; n < g.n; ++n) {
    const T* x = static_cast<const T*>(a.x) + n * g.image_elements();
    const T* dy = static_cast<const T*>(a.dy) + n * g.image_elements();
    const T* y = relu ? static_cast<const T*>(a.y) + n * g.image_elements() : nullptr;
    T* dx = static_cast<T*>(a.dx) + n * g.image_elements();
    for (size_t j = 0; j < c; ++j) centre[j] = a.save_mean[n * g.groups + static_cast<int32_t>(j) / width];
    const std::vector<float> wide_centre = layout.widen(centre.data());
    const float* m = wide_centre.data();
    const double* sums = sum_channels<2>(layout, workspace, [=, &layout](int64_t i, int64_t length, float* tile) {
      float* products = tile + layout.width;
#pragma omp simd
      for (int64_t j = 0; j < length; ++j) {
        float upstream = to_float(dy[i + j]);
        if constexpr (relu) upstream = to_float(y[i + j]) <= 0.0f ? 0.0f : upstream;
        tile[j] += upstream;
        products[j] += upstream * (to_float(x[i + j]) - m[j]);
      }
    });
    const double* products = sums + g.c;
    for (int32_t group = 0; group < g.groups; ++group) {
      const int32_t first = group * width;
      const double invstd = a.save_invstd[n * g.groups + group];
      double sum = 0, product = 0;
      for (int32_t j = first; j < first + width; ++j) {
        sum += sums[j] * a.weight[j];
        product += products[j] * a.weight[j];
      }
      for (int32_t j = first; j < first + width; ++j) {
        const size_t at = static_cast<size_t>(j);
        dbias[at] += sums[j];
        dweight[at] += products[j] * invstd;
        scale[at] = static_cast<float>(a.weight[j] * invstd);
        offset[at] = static_cast<float>(sum * invstd / count);
        slope[at] = static_cast<float>(product * invstd * invstd * invstd / count);
      }
    }
    const std::vector<float> wide_scale = layout.widen(scale.data()), wide_offset = layout.widen(offset.data()),
                             wide_slope = layout.widen(slope.data());
    const float *factor = wide_scale.data(), *b = wide_offset.data(), *k = wide_slope.data();
    map_wide_rows(layout, [=](int64_t i, int64_t length) {
#pragma omp simd
      for (int64_t j = 0; j < length; ++j) {
        float upstream = to_float(dy[i + j]);
        if constexpr (relu) upstream = to_float(y[i + j]) <= 0.0f ? 0.0f : upstream;
        dx[i + j] = from_float<T>(factor[j] * upstream - b[j] - (to_float(x[i + j]) - m[j]) * k[j]);
      }
    });
  }
  for (size_t j = 0; j < c; ++j) {
    a.dweight[j] = static_cast<float>(dweight[j]);
    a.dbias[j] = static_cast<float>(dbias[j]);
  }
}

// Both passes work on one image at a time.
int64_t group_norm_workspace(const GroupNormGeometry& g) {
  return ChannelLayout(g.rows, g.c).workspace(moments_width);
}

}  // namespace

}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_group_norm_workspace(dlfs_context ctx, int64_t* out, int32_t n, int64_t rows, int32_t c,
                                                 int32_t groups, dlfs_dtype dtype) {
  return guard("dlfs_group_norm_workspace", [&] {
    require_context(ctx);
    check_pointer(out, "out");
    *out = group_norm_workspace(group_norm_geometry(n, rows, c, groups, dtype));
  });
}

extern "C" dlfs_status dlfs_group_norm_forward(dlfs_stream stream, void* y, float* save_mean, float* save_invstd,
                                               const void* x, const float* weight, const float* bias, void* workspace,
                                               int32_t n, int64_t rows, int32_t c, int32_t groups, dlfs_dtype dtype,
                                               double eps, dlfs_activation activation) {
  return on_stream("dlfs_group_norm_forward", stream, [&](Stream& s) {
    const GroupNormGeometry g = group_norm_geometry(n, rows, c, groups, dtype);
    const GroupNormForward arguments{y, save_mean, save_invstd, x, weight, bias, eps, activation};
    check_group_norm(arguments);
    check_workspace(workspace, group_norm_workspace(g));
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] { group_norm_forward<T>(g, arguments, workspace); });
    });
  });
}

extern "C" dlfs_status dlfs_group_norm_backward(dlfs_stream stream, void* dx, float* dweight, float* dbias,
                                                const void* dy, const void* x, const void* y, const float* weight,
                                                const float* save_mean, const float* save_invstd, void* workspace,
                                                int32_t n, int64_t rows, int32_t c, int32_t groups, dlfs_dtype dtype,
                                                dlfs_activation activation) {
  return on_stream("dlfs_group_norm_backward", stream, [&](Stream& s) {
    const GroupNormGeometry g = group_norm_geometry(n, rows, c, groups, dtype);
    const GroupNormBackward arguments{dx, dweight, dbias, dy, x, y, weight, save_mean, save_invstd, activation};
    check_group_norm(arguments);
    check_workspace(workspace, group_norm_workspace(g));
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] {
        const auto run = activation == DLFS_ACT_RELU ? group_norm_backward<T, true> : group_norm_backward<T, false>;
        run(g, arguments, workspace);
      });
    });
  });
}
