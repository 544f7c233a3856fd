// Nearest-neighbour resampling on the CPU.
#include <cstring>

#include "common/geometry.hpp"
#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {

namespace {

struct UpsampleGeometry {
  int32_t n, h, w, c, p, q;
};

UpsampleGeometry upsample_geometry(int32_t n, int32_t h, int32_t w, int32_t c, int32_t p, int32_t q) {
  check_range(n, 1, INT32_MAX, "n");
  check_range(h, 1, INT32_MAX, "h");
  check_range(w, 1, INT32_MAX, "w");
  check_range(c, 1, INT32_MAX, "c");
  check_range(p, 1, INT32_MAX, "p");
  check_range(q, 1, INT32_MAX, "q");
  checked_product({n, h, w, c}, "x");
  checked_product({n, p, q, c}, "y");
  return {n, h, w, c, p, q};
}

void upsample_forward(const UpsampleGeometry& g, char* y, const char* x, int64_t pixel_bytes) {
  const int64_t row_bytes = g.q * pixel_bytes;
  parallel_for(int64_t{g.n} * g.p, std::max<int64_t>(1, 65536 / row_bytes), [=](int64_t begin, int64_t end) {
    int64_t previous = -1;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t source = i / g.p * g.h + nearest_source(static_cast<int32_t>(i % g.p), g.h, g.p);
      char* out = y + i * row_bytes;
      if (source == previous) {
        std::memcpy(out, out - row_bytes, static_cast<size_t>(row_bytes));
        continue;
      }
      previous = source;
      const char* in = x + source * g.w * pixel_bytes;
      for (int32_t q = 0; q < g.q; ++q) {
        std::memcpy(out + q * pixel_bytes, in + nearest_source(q, g.w, g.q) * pixel_bytes,
                    static_cast<size_t>(pixel_bytes));
      }
    }
  });
}

template <class T>
void upsample_backward(const UpsampleGeometry& g, T* dx, const T* dy) {
  const int64_t row_work = std::max<int64_t>(1, int64_t{g.q} * g.c * g.p / g.h);
  parallel_for(int64_t{g.n} * g.h, std::max<int64_t>(1, 16384 / row_work), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / g.h;
      const int32_t h = static_cast<int32_t>(i % g.h);
      const int32_t top = nearest_first(h, g.h, g.p), bottom = nearest_first(h + 1, g.h, g.p);
      for (int32_t w = 0; w < g.w; ++w) {
        const int32_t left = nearest_first(w, g.w, g.q), right = nearest_first(w + 1, g.w, g.q);
        T* out = dx + (i * g.w + w) * g.c;
        for_each_chunk(g.c, [&](auto width, int32_t c0) {
          const int32_t count = width;
          float sum[channel_chunk] = {};
          for (int32_t p = top; p < bottom; ++p) {
            for (int32_t q = left; q < right; ++q) {
              const T* in = dy + ((n * g.p + p) * g.q + q) * g.c + c0;
#pragma omp simd
              for (int32_t j = 0; j < count; ++j) sum[j] += to_float(in[j]);
            }
          }
          for (int32_t j = 0; j < count; ++j) out[c0 + j] = from_float<T>(sum[j]);
        });
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
    check_float_dtype(dtype);
    const UpsampleGeometry g = upsample_geometry(n, h, w, c, p, q);
    check_pointer(y, "y");
    check_pointer(x, "x");
    dispatch_float(dtype, [&](auto type) {
      const int64_t pixel_bytes = c * static_cast<int64_t>(sizeof(typename decltype(type)::type));
      s.enqueue([=] { upsample_forward(g, static_cast<char*>(y), static_cast<const char*>(x), pixel_bytes); });
    });
  });
}

extern "C" dlfs_status dlfs_upsample_nearest_backward(dlfs_stream stream, void* dx, const void* dy, int32_t n,
                                                      int32_t h, int32_t w, int32_t c, int32_t p, int32_t q,
                                                      dlfs_dtype dtype) {
  return on_stream("dlfs_upsample_nearest_backward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    const UpsampleGeometry g = upsample_geometry(n, h, w, c, p, q);
    check_pointer(dx, "dx");
    check_pointer(dy, "dy");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] { upsample_backward(g, static_cast<T*>(dx), static_cast<const T*>(dy)); });
    });
  });
}
