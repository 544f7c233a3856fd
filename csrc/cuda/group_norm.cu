// Group normalization of (N, rows, C). Statistics and sums are taken per image and channel by the kernels of norm.cuh,
// which read whole rows; a small kernel joins the channels and splits of each group; one more pass applies the result.
// So forward reads x twice and writes y once, backward reads its operands twice and writes dx once.
#include "common/group_norm.hpp"
#include "cuda/norm.cuh"

namespace dlfs {
namespace {

constexpr int group_threads = 128;

// Sum over a block of group_threads threads, in every thread; a fixed order.
__device__ __forceinline__ double block_sum(double value) {
  __shared__ double shared[group_threads];
  shared[threadIdx.x] = value;
  __syncthreads();
  for (unsigned half = group_threads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  const double total = shared[0];
  __syncthreads();
  return total;
}

// Blocks that take one group of one image each: body(image, group), in a strided loop.
template <class Body>
__device__ __forceinline__ void for_my_groups(const GroupNormGeometry& g, Body&& body) {
  const int64_t count = static_cast<int64_t>(g.n) * g.groups;
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) body(i / g.groups, static_cast<int32_t>(i % g.groups));
}

dim3 groups_grid(const GroupNormGeometry& g) {
  return dim3(static_cast<unsigned>(std::min<int64_t>(int64_t{g.n} * g.groups, INT32_MAX)));
}

// Sum of term(split, channel) over the splits and the channels of a group, in every thread.
template <class Term>
__device__ __forceinline__ double sum_group(const GroupNormGeometry& g, int32_t group, int64_t splits, Term&& term) {
  const int64_t width = g.per_group();
  double sum = 0;
  for (int64_t i = threadIdx.x; i < splits * width; i += group_threads) {
    sum += term(i / width, static_cast<int32_t>(group * width + i % width));
  }
  return block_sum(sum);
}

// ---- forward ------------------------------------------------------------------------------------------------------

// partial (N, 2, splits, C) from statistics_kernel; save_mean, save_invstd (N, groups).
__global__ void __launch_bounds__(group_threads)
    finish_statistics_kernel(float* save_mean, float* save_invstd, const float* partial, GroupNormGeometry g,
                             int64_t splits, int32_t ty, double eps) {
  const double count = static_cast<double>(g.rows) * g.per_group();
  for_my_groups(g, [&](int64_t image, int32_t group) {
    const float* const means = partial + image * 2 * splits * g.c;
    const float* const squares = means + splits * g.c;
    const auto rows_of = [&](int64_t split) { return static_cast<double>(split_rows(g.rows, split, splits, ty)); };
    const double mean = sum_group(g, group, splits, [&](int64_t split, int32_t channel) {
                          return means[split * g.c + channel] * rows_of(split);
                        }) /
                        count;
    const double m2 = sum_group(g, group, splits, [&](int64_t split, int32_t channel) {
      const double delta = means[split * g.c + channel] - mean;
      return squares[split * g.c + channel] + delta * delta * rows_of(split);
    });
    if (threadIdx.x != 0) return;
    save_mean[image * g.groups + group] = static_cast<float>(mean);
    save_invstd[image * g.groups + group] = static_cast<float>(1.0 / sqrt(m2 / count + eps));
  });
}

template <class T, int V, bool relu>
__global__ void __launch_bounds__(channel_threads)
    group_normalize_kernel(T* y, const T* x, const float* weight, const float* bias, const float* mean,
                           const float* invstd, GroupNormGeometry g) {
  const int32_t channel = static_cast<int32_t>((static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V);
  if (channel >= g.c) return;
  float gain[V], shift[V];
  load_channels(gain, weight + channel);
  load_channels(shift, bias + channel);
  for_my_images(g.n, [&](int64_t image) {
    float centre[V], factor[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const int64_t group = image * g.groups + (channel + j) / g.per_group();
      centre[j] = mean[group];
      factor[j] = invstd[group] * gain[j];
    }
    for_my_rows(g.rows, [&](int64_t row) {
      const int64_t at = (image * g.rows + row) * g.c + channel;
      float value[V];
      load(value, x + at);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        value[j] = (value[j] - centre[j]) * factor[j] + shift[j];
        if constexpr (relu) value[j] = activate<DLFS_ACT_RELU>(value[j]);
      }
      store(y + at, value);
    });
  });
}

// ---- backward -----------------------------------------------------------------------------------------------------

// Sums of the masked dy, and of it times x - mean.
template <class T, int V, bool relu>
struct GroupGradientSums {
  const T* dy;
  const T* x;
  const T* y;  // read with ReLU
  const float* mean;
  int32_t groups, per_group, c;
  float centre[V];

  struct Fetched {
    Pack<T, V> dy, x, y;
  };

  __device__ __forceinline__ void begin(int64_t image, int32_t channel) {
#pragma unroll
    for (int j = 0; j < V; ++j) centre[j] = mean[image * groups + (channel + j) / per_group];
  }
  __device__ __forceinline__ Fetched fetch(int64_t row, int32_t channel) const {
    const int64_t at = row * c + channel;
    Fetched fetched;
    fetched.dy = load_pack<V>(dy + at);
    fetched.x = load_pack<V>(x + at);
    if constexpr (relu) fetched.y = load_pack<V>(y + at);
    return fetched;
  }
  __device__ __forceinline__ void add(float (&sums)[2][V], int64_t, int32_t, const Fetched& fetched) const {
    float gradient[V], value[V], out[V];
    unpack(gradient, fetched.dy);
    unpack(value, fetched.x);
    if constexpr (relu) unpack(out, fetched.y);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if constexpr (relu) gradient[j] = out[j] <= 0.0f ? 0.0f : gradient[j];
      sums[0][j] += gradient[j];
      sums[1][j] += gradient[j] * (value[j] - centre[j]);
    }
  }
};

// partial (N, 2, splits, C): dbias = sum of dy, dweight = sum of dy (x - mean) invstd, over all images.
__global__ void __launch_bounds__(1024)
    finish_parameters_kernel(float* dweight, float* dbias, const float* partial, const float* invstd,
                             GroupNormGeometry g, int64_t splits) {
  const int32_t channel = static_cast<int32_t>(blockIdx.x * 32 + threadIdx.x);
  const bool active = channel < g.c;
  const auto term = [&](int64_t i, int which) {
    return static_cast<double>(partial[((i / splits * 2 + which) * splits + i % splits) * g.c + channel]);
  };
  const double sum = sum_splits(g.n * splits, active, [&](int64_t i) { return term(i, 0); });
  const double product = sum_splits(g.n * splits, active, [&](int64_t i) {
    return term(i, 1) * invstd[i / splits * g.groups + channel / g.per_group()];
  });
  if (!active || threadIdx.y != 0) return;
  dbias[channel] = static_cast<float>(sum);
  dweight[channel] = static_cast<float>(product);
}

// means (N, groups, 2), over the values of a group: of weight dy, times invstd; and of weight dy (x - mean), times
// invstd^3.
__global__ void __launch_bounds__(group_threads)
    finish_means_kernel(float* means, const float* partial, const float* weight, const float* invstd,
                        GroupNormGeometry g, int64_t splits) {
  const double count = static_cast<double>(g.rows) * g.per_group();
  for_my_groups(g, [&](int64_t image, int32_t group) {
    const float* const sums = partial + image * 2 * splits * g.c;
    const float* const products = sums + splits * g.c;
    const auto weighted = [&](const float* values) {
      return sum_group(g, group, splits, [&](int64_t split, int32_t channel) {
        return static_cast<double>(values[split * g.c + channel]) * weight[channel];
      });
    };
    const double sum = weighted(sums);
    const double product = weighted(products);
    if (threadIdx.x != 0) return;
    const int64_t at = image * g.groups + group;
    const double spread = invstd[at];
    means[2 * at] = static_cast<float>(sum * spread / count);
    means[2 * at + 1] = static_cast<float>(product * spread * spread * spread / count);
  });
}

// dx = weight invstd dy - means[0] - (x - mean) means[1], dy masked.
template <class T, int V, bool relu>
__global__ void __launch_bounds__(channel_threads)
    group_input_gradient_kernel(T* dx, const T* dy, const T* x, const T* y, const float* weight, const float* mean,
                                const float* invstd, const float* means, GroupNormGeometry g) {
  const int32_t channel = static_cast<int32_t>((static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V);
  if (channel >= g.c) return;
  float gain[V];
  load_channels(gain, weight + channel);
  for_my_images(g.n, [&](int64_t image) {
    float centre[V], factor[V], average[V], slope[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const int64_t group = image * g.groups + (channel + j) / g.per_group();
      centre[j] = mean[group];
      factor[j] = invstd[group] * gain[j];
      average[j] = means[2 * group];
      slope[j] = means[2 * group + 1];
    }
    for_my_rows(g.rows, [&](int64_t row) {
      const int64_t at = (image * g.rows + row) * g.c + channel;
      float gradient[V], value[V];
      load(gradient, dy + at);
      load(value, x + at);
      if constexpr (relu) mask_relu(gradient, y + at);
#pragma unroll
      for (int j = 0; j < V; ++j) value[j] = factor[j] * gradient[j] - average[j] - (value[j] - centre[j]) * slope[j];
      store(dx + at, value);
    });
  });
}

// Where the partial results end and finish_means_kernel's begin: a multiple of 256 bytes.
int64_t means_offset(const Context& context, const GroupNormGeometry& g) {
  return ceil_div<int64_t>(partial_bytes(context, g.rows, g.c, 2, g.n), 256) * 256;
}

int64_t workspace_bytes(const Context& context, const GroupNormGeometry& g) {
  return means_offset(context, g) + int64_t{2} * g.n * g.groups * static_cast<int64_t>(sizeof(float));
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_group_norm_workspace(dlfs_context ctx, int64_t* out, int32_t n, int64_t rows, int32_t c,
                                      int32_t groups, dlfs_dtype dtype) {
  return context_call("dlfs_group_norm_workspace", ctx, [&](Context& context) {
    check_pointer(out, "out");
    const GroupNormGeometry g = group_norm_geometry(n, rows, c, groups, dtype);
    *out = workspace_bytes(context, g);
  });
}

dlfs_status dlfs_group_norm_forward(dlfs_stream stream, void* y, float* save_mean, float* save_invstd, const void* x,
                                    const float* weight, const float* bias, void* workspace, int32_t n, int64_t rows,
                                    int32_t c, int32_t groups, dlfs_dtype dtype, double eps,
                                    dlfs_activation activation) {
  return stream_call("dlfs_group_norm_forward", stream, [&](Stream& s) {
    const GroupNormGeometry g = group_norm_geometry(n, rows, c, groups, dtype);
    check_group_norm(GroupNormForward{y, save_mean, save_invstd, x, weight, bias, eps, activation});
    check_workspace(workspace, workspace_bytes(*s.context, g));
    float* const partial = static_cast<float*>(workspace);
    dispatch_channels(dtype, c, aligned16({x, y}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      const ChannelGrid r = reduce_grid(*s.context, rows, c / V, n);
      const ChannelGrid a = apply_grid(*s.context, rows, c / V, n);
      launch(s, r.grid(), r.block(), 0, statistics_kernel<T, V>, partial, static_cast<float*>(nullptr),
             static_cast<const T*>(x), rows, c, n);
      launch(s, groups_grid(g), dim3(group_threads), 0, finish_statistics_kernel, save_mean, save_invstd, partial, g,
             static_cast<int64_t>(r.splits), r.ty, eps);
      const auto run = [&](auto kernel) {
        launch(s, a.grid(), a.block(), 0, kernel, static_cast<T*>(y), static_cast<const T*>(x), weight, bias, save_mean,
               save_invstd, g);
      };
      activation == DLFS_ACT_RELU ? run(group_normalize_kernel<T, V, true>) : run(group_normalize_kernel<T, V, false>);
    });
  });
}

dlfs_status dlfs_group_norm_backward(dlfs_stream stream, void* dx, float* dweight, float* dbias, const void* dy,
                                     const void* x, const void* y, const float* weight, const float* save_mean,
                                     const float* save_invstd, void* workspace, int32_t n, int64_t rows, int32_t c,
                                     int32_t groups, dlfs_dtype dtype, dlfs_activation activation) {
  return stream_call("dlfs_group_norm_backward", stream, [&](Stream& s) {
    const GroupNormGeometry g = group_norm_geometry(n, rows, c, groups, dtype);
    check_group_norm(GroupNormBackward{dx, dweight, dbias, dy, x, y, weight, save_mean, save_invstd, activation});
    check_workspace(workspace, workspace_bytes(*s.context, g));
    float* const partial = static_cast<float*>(workspace);
    float* const means = reinterpret_cast<float*>(static_cast<char*>(workspace) + means_offset(*s.context, g));
    const void* const mask = activation == DLFS_ACT_RELU ? y : nullptr;
    dispatch_channels(dtype, c, aligned16({dx, dy, x, mask}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      const ChannelGrid r = reduce_grid(*s.context, rows, c / V, n);
      const ChannelGrid a = apply_grid(*s.context, rows, c / V, n);
      const int64_t splits = r.splits;
      const auto run = [&](auto flag) {
        constexpr bool masked = decltype(flag)::value;
        using Sums = GroupGradientSums<T, V, masked>;
        Sums sums{};
        sums.dy = static_cast<const T*>(dy);
        sums.x = static_cast<const T*>(x);
        sums.y = static_cast<const T*>(mask);
        sums.mean = save_mean;
        sums.groups = groups;
        sums.per_group = g.per_group();
        sums.c = c;
        launch(s, r.grid(), r.block(), 0, channel_sums_kernel<2, V, Sums>, partial, rows, c, n, sums);
        launch(s, finish_grid(c), finish_block, 0, finish_parameters_kernel, dweight, dbias, partial, save_invstd, g,
               splits);
        launch(s, groups_grid(g), dim3(group_threads), 0, finish_means_kernel, means, partial, weight, save_invstd, g,
               splits);
        launch(s, a.grid(), a.block(), 0, group_input_gradient_kernel<T, V, masked>, static_cast<T*>(dx), sums.dy,
               sums.x, sums.y, weight, save_mean, save_invstd, means, g);
      };
      if (mask) {
        run(std::true_type{});
      } else {
        run(std::false_type{});
      }
    });
  });
}

}  // extern "C"
