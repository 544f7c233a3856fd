// Nearest-neighbour and bilinear resampling on the CPU.
#include <cstring>
#include <vector>

#include "common/bilinear.hpp"
#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {

namespace {

void upsample_forward(const ResizeGeometry& g, char* y, const char* x, int64_t pixel_bytes) {
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
void upsample_backward(const ResizeGeometry& g, T* dx, const T* dy) {
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

struct BilinearAxes {
  BilinearAxis vertical, horizontal;
};

template <class T>
void bilinear_forward(const ResizeGeometry& g, const BilinearAxes& axes, T* y, const T* x) {
  std::vector<BilinearTap> columns(static_cast<size_t>(g.q));
  for (int32_t q = 0; q < g.q; ++q) columns[static_cast<size_t>(q)] = axes.horizontal.tap(q);
  const BilinearTap* taps = columns.data();
  const int64_t row_work = int64_t{g.q} * g.c;
  parallel_for(int64_t{g.n} * g.p, std::max<int64_t>(1, 16384 / row_work), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const BilinearTap v = axes.vertical.tap(static_cast<int32_t>(i % g.p));
      const T* upper = x + (i / g.p * g.h + v.low) * g.w * g.c;
      const T* lower = x + (i / g.p * g.h + v.high) * g.w * g.c;
      const float down = v.share;
      for (int32_t q = 0; q < g.q; ++q) {
        const BilinearTap h = taps[q];
        const int64_t left = int64_t{h.low} * g.c, right = int64_t{h.high} * g.c;
        T* out = y + (i * g.q + q) * g.c;
#pragma omp simd
        for (int32_t j = 0; j < g.c; ++j) {
          const float above = (1.0f - h.share) * to_float(upper[left + j]) + h.share * to_float(upper[right + j]);
          const float below = (1.0f - h.share) * to_float(lower[left + j]) + h.share * to_float(lower[right + j]);
          out[j] = from_float<T>((1.0f - down) * above + down * below);
        }
      }
    }
  });
}

// The outputs that read one input, with their weights.
struct Readers {
  int32_t first;
  std::vector<float> weights;
};

Readers readers_of(const BilinearAxis& axis, int32_t source) {
  Readers readers{axis.first(source), {}};
  for (int32_t i = readers.first; i <= axis.last(source); ++i) readers.weights.push_back(axis.weight(i, source));
  return readers;
}

template <class T>
void bilinear_backward(const ResizeGeometry& g, const BilinearAxes& axes, T* dx, const T* dy) {
  std::vector<Readers> columns;
  for (int32_t w = 0; w < g.w; ++w) columns.push_back(readers_of(axes.horizontal, w));
  const int64_t row_work = std::max<int64_t>(1, int64_t{g.q} * g.c * g.p / g.h);
  parallel_for(int64_t{g.n} * g.h, std::max<int64_t>(1, 4096 / row_work), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Readers lines = readers_of(axes.vertical, static_cast<int32_t>(i % g.h));
      const T* image = dy + i / g.h * g.p * g.q * g.c;
      for (int32_t w = 0; w < g.w; ++w) {
        const Readers& across = columns[static_cast<size_t>(w)];
        T* out = dx + (i * g.w + w) * g.c;
        for_each_chunk(g.c, [&](auto width, int32_t c0) {
          const int32_t count = width;
          float sum[channel_chunk] = {};
          for (size_t down = 0; down < lines.weights.size(); ++down) {
            if (lines.weights[down] == 0.0f) continue;
            const T* line = image + (lines.first + static_cast<int64_t>(down)) * g.q * g.c + c0;
            for (size_t right = 0; right < across.weights.size(); ++right) {
              const float weight = lines.weights[down] * across.weights[right];
              if (weight == 0.0f) continue;
              const T* in = line + (across.first + static_cast<int64_t>(right)) * g.c;
#pragma omp simd
              for (int32_t j = 0; j < count; ++j) sum[j] += weight * to_float(in[j]);
            }
          }
          for (int32_t j = 0; j < count; ++j) out[c0 + j] = from_float<T>(sum[j]);
        });
      }
    }
  });
}

BilinearAxes bilinear_axes(const ResizeGeometry& g, int32_t align_corners, double scale_h, double scale_w) {
  check_range(align_corners, 0, 1, "align_corners");
  return {bilinear_axis(g.h, g.p, align_corners != 0, scale_h, "scale_h"),
          bilinear_axis(g.w, g.q, align_corners != 0, scale_w, "scale_w")};
}

}  // namespace

}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_upsample_nearest_forward(dlfs_stream stream, void* y, const void* x, int32_t n, int32_t h,
                                                     int32_t w, int32_t c, int32_t p, int32_t q, dlfs_dtype dtype) {
  return on_stream("dlfs_upsample_nearest_forward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    const ResizeGeometry g = resize_geometry(n, h, w, c, p, q);
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
    const ResizeGeometry g = resize_geometry(n, h, w, c, p, q);
    check_pointer(dx, "dx");
    check_pointer(dy, "dy");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] { upsample_backward(g, static_cast<T*>(dx), static_cast<const T*>(dy)); });
    });
  });
}

extern "C" dlfs_status dlfs_upsample_bilinear_forward(dlfs_stream stream, void* y, const void* x, int32_t n,
                                                      int32_t h, int32_t w, int32_t c, int32_t p, int32_t q,
                                                      int32_t align_corners, dlfs_dtype dtype, double scale_h,
                                                      double scale_w) {
  return on_stream("dlfs_upsample_bilinear_forward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    const ResizeGeometry g = resize_geometry(n, h, w, c, p, q);
    const BilinearAxes axes = bilinear_axes(g, align_corners, scale_h, scale_w);
    check_pointer(y, "y");
    check_pointer(x, "x");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] { bilinear_forward(g, axes, static_cast<T*>(y), static_cast<const T*>(x)); });
    });
  });
}

extern "C" dlfs_status dlfs_upsample_bilinear_backward(dlfs_stream stream, void* dx, const void* dy, int32_t n,
                                                       int32_t h, int32_t w, int32_t c, int32_t p, int32_t q,
                                                       int32_t align_corners, dlfs_dtype dtype, double scale_h,
                                                       double scale_w) {
  return on_stream("dlfs_upsample_bilinear_backward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    const ResizeGeometry g = resize_geometry(n, h, w, c, p, q);
    const BilinearAxes axes = bilinear_axes(g, align_corners, scale_h, scale_w);
    check_pointer(dx, "dx");
    check_pointer(dy, "dy");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] { bilinear_backward(g, axes, static_cast<T*>(dx), static_cast<const T*>(dy)); });
    });
  });
}
