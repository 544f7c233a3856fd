// Maximum and mean over windows, forward and backward, NHWC: parallel over image rows, vectorised over channels. The backward
// passes scatter within one image, so that overlapping windows add in a fixed order.
#include <vector>

#include "common/geometry.hpp"
#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {
namespace {

struct Span {
  int32_t begin, end;  // the part of a window inside the image
};

inline Span window_span(int32_t out, int32_t stride, int32_t pad, int32_t window, int32_t size) {
  const int32_t start = out * stride - pad;
  return {std::max(start, 0), std::min(start + window, size)};
}

// y (N, P, Q, C), index (N, P, Q, C) uint8 or null, x (N, H, W, C)
template <class T>
void max_pool_forward(const PoolGeometry& g, T* y, uint8_t* index, const T* x) {
  parallel_for(int64_t{g.n} * g.p, 1, [=, &g](int64_t begin, int64_t end) {
    std::vector<float> best(static_cast<size_t>(g.c));
    std::vector<uint8_t> winner(static_cast<size_t>(g.c));
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / g.p;
      const int32_t p = static_cast<int32_t>(row % g.p);
      const Span rows = window_span(p, g.stride_h, g.pad_h, g.r, g.h);
      for (int32_t q = 0; q < g.q; ++q) {
        const Span columns = window_span(q, g.stride_w, g.pad_w, g.s, g.w);
        bool first = true;
        for (int32_t h = rows.begin; h < rows.end; ++h) {
          for (int32_t w = columns.begin; w < columns.end; ++w) {
            const T* in = x + ((image * g.h + h) * g.w + w) * g.c;
            const uint8_t place =
                static_cast<uint8_t>((h - (p * g.stride_h - g.pad_h)) * g.s + (w - (q * g.stride_w - g.pad_w)));
            for (int32_t c = 0; c < g.c; ++c) {
              const float value = load(in + c);
              // The first of equals stays; a NaN wins against numbers, and stays.
              const bool wins = first || value > best[c] || (value != value && best[c] == best[c]);
              best[c] = wins ? value : best[c];
              winner[c] = wins ? place : winner[c];
            }
            first = false;
          }
        }
        const int64_t out = (row * g.q + q) * g.c;
        for (int32_t c = 0; c < g.c; ++c) store(y + out + c, best[c]);
        if (index) std::copy(winner.begin(), winner.end(), index + out);
      }
    }
  });
}

// dx (N, H, W, C) = sum of dy over the windows that this pixel won, in the order of the windows.
template <class T>
void max_pool_backward(const PoolGeometry& g, T* dx, const T* dy, const uint8_t* index) {
  parallel_for(int64_t{g.n} * g.h, 1, [=, &g](int64_t begin, int64_t end) {
    std::vector<float> sum(static_cast<size_t>(g.c));
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / g.h;
      const int32_t h = static_cast<int32_t>(row % g.h);
      const int32_t p_first = std::max(0, (h + g.pad_h - g.r + g.stride_h) / g.stride_h);
      const int32_t p_last = std::min(g.p - 1, (h + g.pad_h) / g.stride_h);
      for (int32_t w = 0; w < g.w; ++w) {
        const int32_t q_first = std::max(0, (w + g.pad_w - g.s + g.stride_w) / g.stride_w);
        const int32_t q_last = std::min(g.q - 1, (w + g.pad_w) / g.stride_w);
        std::fill(sum.begin(), sum.end(), 0.0f);
        for (int32_t p = p_first; p <= p_last; ++p) {
          for (int32_t q = q_first; q <= q_last; ++q) {
            const int32_t place = (h - (p * g.stride_h - g.pad_h)) * g.s + (w - (q * g.stride_w - g.pad_w));
            const int64_t out = ((image * g.p + p) * g.q + q) * g.c;
            for (int32_t c = 0; c < g.c; ++c) sum[c] += index[out + c] == place ? load(dy + out + c) : 0.0f;
          }
        }
        T* in = dx + (row * g.w + w) * g.c;
        for (int32_t c = 0; c < g.c; ++c) store(in + c, sum[c]);
      }
    }
  });
}

inline float window_weight(const PoolGeometry& g, Span rows, Span columns, bool count_include_pad) {
  const int64_t area = count_include_pad ? int64_t{g.r} * g.s
                                         : int64_t{rows.end - rows.begin} * (columns.end - columns.begin);
  return 1.0f / static_cast<float>(area);
}

template <class T>
void avg_pool_forward(const PoolGeometry& g, T* y, const T* x, bool count_include_pad) {
  parallel_for(int64_t{g.n} * g.p, 1, [=, &g](int64_t begin, int64_t end) {
    std::vector<float> sum(static_cast<size_t>(g.c));
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / g.p;
      const Span rows = window_span(static_cast<int32_t>(row % g.p), g.stride_h, g.pad_h, g.r, g.h);
      for (int32_t q = 0; q < g.q; ++q) {
        const Span columns = window_span(q, g.stride_w, g.pad_w, g.s, g.w);
        std::fill(sum.begin(), sum.end(), 0.0f);
        for (int32_t h = rows.begin; h < rows.end; ++h) {
          for (int32_t w = columns.begin; w < columns.end; ++w) {
            const T* in = x + ((image * g.h + h) * g.w + w) * g.c;
            for (int32_t c = 0; c < g.c; ++c) sum[c] += load(in + c);
          }
        }
        const float weight = window_weight(g, rows, columns, count_include_pad);
        T* out = y + (row * g.q + q) * g.c;
        for (int32_t c = 0; c < g.c; ++c) store(out + c, sum[c] * weight);
      }
    }
  });
}

template <class T>
void avg_pool_backward(const PoolGeometry& g, T* dx, const T* dy, bool count_include_pad) {
  parallel_for(int64_t{g.n} * g.h, 1, [=, &g](int64_t begin, int64_t end) {
    std::vector<float> sum(static_cast<size_t>(g.c));
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / g.h;
      const int32_t h = static_cast<int32_t>(row % g.h);
      const int32_t p_first = std::max(0, (h + g.pad_h - g.r + g.stride_h) / g.stride_h);
      const int32_t p_last = std::min(g.p - 1, (h + g.pad_h) / g.stride_h);
      for (int32_t w = 0; w < g.w; ++w) {
        const int32_t q_first = std::max(0, (w + g.pad_w - g.s + g.stride_w) / g.stride_w);
        const int32_t q_last = std::min(g.q - 1, (w + g.pad_w) / g.stride_w);
        std::fill(sum.begin(), sum.end(), 0.0f);
        for (int32_t p = p_first; p <= p_last; ++p) {
          const Span rows = window_span(p, g.stride_h, g.pad_h, g.r, g.h);
          for (int32_t q = q_first; q <= q_last; ++q) {
            const Span columns = window_span(q, g.stride_w, g.pad_w, g.s, g.w);
            const float weight = window_weight(g, rows, columns, count_include_pad);
            const T* out = dy + ((image * g.p + p) * g.q + q) * g.c;
            for (int32_t c = 0; c < g.c; ++c) sum[c] += load(out + c) * weight;
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

extern "C" dlfs_status dlfs_max_pool_forward(dlfs_stream stream, void* y, void* index, const void* x, int32_t n, int32_t h,
                                             int32_t w, int32_t c, int32_t r, int32_t s, int32_t stride_h, int32_t stride_w,
                                             int32_t pad_h, int32_t pad_w, dlfs_dtype dtype) {
  return on_stream("dlfs_max_pool_forward", stream, [&](Stream& st) {
    const PoolGeometry g = pool_geometry(n, h, w, c, r, s, stride_h, stride_w, pad_h, pad_w, 255);
    dispatch_float(dtype, [](auto) {});
    check_pointer(y, "y");
    check_pointer(x, "x");
    st.enqueue([=] {
      dispatch_float(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        max_pool_forward(g, static_cast<T*>(y), static_cast<uint8_t*>(index), static_cast<const T*>(x));
      });
    });
  });
}

extern "C" dlfs_status dlfs_max_pool_backward(dlfs_stream stream, void* dx, const void* dy, const void* index, int32_t n,
                                              int32_t h, int32_t w, int32_t c, int32_t r, int32_t s, int32_t stride_h,
                                              int32_t stride_w, int32_t pad_h, int32_t pad_w, dlfs_dtype dtype) {
  return on_stream("dlfs_max_pool_backward", stream, [&](Stream& st) {
    const PoolGeometry g = pool_geometry(n, h, w, c, r, s, stride_h, stride_w, pad_h, pad_w, 255);
    dispatch_float(dtype, [](auto) {});
    check_pointer(dx, "dx");
    check_pointer(dy, "dy");
    check_pointer(index, "index");
    st.enqueue([=] {
      dispatch_float(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        max_pool_backward(g, static_cast<T*>(dx), static_cast<const T*>(dy), static_cast<const uint8_t*>(index));
      });
    });
  });
}

extern "C" dlfs_status dlfs_avg_pool_forward(dlfs_stream stream, void* y, const void* x, int32_t n, int32_t h, int32_t w,
                                             int32_t c, int32_t r, int32_t s, int32_t stride_h, int32_t stride_w,
                                             int32_t pad_h, int32_t pad_w, int32_t count_include_pad, dlfs_dtype dtype) {
  return on_stream("dlfs_avg_pool_forward", stream, [&](Stream& st) {
    const PoolGeometry g = pool_geometry(n, h, w, c, r, s, stride_h, stride_w, pad_h, pad_w, INT32_MAX);
    dispatch_float(dtype, [](auto) {});
    check_pointer(y, "y");
    check_pointer(x, "x");
    st.enqueue([=] {
      dispatch_float(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        avg_pool_forward(g, static_cast<T*>(y), static_cast<const T*>(x), count_include_pad != 0);
      });
    });
  });
}

extern "C" dlfs_status dlfs_avg_pool_backward(dlfs_stream stream, void* dx, const void* dy, int32_t n, int32_t h, int32_t w,
                                              int32_t c, int32_t r, int32_t s, int32_t stride_h, int32_t stride_w,
                                              int32_t pad_h, int32_t pad_w, int32_t count_include_pad, dlfs_dtype dtype) {
  return on_stream("dlfs_avg_pool_backward", stream, [&](Stream& st) {
    const PoolGeometry g = pool_geometry(n, h, w, c, r, s, stride_h, stride_w, pad_h, pad_w, INT32_MAX);
    dispatch_float(dtype, [](auto) {});
    check_pointer(dx, "dx");
    check_pointer(dy, "dy");
    st.enqueue([=] {
      dispatch_float(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        avg_pool_backward(g, static_cast<T*>(dx), static_cast<const T*>(dy), count_include_pad != 0);
      });
    });
  });
}
