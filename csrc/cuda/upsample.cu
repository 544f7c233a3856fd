// Resampling of NHWC: nearest-neighbour (torch's "nearest": the source of output row p is floor(p * H / P)) and
// bilinear. Backward: one thread per input pixel and channel vector sums the outputs that read it, in fp32 and in a
// fixed order.
#include "common/bilinear.hpp"
#include "cuda/numeric.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

// One axis, `in` pixels to `out`. Whole factors, the usual case, need no 64-bit division.
struct Axis {
  int32_t in, out;
  int32_t factor;  // out / in where that is whole, else 0

  Axis(int32_t in, int32_t out) : in(in), out(out), factor(out % in == 0 ? out / in : 0) {}

  __device__ __forceinline__ int32_t source(int32_t i) const {
    return factor ? i / factor : nearest_source(i, in, out);
  }
  __device__ __forceinline__ int32_t first(int32_t source) const {
    return factor ? source * factor : nearest_first(source, in, out);
  }
};

// A row (pixel) of an image batch as image, line and column.
template <class Index>
struct Pixel {
  int64_t n;
  int32_t line, column;

  __device__ __forceinline__ Pixel(Index row, int32_t lines, int32_t columns) {
    const Index above = row / static_cast<Index>(columns);
    column = static_cast<int32_t>(row % static_cast<Index>(columns));
    line = static_cast<int32_t>(above % static_cast<Index>(lines));
    n = static_cast<int64_t>(above / static_cast<Index>(lines));
  }
};

template <class T, int V, class Index>
__global__ void __launch_bounds__(256, 4)
    upsample_kernel(T* y, const T* x, Axis vertical, Axis horizontal, Index rows, int32_t c) {
  for_rows(rows, c / V, [&](Index row, int32_t vector) {
    const Pixel<Index> to(row, vertical.out, horizontal.out);
    const int64_t from =
        (to.n * vertical.in + vertical.source(to.line)) * horizontal.in + horizontal.source(to.column);
    using Vector = Pack<T, V>;
    *reinterpret_cast<Vector*>(y + static_cast<int64_t>(row) * c + vector * V) =
        *reinterpret_cast<const Vector*>(x + from * c + vector * V);
  });
}

template <class T, int V, class Index>
__global__ void __launch_bounds__(256, 4)
    upsample_backward_kernel(T* dx, const T* dy, Axis vertical, Axis horizontal, Index rows, int32_t c) {
  for_rows(rows, c / V, [&](Index row, int32_t vector) {
    const Pixel<Index> to(row, vertical.in, horizontal.in);
    const int32_t last_p = vertical.first(to.line + 1);
    const int32_t first_q = horizontal.first(to.column), last_q = horizontal.first(to.column + 1);
    float sum[V] = {};
    for (int32_t p = vertical.first(to.line); p < last_p; ++p) {
      for (int32_t q = first_q; q < last_q; ++q) {
        float gradient[V];
        load(gradient, dy + ((to.n * vertical.out + p) * horizontal.out + q) * c + vector * V);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += gradient[j];
      }
    }
    store(dx + static_cast<int64_t>(row) * c + vector * V, sum);
  });
}

template <class T, int V, class Index>
__global__ void __launch_bounds__(256, 4)
    bilinear_kernel(T* y, const T* x, BilinearAxis vertical, BilinearAxis horizontal, Index rows, int32_t c) {
  for_rows(rows, c / V, [&](Index row, int32_t vector) {
    const Pixel<Index> to(row, vertical.out, horizontal.out);
    const BilinearTap v = vertical.tap(to.line), h = horizontal.tap(to.column);
    const T* const upper = x + (to.n * vertical.in + v.low) * horizontal.in * c + vector * V;
    const T* const lower = x + (to.n * vertical.in + v.high) * horizontal.in * c + vector * V;
    const int64_t left = static_cast<int64_t>(h.low) * c, right = static_cast<int64_t>(h.high) * c;
    float a[V], b[V], d[V], e[V];
    load(a, upper + left);
    load(b, upper + right);
    load(d, lower + left);
    load(e, lower + right);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float above = (1.0f - h.share) * a[j] + h.share * b[j];
      const float below = (1.0f - h.share) * d[j] + h.share * e[j];
      a[j] = (1.0f - v.share) * above + v.share * below;
    }
    store(y + static_cast<int64_t>(row) * c + vector * V, a);
  });
}

template <class T, int V, class Index>
__global__ void __launch_bounds__(256, 4)
    bilinear_backward_kernel(T* dx, const T* dy, BilinearAxis vertical, BilinearAxis horizontal, Index rows,
                             int32_t c) {
  for_rows(rows, c / V, [&](Index row, int32_t vector) {
    const Pixel<Index> to(row, vertical.in, horizontal.in);
    const int32_t last_p = vertical.last(to.line);
    const int32_t first_q = horizontal.first(to.column), last_q = horizontal.last(to.column);
    float sum[V] = {};
    for (int32_t p = vertical.first(to.line); p <= last_p; ++p) {
      const float down = vertical.weight(p, to.line);
      if (down == 0.0f) continue;
      const T* const line = dy + (to.n * vertical.out + p) * horizontal.out * c + vector * V;
      for (int32_t q = first_q; q <= last_q; ++q) {
        const float weight = down * horizontal.weight(q, to.column);
        if (weight == 0.0f) continue;
        float gradient[V];
        load(gradient, line + static_cast<int64_t>(q) * c);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += weight * gradient[j];
      }
    }
    store(dx + static_cast<int64_t>(row) * c + vector * V, sum);
  });
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_upsample_nearest_forward(dlfs_stream stream, void* y, const void* x, int32_t n, int32_t h, int32_t w,
                                          int32_t c, int32_t p, int32_t q, dlfs_dtype dtype) {
  return stream_call("dlfs_upsample_nearest_forward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    resize_geometry(n, h, w, c, p, q);
    check_pointer(y, "y");
    check_pointer(x, "x");
    const int64_t rows = int64_t{n} * p * q;
    dispatch_channels(dtype, c, aligned16({y, x}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      dispatch_index(rows, [&](auto index_tag) {
        using Index = typename decltype(index_tag)::type;
        const RowGrid grid = row_grid(*s.context, rows, c / V);
        launch(s, grid.grid, grid.block, 0, upsample_kernel<T, V, Index>, static_cast<T*>(y), static_cast<const T*>(x),
               Axis(h, p), Axis(w, q), static_cast<Index>(rows), c);
      });
    });
  });
}

dlfs_status dlfs_upsample_nearest_backward(dlfs_stream stream, void* dx, const void* dy, int32_t n, int32_t h,
                                           int32_t w, int32_t c, int32_t p, int32_t q, dlfs_dtype dtype) {
  return stream_call("dlfs_upsample_nearest_backward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    resize_geometry(n, h, w, c, p, q);
    check_pointer(dx, "dx");
    check_pointer(dy, "dy");
    const int64_t rows = int64_t{n} * h * w;
    dispatch_channels(dtype, c, aligned16({dx, dy}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      dispatch_index(rows, [&](auto index_tag) {
        using Index = typename decltype(index_tag)::type;
        const RowGrid grid = row_grid(*s.context, rows, c / V);
        launch(s, grid.grid, grid.block, 0, upsample_backward_kernel<T, V, Index>, static_cast<T*>(dx),
               static_cast<const T*>(dy), Axis(h, p), Axis(w, q), static_cast<Index>(rows), c);
      });
    });
  });
}

dlfs_status dlfs_upsample_bilinear_forward(dlfs_stream stream, void* y, const void* x, int32_t n, int32_t h,
                                           int32_t w, int32_t c, int32_t p, int32_t q, int32_t align_corners,
                                           dlfs_dtype dtype, double scale_h, double scale_w) {
  return stream_call("dlfs_upsample_bilinear_forward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    resize_geometry(n, h, w, c, p, q);
    check_range(align_corners, 0, 1, "align_corners");
    const BilinearAxis vertical = bilinear_axis(h, p, align_corners != 0, scale_h, "scale_h");
    const BilinearAxis horizontal = bilinear_axis(w, q, align_corners != 0, scale_w, "scale_w");
    check_pointer(y, "y");
    check_pointer(x, "x");
    const int64_t rows = int64_t{n} * p * q;
    dispatch_channels(dtype, c, aligned16({y, x}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      dispatch_index(rows, [&](auto index_tag) {
        using Index = typename decltype(index_tag)::type;
        const RowGrid grid = row_grid(*s.context, rows, c / V);
        launch(s, grid.grid, grid.block, 0, bilinear_kernel<T, V, Index>, static_cast<T*>(y),
               static_cast<const T*>(x), vertical, horizontal, static_cast<Index>(rows), c);
      });
    });
  });
}

dlfs_status dlfs_upsample_bilinear_backward(dlfs_stream stream, void* dx, const void* dy, int32_t n, int32_t h,
                                            int32_t w, int32_t c, int32_t p, int32_t q, int32_t align_corners,
                                            dlfs_dtype dtype, double scale_h, double scale_w) {
  return stream_call("dlfs_upsample_bilinear_backward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    resize_geometry(n, h, w, c, p, q);
    check_range(align_corners, 0, 1, "align_corners");
    const BilinearAxis vertical = bilinear_axis(h, p, align_corners != 0, scale_h, "scale_h");
    const BilinearAxis horizontal = bilinear_axis(w, q, align_corners != 0, scale_w, "scale_w");
    check_pointer(dx, "dx");
    check_pointer(dy, "dy");
    const int64_t rows = int64_t{n} * h * w;
    dispatch_channels(dtype, c, aligned16({dx, dy}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      dispatch_index(rows, [&](auto index_tag) {
        using Index = typename decltype(index_tag)::type;
        const RowGrid grid = row_grid(*s.context, rows, c / V);
        launch(s, grid.grid, grid.block, 0, bilinear_backward_kernel<T, V, Index>, static_cast<T*>(dx),
               static_cast<const T*>(dy), vertical, horizontal, static_cast<Index>(rows), c);
      });
    });
  });
}

}  // extern "C"
