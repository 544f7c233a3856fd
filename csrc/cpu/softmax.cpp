// Softmax over rows of channels and its gradient. A thread owns whole rows; the exponentials of a row are kept in fp32
// until their sum is known.
#include "common/rows.hpp"
#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {
namespace {

// Rows that are worth a thread of their own.
int64_t row_grain(int32_t c) { return std::max<int64_t>(1, 4096 / c); }

template <class T>
void softmax_forward(T* y, const T* x, int64_t rows, int32_t c) {
  parallel_for(rows, row_grain(c), [=](int64_t begin, int64_t end) {
    std::vector<float> terms(static_cast<size_t>(c));
    float* const e = terms.data();
    for (int64_t row = begin; row < end; ++row) {
      const T* in = x + row * c;
      T* out = y + row * c;
      float largest = to_float(in[0]);
#pragma omp simd reduction(max : largest)
      for (int32_t j = 0; j < c; ++j) largest = std::max(largest, to_float(in[j]));
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (int32_t j = 0; j < c; ++j) {
        e[j] = exp_f32(to_float(in[j]) - largest);
        sum += e[j];
      }
#pragma omp simd
      for (int32_t j = 0; j < c; ++j) out[j] = from_float<T>(e[j] / sum);
    }
  });
}

template <class T>
void softmax_backward(T* dx, const T* dy, const T* y, int64_t rows, int32_t c) {
  parallel_for(rows, row_grain(c), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* upstream = dy + row * c;
      const T* p = y + row * c;
      T* out = dx + row * c;
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (int32_t j = 0; j < c; ++j) sum += to_float(upstream[j]) * to_float(p[j]);
#pragma omp simd
      for (int32_t j = 0; j < c; ++j) out[j] = from_float<T>(to_float(p[j]) * (to_float(upstream[j]) - sum));
    }
  });
}

}  // namespace
}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_softmax_forward(dlfs_stream stream, void* y, const void* x, int64_t rows, int32_t c,
                                            dlfs_dtype dtype) {
  return on_stream("dlfs_softmax_forward", stream, [&](Stream& s) {
    if (check_rows(rows, c) == 0) return;
    check_pointer(y, "y");
    check_pointer(x, "x");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] { softmax_forward(static_cast<T*>(y), static_cast<const T*>(x), rows, c); });
    });
  });
}

extern "C" dlfs_status dlfs_softmax_backward(dlfs_stream stream, void* dx, const void* dy, const void* y, int64_t rows,
                                             int32_t c, dlfs_dtype dtype) {
  return on_stream("dlfs_softmax_backward", stream, [&](Stream& s) {
    if (check_rows(rows, c) == 0) return;
    check_pointer(dx, "dx");
    check_pointer(dy, "dy");
    check_pointer(y, "y");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] {
        softmax_backward(static_cast<T*>(dx), static_cast<const T*>(dy), static_cast<const T*>(y), rows, c);
      });
    });
  });
}
