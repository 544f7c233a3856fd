// Nearest-neighbour resizing and its gradient, NHWC: parallel over rows, whole pixels copied or summed.
#include <vector>

#include "common/geometry.hpp"
#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {
namespace {

struct Sizes {
  int32_t n, h, w, c, p, q;
};

Sizes upsample_sizes(int32_t n, int32_t h, int32_t w, int32_t c, int32_t p, int32_t q) {
  for (auto [value, name] : {std::pair{n, "n"}, {h, "h"}, {w, "w"}, {c, "c"}, {p, "p"}, {q, "q"}}) check_size(value, name);
  checked_product({n, h, w, c}, "x");
  checked_product({n, p, q, c}, "y");
  return {n, h, w, c, p, q};
}

// y (N, P, Q, C) from x (N, H, W, C)
void upsample_forward(const Sizes& g, char* y, const char* x, int64_t element_bytes) {
  const int64_t pixel = g.c * element_bytes;
  parallel_for(int64_t{g.n} * g.p, 1, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / g.p;
      const int32_t h = nearest_source(static_cast<int32_t>(row % g.p), g.h, g.p);
      const char* in = x + (image * g.h + h) * g.w * pixel;
      char* out = y + row * g.q * pixel;
      for (int32_t q = 0; q < g.q; ++q) std::memcpy(out + q * pixel, in + nearest_source(q, g.w, g.q) * pixel, pixel);
    }
  });
}

// dx (N, H, W, C): the sum of the dy (N, P, Q, C) that read it, row by row
template <class T>
void upsample_backward(const Sizes& g, T* dx, const T* dy) {
  parallel_for(int64_t{g.n} * g.h, 1, [=](int64_t begin, int64_t end) {
    std::vector<float> sum(static_cast<size_t>(g.c));
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / g.h;
      const int32_t h = static_cast<int32_t>(row % g.h);
      const int32_t p_begin = nearest_first(h, g.h, g.p), p_end = nearest_first(h + 1, g.h, g.p);
      for (int32_t w = 0; w < g.w; ++w) {
        const int32_t q_begin = nearest_first(w, g.w, g.q), q_end = nearest_first(w + 1, g.w, g.q);
        std::fill(sum.begin(), sum.end(), 0.0f);
        for (int32_t p = p_begin; p < p_end; ++p) {
          for (int32_t q = q_begin; q < q_end; ++q) {
            const T* out = dy + ((image * g.p + p) * g.q + q) * g.c;
            for (int32_t c = 0; c < g.c; ++c) sum[c] += load(out + c);
          }
        }
        T* in = dx + (row * g.w + w) * g.c;
        for (int32_t c = 0; c < g.c; ++c) store(in + c, sum[c]);
      }
    }
  });
}

}  // namespace
}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_upsample_nearest_forward(dlfs_stream stream, void* y, const void* x, int32_t n, int32_t h,
                                                     int32_t w, int32_t c, int32_t p, int32_t q, dlfs_dtype dtype) {
  return on_stream("dlfs_upsample_nearest_forward", stream, [&](Stream& s) {
    const Sizes g = upsample_sizes(n, h, w, c, p, q);
    dispatch_float(dtype, [](auto) {});
    check_pointer(y, "y");
    check_pointer(x, "x");
    s.enqueue([=] { upsample_forward(g, static_cast<char*>(y), static_cast<const char*>(x), dtype_size(dtype)); });
  });
}

extern "C" dlfs_status dlfs_upsample_nearest_backward(dlfs_stream stream, void* dx, const void* dy, int32_t n, int32_t h,
                                                      int32_t w, int32_t c, int32_t p, int32_t q, dlfs_dtype dtype) {
  return on_stream("dlfs_upsample_nearest_backward", stream, [&](Stream& s) {
    const Sizes g = upsample_sizes(n, h, w, c, p, q);
    dispatch_float(dtype, [](auto) {});
    check_pointer(dx, "dx");
    check_pointer(dy, "dy");
    s.enqueue([=] {
      dispatch_float(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        upsample_backward(g, static_cast<T*>(dx), static_cast<const T*>(dy));
      });
    });
  });
}
