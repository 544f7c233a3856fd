// Dropout and its gradient. Philox blocks are a function of the element alone, so threads share nothing.
#include "common/dropout.hpp"
#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {
namespace {

// out = in * scale where mask_of(group) has the element's bit, else 0.
template <class T, class MaskOf>
void apply_mask(T* out, const T* in, int64_t n, float scale, const MaskOf& mask_of) {
  parallel_for((n + dropout_group - 1) / dropout_group, 2048, [=](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      const uint32_t bits = mask_of(group);
      const int64_t first = dropout_group * group;
      const auto apply = [&](auto count) {
#pragma omp simd
        for (int i = 0; i < static_cast<int>(count); ++i) {
          const float scaled = to_float(in[first + i]) * scale;  // in any case, so that the loop has no branch
          out[first + i] = from_float<T>(bits >> i & 1u ? scaled : 0.0f);
        }
      };
      // For whole groups the count is a compile-time constant.
      if (first + dropout_group <= n) {
        apply(std::integral_constant<int, dropout_group>{});
      } else {
        apply(static_cast<int>(n - first));
      }
    }
  });
}

}  // namespace
}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_dropout_forward(dlfs_stream stream, void* y, uint8_t* mask, float* counter, const void* x,
                                            int64_t n, dlfs_dtype dtype, double p, int64_t seed) {
  return on_stream("dlfs_dropout_forward", stream, [&](Stream& s) {
    check_count(n, "n");
    const DropoutRate rate = dropout_rate(p);
    check_pointer(counter, "counter");
    if (n > 0) {
      check_pointer(y, "y");
      check_pointer(x, "x");
    }
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] {
        const uint64_t offset = dropout_offset(*counter);
        apply_mask(static_cast<T*>(y), static_cast<const T*>(x), n, rate.scale, [=](int64_t group) {
          const uint8_t bits = dropout_mask(static_cast<uint64_t>(seed), offset, group, n, rate.threshold);
          if (mask) mask[group] = bits;
          return bits;
        });
        *counter = dropout_next(*counter);
      });
    });
  });
}

extern "C" dlfs_status dlfs_dropout_backward(dlfs_stream stream, void* dx, const void* dy, const uint8_t* mask,
                                             int64_t n, dlfs_dtype dtype, double p) {
  return on_stream("dlfs_dropout_backward", stream, [&](Stream& s) {
    check_count(n, "n");
    const DropoutRate rate = dropout_rate(p);
    dispatch_float(dtype, [](auto) {});
    if (n == 0) return;
    check_pointer(dx, "dx");
    check_pointer(dy, "dy");
    check_pointer(mask, "mask");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] {
        apply_mask(static_cast<T*>(dx), static_cast<const T*>(dy), n, rate.scale,
                   [=](int64_t group) { return mask[group]; });
      });
    });
  });
}
