// The sum of two normalized tensors with ReLU, where a residual block's shortcut has a batch normalization of its own. Apart
// from the statistics, forward reads both and writes the result; backward reads the gradient and both tensors for the
// sums, then the other way round for both gradients: neither normalization's result nor the masked gradient is in memory.
#include "common/arguments.hpp"
#include "cuda/batch_norm.cuh"

namespace dlfs {
namespace {

// One of the normalizations.
template <class T>
struct Branch {
  const T* x;
  const float *weight, *bias, *mean, *invstd;
};

template <class T, int V>
struct PairFetched {
  Pack<T, V> dy, x, z;
  uint32_t bits;
};

// ---- forward ------------------------------------------------------------------------------------------------------

template <class T, int V, bool relu>
__global__ void __launch_bounds__(channel_threads, 2)
    join_kernel(T* y, uint8_t* mask, Branch<T> a, Branch<T> b, int64_t rows, int32_t c) {
  const int32_t channel = static_cast<int32_t>((static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V);
  if (channel >= c) return;
  float a_centre[V], a_factor[V], b_centre[V], b_factor[V], shift[V], other[V];
  load_channels(a_centre, a.mean + channel);
  load_channels(b_centre, b.mean + channel);
  load_channels(a_factor, a.invstd + channel);
  load_channels(other, a.weight + channel);
#pragma unroll
  for (int j = 0; j < V; ++j) a_factor[j] *= other[j];
  load_channels(b_factor, b.invstd + channel);
  load_channels(other, b.weight + channel);
#pragma unroll
  for (int j = 0; j < V; ++j) b_factor[j] *= other[j];
  load_channels(shift, a.bias + channel);
  load_channels(other, b.bias + channel);
#pragma unroll
  for (int j = 0; j < V; ++j) shift[j] += other[j];
  for_row_batches<true, 4>(
      rows,
      [&](int64_t row) {
        const int64_t at = row * c + channel;
        PairFetched<T, V> fetched;
        fetched.x = load_pack_once<V>(a.x + at);
        fetched.z = load_pack_once<V>(b.x + at);
        return fetched;
      },
      [&](int64_t row, const PairFetched<T, V>& fetched) {
        float value[V], second[V];
        unpack(value, fetched.x);
        unpack(second, fetched.z);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const float sum = normalized(second[j], b_centre[j], b_factor[j], shift[j]);
          value[j] = normalized(value[j], a_centre[j], a_factor[j], sum);
        }
        if constexpr (relu) store_relu_mask<T>(mask, row, channel, c, value);
        store(y + row * c + channel, value);
      });
}

// ---- backward -----------------------------------------------------------------------------------------------------

// dy, masked where there is a mask, and the distances of x and z from their means.
template <class T, int V, bool masked>
struct PairGradient {
  const T* dy;
  const T* x;
  const T* z;
  const uint8_t* mask;
  const float *x_mean, *z_mean;
  int32_t c;
  float x_centre[V], z_centre[V];

  __device__ __forceinline__ void begin(int64_t, int32_t channel) {
    load_channels(x_centre, x_mean + channel);
    load_channels(z_centre, z_mean + channel);
  }
  template <bool once>
  __device__ __forceinline__ PairFetched<T, V> fetch_row(int64_t row, int32_t channel) const {
    const int64_t at = row * c + channel;
    PairFetched<T, V> fetched;
    fetched.dy = once ? load_pack_once<V>(dy + at) : load_pack<V>(dy + at);
    fetched.x = once ? load_pack_once<V>(x + at) : load_pack<V>(x + at);
    fetched.z = once ? load_pack_once<V>(z + at) : load_pack<V>(z + at);
    if constexpr (masked) fetched.bits = load_bits<V>(mask, row, channel, c);
    return fetched;
  }
  __device__ __forceinline__ PairFetched<T, V> fetch(int64_t row, int32_t channel) const {
    return fetch_row<false>(row, channel);
  }
  __device__ __forceinline__ void unpack_all(float (&gradient)[V], float (&from_x)[V], float (&from_z)[V],
                                             const PairFetched<T, V>& fetched) const {
    unpack(gradient, fetched.dy);
    unpack(from_x, fetched.x);
    unpack(from_z, fetched.z);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if constexpr (masked) gradient[j] = (fetched.bits >> j & 1) != 0 ? gradient[j] : 0.0f;
      from_x[j] -= x_centre[j];
      from_z[j] -= z_centre[j];
    }
  }
  // Sums of the gradient, and of it times the distances.
  __device__ __forceinline__ void add(float (&sums)[3][V], int64_t, int32_t, const PairFetched<T, V>& fetched) const {
    float gradient[V], from_x[V], from_z[V];
    unpack_all(gradient, from_x, from_z, fetched);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      sums[0][j] += gradient[j];
      sums[1][j] += gradient[j] * from_x[j];
      sums[2][j] += gradient[j] * from_z[j];
    }
  }
};

__global__ void __launch_bounds__(1024)
    finish_pair_kernel(float* x_dweight, float* x_dbias, float* z_dweight, float* z_dbias, const float* partial,
                       const float* x_invstd, const float* z_invstd, int64_t splits, int32_t c) {
  const int32_t channel = parts_channel();
  double sums[3];
  const bool mine = sum_parts(sums, splits, channel < c, [&](double (&sums)[3], int64_t split) {
#pragma unroll
    for (int i = 0; i < 3; ++i) sums[i] += static_cast<double>(partial[(i * splits + split) * c + channel]);
  });
  if (!mine) return;
  x_dbias[channel] = z_dbias[channel] = static_cast<float>(sums[0]);
  x_dweight[channel] = static_cast<float>(sums[1] * x_invstd[channel]);
  z_dweight[channel] = static_cast<float>(sums[2] * z_invstd[channel]);
}

// dx = weight invstd (dy - dbias / rows - (x - mean) invstd dweight / rows) of both, as norm_backward.cu has it.
template <class T, int V, bool masked>
__global__ void __launch_bounds__(channel_threads, 2)
    pair_gradient_kernel(T* dx, T* dz, PairGradient<T, V, masked> pair, Branch<T> a, Branch<T> b,
                         const float* x_dweight, const float* z_dweight, const float* dbias, int64_t rows) {
  const int32_t channel = static_cast<int32_t>((static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V);
  if (channel >= pair.c) return;
  const float by = 1.0f / static_cast<float>(rows);
  float average[V], a_factor[V], a_slope[V], b_factor[V], b_slope[V];
  load_channels(average, dbias + channel);
#pragma unroll
  for (int j = 0; j < V; ++j) average[j] *= by;
  const auto begin = [&](float(&factor)[V], float(&slope)[V], const Branch<T>& branch, const float* dweight) {
    float spread[V];
    load_channels(spread, branch.invstd + channel);
    load_channels(factor, branch.weight + channel);
    load_channels(slope, dweight + channel);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      factor[j] *= spread[j];
      slope[j] *= spread[j] * by;
    }
  };
  begin(a_factor, a_slope, a, x_dweight);
  begin(b_factor, b_slope, b, z_dweight);
  pair.begin(0, channel);
  for_row_batches<true, 2>(
      rows, [&](int64_t row) { return pair.template fetch_row<true>(row, channel); },
      [&](int64_t row, const PairFetched<T, V>& fetched) {
        float gradient[V], from_x[V], from_z[V];
        pair.unpack_all(gradient, from_x, from_z, fetched);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const float centred = gradient[j] - average[j];
          from_x[j] = a_factor[j] * (centred - from_x[j] * a_slope[j]);
          from_z[j] = b_factor[j] * (centred - from_z[j] * b_slope[j]);
        }
        store(dx + row * pair.c + channel, from_x);
        store(dz + row * pair.c + channel, from_z);
      });
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_batch_norm_join(dlfs_stream stream, void* y, uint8_t* mask, const void* x, const void* z,
                                 const float* x_weight, const float* x_bias, const float* x_mean, const float* x_invstd,
                                 const float* z_weight, const float* z_bias, const float* z_mean, const float* z_invstd,
                                 int64_t rows, int32_t c, dlfs_dtype dtype, dlfs_activation activation) {
  return stream_call("dlfs_batch_norm_join", stream, [&](Stream& s) {
    check_join(dtype, rows, c,
               {{y, "y"}, {x, "x"}, {z, "z"}, {x_weight, "x_weight"}, {x_bias, "x_bias"}, {x_mean, "x_mean"},
                {x_invstd, "x_invstd"}, {z_weight, "z_weight"}, {z_bias, "z_bias"}, {z_mean, "z_mean"},
                {z_invstd, "z_invstd"}});
    check_activation(activation, {DLFS_ACT_NONE, DLFS_ACT_RELU});
    check_mask(mask, activation);
    dispatch_channels(dtype, c, aligned16({y, x, z}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      const auto run = [&](auto kernel) {
        const ChannelGrid g = sweep_grid(*s.context, rows, c / V, kernel);
        launch(s, g.grid(), g.block(), 0, kernel, static_cast<T*>(y), mask,
               Branch<T>{static_cast<const T*>(x), x_weight, x_bias, x_mean, x_invstd},
               Branch<T>{static_cast<const T*>(z), z_weight, z_bias, z_mean, z_invstd}, rows, c);
      };
      activation == DLFS_ACT_RELU ? run(join_kernel<T, V, true>) : run(join_kernel<T, V, false>);
    });
  });
}

dlfs_status dlfs_batch_norm_join_workspace(dlfs_context ctx, int64_t* out, int64_t rows, int32_t c, dlfs_dtype dtype) {
  return context_call("dlfs_batch_norm_join_workspace", ctx, [&](Context& context) {
    check_pointer(out, "out");
    check_size(rows, "rows");
    check_size(c, "c");
    check_float_dtype(dtype);
    *out = partial_bytes(context, rows, c, 3);
  });
}

dlfs_status dlfs_batch_norm_join_backward(dlfs_stream stream, void* dx, void* dz, float* x_dweight, float* x_dbias,
                                          float* z_dweight, float* z_dbias, const void* dy, const void* x,
                                          const void* z, const uint8_t* mask, const float* x_weight,
                                          const float* x_mean, const float* x_invstd, const float* z_weight,
                                          const float* z_mean, const float* z_invstd, void* workspace, int64_t rows,
                                          int32_t c, dlfs_dtype dtype) {
  return stream_call("dlfs_batch_norm_join_backward", stream, [&](Stream& s) {
    check_join(dtype, rows, c,
               {{dx, "dx"}, {dz, "dz"}, {x_dweight, "x_dweight"}, {x_dbias, "x_dbias"}, {z_dweight, "z_dweight"},
                {z_dbias, "z_dbias"}, {dy, "dy"}, {x, "x"}, {z, "z"}, {x_weight, "x_weight"}, {x_mean, "x_mean"},
                {x_invstd, "x_invstd"}, {z_weight, "z_weight"}, {z_mean, "z_mean"}, {z_invstd, "z_invstd"}});
    DLFS_CHECK(dx != dz, DLFS_ERROR_ARGUMENT, "dx and dz are the same buffer");
    check_workspace(workspace, partial_bytes(*s.context, rows, c, 3));
    float* const partial = static_cast<float*>(workspace);
    dispatch_channels(dtype, c, aligned16({dx, dz, dy, x, z}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      const auto run = [&](auto flag) {
        constexpr bool masked = decltype(flag)::value;
        using Pair = PairGradient<T, V, masked>;
        Pair pair{};
        pair.dy = static_cast<const T*>(dy);
        pair.x = static_cast<const T*>(x);
        pair.z = static_cast<const T*>(z);
        pair.mask = mask;
        pair.x_mean = x_mean;
        pair.z_mean = z_mean;
        pair.c = c;
        const auto sums = channel_sums_kernel<3, V, Pair>;
        const ChannelGrid g = sweep_grid(*s.context, rows, c / V, sums);
        launch(s, g.grid(), g.block(), 0, sums, partial, rows, c, 1, pair);
        launch(s, parts_grid(c), parts_block(), 0, finish_pair_kernel, x_dweight, x_dbias, z_dweight, z_dbias, partial,
               x_invstd, z_invstd, static_cast<int64_t>(g.splits), c);
        const auto apply = pair_gradient_kernel<T, V, masked>;
        const ChannelGrid a = sweep_grid(*s.context, rows, c / V, apply);
        launch(s, a.grid(), a.block(), 0, apply, static_cast<T*>(dx), static_cast<T*>(dz), pair,
               Branch<T>{pair.x, x_weight, nullptr, x_mean, x_invstd},
               Branch<T>{pair.z, z_weight, nullptr, z_mean, z_invstd}, x_dweight, z_dweight, x_dbias, rows);
      };
      mask ? run(std::true_type{}) : run(std::false_type{});
    });
  });
}

}  // extern "C"
