// Max and average pooling on the CPU. Every pass gathers: a thread owns whole rows of what it writes, sums are fp32 in
// a fixed order, and nothing is cleared first. Loops run over chunks of channels that fit the vector registers.
#include <cmath>

#include "common/geometry.hpp"
#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {

namespace {

// Calls body(image, row) for all rows of (n, rows), in parallel; row_work is the number of elements read for one row.
template <class Body>
void for_each_row(int32_t n, int32_t rows, int64_t row_work, const Body& body) {
  parallel_for(int64_t{n} * rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, row_work)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i)
                   body(static_cast<int32_t>(i / rows), static_cast<int32_t>(i % rows));
               });
}

// Half-open range of integers.
struct Range {
  int32_t begin, end;
  int32_t size() const { return end - begin; }
};

// Pixels of the image under window `position`.
Range window_pixels(int32_t position, int32_t window, int32_t stride, int32_t pad, int32_t size) {
  const int64_t start = int64_t{position} * stride - pad;
  return {static_cast<int32_t>(std::max<int64_t>(0, start)),
          static_cast<int32_t>(std::min<int64_t>(size, start + window))};
}

// Windows that cover a pixel.
Range covering_windows(int32_t pixel, int32_t window, int32_t stride, int32_t pad, int32_t windows) {
  const int64_t padded = int64_t{pixel} + pad;
  const int64_t first = padded < window ? 0 : (padded - window) / stride + 1;
  return {static_cast<int32_t>(std::min<int64_t>(first, windows)),
          static_cast<int32_t>(std::min<int64_t>(windows, padded / stride + 1))};
}

template <class T>
void max_pool_forward(const PoolGeometry& g, T* y, uint8_t* index, const T* x) {
  for_each_row(g.n, g.p, int64_t{g.q} * g.c * g.r * g.s, [&](int32_t n, int32_t p) {
    const Range rows = window_pixels(p, g.r, g.stride_h, g.pad_h, g.h);
    const int32_t top = p * g.stride_h - g.pad_h;
    for (int32_t q = 0; q < g.q; ++q) {
      const Range columns = window_pixels(q, g.s, g.stride_w, g.pad_w, g.w);
      const int32_t left = q * g.stride_w - g.pad_w;
      const int64_t out = ((int64_t{n} * g.p + p) * g.q + q) * g.c;
      for_each_chunk(g.c, [&](auto width, int32_t c0) {
        const int32_t count = width;
        const T* corner = x + ((int64_t{n} * g.h + rows.begin) * g.w + columns.begin) * g.c + c0;
        float best[channel_chunk];
        int32_t winner[channel_chunk];
        for (int32_t j = 0; j < count; ++j) {
          best[j] = to_float(corner[j]);
          winner[j] = (rows.begin - top) * g.s + (columns.begin - left);
        }
        for (int32_t h = rows.begin; h < rows.end; ++h) {
          for (int32_t w = columns.begin; w < columns.end; ++w) {
            const T* in = x + ((int64_t{n} * g.h + h) * g.w + w) * g.c + c0;
            const int32_t position = (h - top) * g.s + (w - left);
#pragma omp simd
            for (int32_t j = 0; j < count; ++j) {
              const float value = to_float(in[j]);
              const bool wins = !(value <= best[j]) && best[j] == best[j];  // larger, or the first NaN
              best[j] = wins ? value : best[j];
              winner[j] = wins ? position : winner[j];
            }
          }
        }
        for (int32_t j = 0; j < count; ++j) y[out + c0 + j] = from_float<T>(best[j]);
        if (!index) return;
        for (int32_t j = 0; j < count; ++j) index[out + c0 + j] = static_cast<uint8_t>(winner[j]);
      });
    }
  });
}

// dx[pixel] = sum over the windows that cover it: add(width, sum, offset of dy, position of the
// pixel in the window, p, q) adds the part of window (p, q) for `width` channels.
template <class T, class Add>
void gather_windows(const PoolGeometry& g, T* dx, const Add& add) {
  const int64_t covering = int64_t{(g.r + g.stride_h - 1) / g.stride_h} * ((g.s + g.stride_w - 1) / g.stride_w);
  for_each_row(g.n, g.h, int64_t{g.w} * g.c * covering, [&](int32_t n, int32_t h) {
    const Range rows = covering_windows(h, g.r, g.stride_h, g.pad_h, g.p);
    for (int32_t w = 0; w < g.w; ++w) {
      const Range columns = covering_windows(w, g.s, g.stride_w, g.pad_w, g.q);
      T* out = dx + ((int64_t{n} * g.h + h) * g.w + w) * g.c;
      for_each_chunk(g.c, [&](auto width, int32_t c0) {
        const int32_t count = width;
        float sum[channel_chunk] = {};
        for (int32_t p = rows.begin; p < rows.end; ++p) {
          for (int32_t q = columns.begin; q < columns.end; ++q) {
            const int32_t position = (h + g.pad_h - p * g.stride_h) * g.s + (w + g.pad_w - q * g.stride_w);
            add(width, sum, ((int64_t{n} * g.p + p) * g.q + q) * g.c + c0, position, p, q);
          }
        }
        for (int32_t j = 0; j < count; ++j) out[c0 + j] = from_float<T>(sum[j]);
      });
    }
  });
}

template <class T>
void max_pool_backward(const PoolGeometry& g, T* dx, const T* dy, const uint8_t* index) {
  gather_windows(g, dx, [=](auto width, float* sum, int64_t offset, int32_t position, int32_t, int32_t) {
    const int32_t count = width;
#pragma omp simd
    for (int32_t j = 0; j < count; ++j) {
      const float gradient = to_float(dy[offset + j]);  // read in any case, so that the loop has no branch
      sum[j] += static_cast<int32_t>(index[offset + j]) == position ? gradient : 0.0f;
    }
  });
}

// 1 / (number of pixels that the mean of window (p, q) divides by).
float window_weight(const PoolGeometry& g, int32_t p, int32_t q, bool count_include_pad) {
  const int64_t pixels = count_include_pad ? int64_t{g.r} * g.s
                                           : int64_t{window_pixels(p, g.r, g.stride_h, g.pad_h, g.h).size()} *
                                                 window_pixels(q, g.s, g.stride_w, g.pad_w, g.w).size();
  return 1.0f / static_cast<float>(pixels);
}

template <class T>
void avg_pool_forward(const PoolGeometry& g, T* y, const T* x, bool count_include_pad) {
  for_each_row(g.n, g.p, int64_t{g.q} * g.c * g.r * g.s, [&](int32_t n, int32_t p) {
    const Range rows = window_pixels(p, g.r, g.stride_h, g.pad_h, g.h);
    for (int32_t q = 0; q < g.q; ++q) {
      const Range columns = window_pixels(q, g.s, g.stride_w, g.pad_w, g.w);
      const float weight = window_weight(g, p, q, count_include_pad);
      T* out = y + ((int64_t{n} * g.p + p) * g.q + q) * g.c;
      for_each_chunk(g.c, [&](auto width, int32_t c0) {
        const int32_t count = width;
        float sum[channel_chunk] = {};
        for (int32_t h = rows.begin; h < rows.end; ++h) {
          for (int32_t w = columns.begin; w < columns.end; ++w) {
            const T* in = x + ((int64_t{n} * g.h + h) * g.w + w) * g.c + c0;
#pragma omp simd
            for (int32_t j = 0; j < count; ++j) sum[j] += to_float(in[j]);
          }
        }
        for (int32_t j = 0; j < count; ++j) out[c0 + j] = from_float<T>(sum[j] * weight);
      });
    }
  });
}

template <class T>
void avg_pool_backward(const PoolGeometry& g, T* dx, const T* dy, bool count_include_pad) {
  gather_windows(g, dx, [=, &g](auto width, float* sum, int64_t offset, int32_t, int32_t p, int32_t q) {
    const int32_t count = width;
    const float weight = window_weight(g, p, q, count_include_pad);
#pragma omp simd
    for (int32_t j = 0; j < count; ++j) sum[j] += to_float(dy[offset + j]) * weight;
  });
}

}  // namespace

}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_max_pool_forward(dlfs_stream stream, void* y, void* index, const void* x, int32_t n,
                                             int32_t h, int32_t w, int32_t c, int32_t r, int32_t s, int32_t stride_h,
                                             int32_t stride_w, int32_t pad_h, int32_t pad_w, dlfs_dtype dtype) {
  return on_stream("dlfs_max_pool_forward", stream, [&](Stream& st) {
    check_float_dtype(dtype);
    const PoolGeometry g = pool_geometry(n, h, w, c, r, s, stride_h, stride_w, pad_h, pad_w, 255);
    check_pointer(y, "y");
    check_pointer(x, "x");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      st.enqueue(
          [=] { max_pool_forward(g, static_cast<T*>(y), static_cast<uint8_t*>(index), static_cast<const T*>(x)); });
    });
  });
}

extern "C" dlfs_status dlfs_max_pool_backward(dlfs_stream stream, void* dx, const void* dy, const void* index,
                                              int32_t n, int32_t h, int32_t w, int32_t c, int32_t r, int32_t s,
                                              int32_t stride_h, int32_t stride_w, int32_t pad_h, int32_t pad_w,
                                              dlfs_dtype dtype) {
  return on_stream("dlfs_max_pool_backward", stream, [&](Stream& st) {
    check_float_dtype(dtype);
    const PoolGeometry g = pool_geometry(n, h, w, c, r, s, stride_h, stride_w, pad_h, pad_w, 255);
    check_pointer(dx, "dx");
    check_pointer(dy, "dy");
    check_pointer(index, "index");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      st.enqueue([=] {
        max_pool_backward(g, static_cast<T*>(dx), static_cast<const T*>(dy), static_cast<const uint8_t*>(index));
      });
    });
  });
}

extern "C" dlfs_status dlfs_avg_pool_forward(dlfs_stream stream, void* y, const void* x, int32_t n, int32_t h,
                                             int32_t w, int32_t c, int32_t r, int32_t s, int32_t stride_h,
                                             int32_t stride_w, int32_t pad_h, int32_t pad_w, int32_t count_include_pad,
                                             dlfs_dtype dtype) {
  return on_stream("dlfs_avg_pool_forward", stream, [&](Stream& st) {
    check_float_dtype(dtype);
    check_range(count_include_pad, 0, 1, "count_include_pad");
    const PoolGeometry g = pool_geometry(n, h, w, c, r, s, stride_h, stride_w, pad_h, pad_w, INT32_MAX);
    check_pointer(y, "y");
    check_pointer(x, "x");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      st.enqueue([=] { avg_pool_forward(g, static_cast<T*>(y), static_cast<const T*>(x), count_include_pad != 0); });
    });
  });
}

extern "C" dlfs_status dlfs_avg_pool_backward(dlfs_stream stream, void* dx, const void* dy, int32_t n, int32_t h,
                                              int32_t w, int32_t c, int32_t r, int32_t s, int32_t stride_h,
                                              int32_t stride_w, int32_t pad_h, int32_t pad_w, int32_t count_include_pad,
                                              dlfs_dtype dtype) {
  return on_stream("dlfs_avg_pool_backward", stream, [&](Stream& st) {
    check_float_dtype(dtype);
    check_range(count_include_pad, 0, 1, "count_include_pad");
    const PoolGeometry g = pool_geometry(n, h, w, c, r, s, stride_h, stride_w, pad_h, pad_w, INT32_MAX);
    check_pointer(dx, "dx");
    check_pointer(dy, "dy");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      st.enqueue([=] { avg_pool_backward(g, static_cast<T*>(dx), static_cast<const T*>(dy), count_include_pad != 0); });
    });
  });
}
