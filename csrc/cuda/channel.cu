// Operations on the channels of images (n, rows, C): scaling, sums of products over an image's rows, shuffling.
#include "common/rows.hpp"
#include "cuda/image_sums.cuh"
#include "cuda/numeric.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

// ---- scaling ------------------------------------------------------------------------------------------------------

template <class T, int V, class Index>
__global__ void __launch_bounds__(256)
    channel_scale_kernel(T* y, const T* x, const T* s, Index all_rows, Index rows, int32_t c) {
  for_rows(all_rows, c / V, [&](Index row, int32_t vector) {
    const int64_t at = static_cast<int64_t>(row) * c + vector * V;
    float value[V], factor[V];
    load(value, x + at);
    load(factor, s + static_cast<int64_t>(row / rows) * c + vector * V);
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] *= factor[j];
    store(y + at, value);
  });
}

// ---- sums of products ---------------------------------------------------------------------------------------------

// Where the rows are split, sums go to partial (splits, n, C), else right to out.
template <class T, int V>
struct Dot {
  const T* a;
  const T* b;
  T* out;
  float* partial;
  int64_t n;
  int32_t c;

  __device__ void add(float (&sum)[V], int64_t at) const {
    float left[V], right[V];
    load(left, a + at);
    load(right, b + at);
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] += left[j] * right[j];
  }

  __device__ void write(int64_t image, unsigned split, int64_t channel, const float (&sum)[V]) const {
    if (partial) {
      float* to = partial + (split * n + image) * c + channel;
#pragma unroll
      for (int j = 0; j < V; ++j) to[j] = sum[j];
    } else {
      store(out + image * c + channel, sum);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(256) add_splits_kernel(T* out, const float* partial, int64_t elements, int splits) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * 256;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; i < elements; i += stride) {
    float sum = 0.0f;
#pragma unroll 4
    for (int split = 0; split < splits; ++split) sum += partial[split * elements + i];
    out[i] = from_float<T>(sum);
  }
}

// Bytes of workspace, whatever vector width the addresses allow.
int64_t dot_bytes(const Context& context, int64_t n, int64_t rows, int32_t c) {
  int64_t most = 0;
  for (int width : {8, 4, 1}) {
    if (c % width != 0) continue;
    const int64_t splits = image_sum_grid(context, n, rows, c / width, true).splits;
    if (splits > 1) most = std::max(most, splits);
  }
  return checked_product({most, n, c, static_cast<int64_t>(sizeof(float))}, "the workspace");
}

// ---- shuffling ----------------------------------------------------------------------------------------------------

// One vector of y per thread; what it gathers lies in a few cache lines that its neighbours read too.
template <class T, int V, class Index>
__global__ void __launch_bounds__(256)
    channel_shuffle_kernel(T* y, const T* x, Index rows, int32_t c, int32_t groups) {
  const uint32_t each = static_cast<uint32_t>(c / groups);
  for_rows(rows, c / V, [&](Index row, int32_t vector) {
    const T* in = x + static_cast<int64_t>(row) * c;
    const uint32_t channel = static_cast<uint32_t>(vector) * V;
    uint32_t j = channel / static_cast<uint32_t>(groups);
    uint32_t g = channel % static_cast<uint32_t>(groups);
    Pack<T, V> pack;
#pragma unroll
    for (int k = 0; k < V; ++k) {
      pack.value[k] = in[g * each + j];
      if (++g == static_cast<uint32_t>(groups)) {
        g = 0;
        ++j;
      }
    }
    *reinterpret_cast<Pack<T, V>*>(y + static_cast<int64_t>(row) * c + channel) = pack;
  });
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_channel_scale(dlfs_stream stream, void* y, const void* x, const void* s_, int32_t n, int64_t rows,
                               int32_t c, dlfs_dtype dtype) {
  return stream_call("dlfs_channel_scale", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    if (check_images(n, rows, c) == 0) return;
    check_pointer(y, "y");
    check_pointer(x, "x");
    check_pointer(s_, "s");
    const int64_t all_rows = n * rows;
    dispatch_channels(dtype, c, aligned16({y, x, s_}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      dispatch_index(all_rows, [&](auto index_tag) {
        using Index = typename decltype(index_tag)::type;
        const RowGrid g = row_grid(*s.context, all_rows, c / V);
        launch(s, g.grid, g.block, 0, channel_scale_kernel<T, V, Index>, static_cast<T*>(y), static_cast<const T*>(x),
               static_cast<const T*>(s_), static_cast<Index>(all_rows), static_cast<Index>(rows), c);
      });
    });
  });
}

dlfs_status dlfs_channel_dot_workspace(dlfs_context ctx, int64_t* out, int32_t n, int64_t rows, int32_t c,
                                       dlfs_dtype dtype) {
  return context_call("dlfs_channel_dot_workspace", ctx, [&](Context& context) {
    check_pointer(out, "out");
    check_float_dtype(dtype);
    check_size(rows, "rows");
    *out = check_images(n, rows, c) == 0 ? 0 : dot_bytes(context, n, rows, c);
  });
}

dlfs_status dlfs_channel_dot(dlfs_stream stream, void* out, const void* a, const void* b, void* workspace, int32_t n,
                             int64_t rows, int32_t c, dlfs_dtype dtype) {
  return stream_call("dlfs_channel_dot", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_size(rows, "rows");
    if (check_images(n, rows, c) == 0) return;
    check_pointer(out, "out");
    check_pointer(a, "a");
    check_pointer(b, "b");
    check_workspace(workspace, dot_bytes(*s.context, n, rows, c));
    dispatch_channels(dtype, c, aligned16({out, a, b}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      const ImageSumGrid g = image_sum_grid(*s.context, n, rows, c / V, true);
      float* const partial = g.splits > 1 ? static_cast<float*>(workspace) : nullptr;
      const Dot<T, V> dot{static_cast<const T*>(a), static_cast<const T*>(b), static_cast<T*>(out), partial, n, c};
      launch(s, g.grid(), g.block(), 0, image_sums_kernel<V, Dot<T, V>>, n, rows, c, dot);
      if (!partial) return;
      const int64_t elements = int64_t{n} * c;
      launch(s, grid_size(*s.context, elements, 256), 256, 0, add_splits_kernel<T>, static_cast<T*>(out), partial,
             elements, static_cast<int>(g.splits));
    });
  });
}

dlfs_status dlfs_channel_shuffle(dlfs_stream stream, void* y, const void* x, int64_t rows, int32_t c, int32_t groups,
                                 dlfs_dtype dtype) {
  return stream_call("dlfs_channel_shuffle", stream, [&](Stream& s) {
    if (check_shuffle(y, x, rows, c, groups, dtype) == 0) return;
    dispatch_channels(dtype, c, aligned16({y, x}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      dispatch_index(rows, [&](auto index_tag) {
        using Index = typename decltype(index_tag)::type;
        const RowGrid g = row_grid(*s.context, rows, c / V);
        launch(s, g.grid, g.block, 0, channel_shuffle_kernel<T, V, Index>, static_cast<T*>(y),
               static_cast<const T*>(x), static_cast<Index>(rows), c, groups);
      });
    });
  });
}

}  // extern "C"
