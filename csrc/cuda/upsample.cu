// Nearest-neighbour resampling of NHWC (torch's "nearest"): the source of output row p is floor(p * H / P). Backward:
// one thread per input pixel and channel vector sums the outputs that read it, in fp32 and in a fixed order.
#include "common/geometry.hpp"
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

template <class T, int V, class Index>
__global__ void __launch_bounds__(256, 4)
    upsample_kernel(T* y, const T* x, Axis vertical, Axis horizontal, Index rows, int32_t c) {
  for_rows(rows, c / V, [&](Index row, int32_t vector) {
    const Index line = row / static_cast<Index>(horizontal.out);
    const int32_t q = static_cast<int32_t>(row % static_cast<Index>(horizontal.out));
    const int32_t p = static_cast<int32_t>(line % static_cast<Index>(vertical.out));
    const int64_t n = static_cast<int64_t>(line / static_cast<Index>(vertical.out));
    const int64_t from = (n * vertical.in + vertical.source(p)) * horizontal.in + horizontal.source(q);
    using Vector = Pack<T, V>;
    *reinterpret_cast<Vector*>(y + static_cast<int64_t>(row) * c + vector * V) =
        *reinterpret_cast<const Vector*>(x + from * c + vector * V);
  });
}

template <class T, int V, class Index>
__global__ void __launch_bounds__(256, 4)
    upsample_backward_kernel(T* dx, const T* dy, Axis vertical, Axis horizontal, Index rows, int32_t c) {
  for_rows(rows, c / V, [&](Index row, int32_t vector) {
    const Index line = row / static_cast<Index>(horizontal.in);
    const int32_t w = static_cast<int32_t>(row % static_cast<Index>(horizontal.in));
    const int32_t h = static_cast<int32_t>(line % static_cast<Index>(vertical.in));
    const int64_t n = static_cast<int64_t>(line / static_cast<Index>(vertical.in));
    const int32_t last_p = vertical.first(h + 1);
    const int32_t first_q = horizontal.first(w), last_q = horizontal.first(w + 1);
    float sum[V] = {};
    for (int32_t p = vertical.first(h); p < last_p; ++p) {
      for (int32_t q = first_q; q < last_q; ++q) {
        float gradient[V];
        load(gradient, dy + ((n * vertical.out + p) * horizontal.out + q) * c + vector * V);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += gradient[j];
      }
    }
    store(dx + static_cast<int64_t>(row) * c + vector * V, sum);
  });
}

void check_sizes(int32_t n, int32_t h, int32_t w, int32_t c, int32_t p, int32_t q) {
  check_size(n, "n");
  check_size(h, "h");
  check_size(w, "w");
  check_size(c, "c");
  check_size(p, "p");
  check_size(q, "q");
  checked_product({n, h, w, c}, "x");
  checked_product({n, p, q, c}, "y");
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_upsample_nearest_forward(dlfs_stream stream, void* y, const void* x, int32_t n, int32_t h, int32_t w,
                                          int32_t c, int32_t p, int32_t q, dlfs_dtype dtype) {
  return stream_call("dlfs_upsample_nearest_forward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_sizes(n, h, w, c, p, q);
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
    check_sizes(n, h, w, c, p, q);
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

}  // extern "C"
