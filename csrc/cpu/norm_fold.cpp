// Given statistics of a batch normalization folded into the weights of the convolution before it, and the gradient of
// these weights.
#include <cmath>

#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

using namespace dlfs;
using namespace dlfs::cpu;

namespace {

// Rows of output channels for one turn of a thread.
int64_t grain_of(int64_t per_channel) { return std::max<int64_t>(1, 16384 / per_channel); }

}  // namespace

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
        parallel_for(k, grain_of(per_channel), [=](int64_t begin, int64_t end) {
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

extern "C" dlfs_status dlfs_batch_norm_fold_backward(dlfs_stream stream, float* dw, const float* dfolded,
                                                     const float* weight, const float* var, int32_t k,
                                                     int64_t per_channel, double eps) {
  return on_stream("dlfs_batch_norm_fold_backward", stream, [&](Stream& s) {
    check_range(k, 1, INT32_MAX, "k");
    check_size(per_channel, "per_channel");
    checked_product({k, per_channel}, "w");
    check_eps(eps);
    check_pointer(dw, "dw");
    check_pointer(dfolded, "dfolded");
    check_pointer(weight, "weight");
    check_pointer(var, "var");
    s.enqueue([=] {
      parallel_for(k, grain_of(per_channel), [=](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) {
          const float g = static_cast<float>(weight[j] / std::sqrt(var[j] + eps));
          const int64_t first = j * per_channel;
#pragma omp simd
          for (int64_t i = 0; i < per_channel; ++i) dw[first + i] = dfolded[first + i] * g;
        }
      });
    });
  });
}
