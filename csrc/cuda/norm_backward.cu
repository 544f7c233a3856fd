// Gradients of batch normalization, and the sum over rows that is the gradient of a bias. One pass over dy and x for the
// sums, which leaves the residual's gradient (the masked dy) where it is wanted, and one pass the other way, over that or
// dy again and x, for dx. In elements moved per element of x: 5 without a residual, 6 with one, and a bit or two.
#include <numeric>
#include <type_traits>

#include "common/arguments.hpp"
#include "cuda/batch_norm.cuh"

namespace dlfs {
namespace {

// ---- sums ---------------------------------------------------------------------------------------------------------

// Rows of c values, of which several make a wide row where c is not a multiple of V: value j of a wide row belongs to
// channel j % C. The last wide row may be short.
template <class T, int V>
struct Sum {
  const T* x;
  int64_t width, elements;

  __device__ __forceinline__ void begin(int64_t, int32_t) {}
  __device__ __forceinline__ Pack<T, V> fetch(int64_t row, int32_t channel) const {
    const int64_t at = row * width + channel;
    if (at + V <= elements) return load_pack<V>(x + at);
    Pack<T, V> pack;
#pragma unroll
    for (int j = 0; j < V; ++j) pack.value[j] = at + j < elements ? x[at + j] : from_float<T>(0.0f);
    return pack;
  }
  __device__ __forceinline__ void add(float (&sums)[1][V], int64_t, int32_t, const Pack<T, V>& pack) const {
    float value[V];
    unpack(value, pack);
#pragma unroll
    for (int j = 0; j < V; ++j) sums[0][j] += value[j];
  }
};

// What the passes of the backward kernels work on.
template <class T>
struct Operands {
  T* dx;
  T* dresidual;  // nullable
  const T* dy;
  const T* x;
  const uint8_t* mask;
  const float *weight, *bias, *mean, *invstd;
  int64_t rows;
  int32_t c;
};

// dy masked by ReLU, with x.
template <class T, int V, ReluMask relu>
struct MaskedGradient {
  const T* dy;
  const T* x;
  const uint8_t* mask;
  int32_t c;
  float centre[V], factor[V], shift[V];
  static constexpr ReluMask kind = relu;

  struct Fetched {
    Pack<T, V> dy, x;
    uint32_t bits;
  };

  __device__ __forceinline__ void begin(const Operands<T>& o, int32_t channel) {
    load_channels(centre, o.mean + channel);
    if constexpr (relu == ReluMask::input) {
      float gain[V];
      load_channels(gain, o.weight + channel);
      load_channels(factor, o.invstd + channel);
      load_channels(shift, o.bias + channel);
#pragma unroll
      for (int j = 0; j < V; ++j) factor[j] *= gain[j];
    }
  }

  // once: nothing reads x again soon.
  template <bool once>
  __device__ __forceinline__ Fetched fetch(int64_t row, int32_t channel) const {
    const int64_t at = row * c + channel;
    Fetched fetched;
    fetched.dy = once ? load_pack_once<V>(dy + at) : load_pack<V>(dy + at);
    fetched.x = once ? load_pack_once<V>(x + at) : load_pack<V>(x + at);
    if constexpr (relu == ReluMask::bits) fetched.bits = load_bits<V>(mask, row, channel, c);
    return fetched;
  }

  // The gradient after the mask, and x - mean.
  __device__ __forceinline__ void unpack_masked(float (&gradient)[V], float (&distance)[V], const Fetched& fetched) const {
    float value[V];
    unpack(gradient, fetched.dy);
    unpack(value, fetched.x);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      distance[j] = value[j] - centre[j];
      if constexpr (relu == ReluMask::input) {
        gradient[j] = relu_zero<T>(normalized(value[j], centre[j], factor[j], shift[j])) ? 0.0f : gradient[j];
      } else if constexpr (relu == ReluMask::bits) {
        gradient[j] = (fetched.bits >> j & 1) != 0 ? gradient[j] : 0.0f;
      }
    }
  }
};

// Sums of the masked dy, and of it times x - mean; writes the masked dy where it is wanted.
template <class T, int V, ReluMask relu>
struct GradientSums {
  Operands<T> o;
  MaskedGradient<T, V, relu> masked;
  using Fetched = typename MaskedGradient<T, V, relu>::Fetched;

  __device__ __forceinline__ void begin(int64_t, int32_t channel) { masked.begin(o, channel); }
  __device__ __forceinline__ Fetched fetch(int64_t row, int32_t channel) const {
    return masked.template fetch<false>(row, channel);
  }
  __device__ __forceinline__ void add(float (&sums)[2][V], int64_t row, int32_t channel, const Fetched& fetched) const {
    float gradient[V], distance[V];
    masked.unpack_masked(gradient, distance, fetched);
    if (o.dresidual) store(o.dresidual + row * o.c + channel, gradient);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      sums[0][j] += gradient[j];
      sums[1][j] += gradient[j] * distance[j];
    }
  }
};

__global__ void __launch_bounds__(1024) finish_sum_kernel(float* out, const float* partial, int64_t parts, int32_t c) {
  const int32_t channel = parts_channel();
  double sum[1];
  const bool mine = sum_parts(sum, parts, channel < c, [&](double (&sums)[1], int64_t part) {
    sums[0] += static_cast<double>(partial[part * c + channel]);
  });
  if (mine) out[channel] = static_cast<float>(sum[0]);
}

// dbias = sum of dy, dweight = invstd * sum of dy (x - mean).
__global__ void __launch_bounds__(1024) finish_gradients_kernel(float* dweight, float* dbias, const float* partial,
                                                                const float* invstd, int64_t splits, int32_t c) {
  const int32_t channel = parts_channel();
  double sums[2];
  const bool mine = sum_parts(sums, splits, channel < c, [&](double (&sums)[2], int64_t split) {
    sums[0] += static_cast<double>(partial[split * c + channel]);
    sums[1] += static_cast<double>(partial[(splits + split) * c + channel]);
  });
  if (!mine) return;
  dbias[channel] = static_cast<float>(sums[0]);
  dweight[channel] = static_cast<float>(sums[1] * invstd[channel]);
}

// ---- dx -----------------------------------------------------------------------------------------------------------

// dx = weight invstd (dy - dbias / rows - (x - mean) invstd dweight / rows), dy masked. Rows are taken in the opposite
// order of channel_sums_kernel: what that read last is still in the L2 cache.
template <class T, int V, ReluMask relu>
__global__ void __launch_bounds__(channel_threads, 2)
    input_gradient_kernel(Operands<T> o, MaskedGradient<T, V, relu> masked, const float* dweight, const float* dbias) {
  const int32_t channel = static_cast<int32_t>((static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V);
  if (channel >= o.c) return;
  const float by = 1.0f / static_cast<float>(o.rows);
  float factor[V], average[V], slope[V], spread[V];
  load_channels(factor, o.weight + channel);
  load_channels(average, dbias + channel);
  load_channels(slope, dweight + channel);
  load_channels(spread, o.invstd + channel);
  masked.begin(o, channel);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    factor[j] *= spread[j];
    average[j] *= by;
    slope[j] *= spread[j] * by;
  }
  for_row_batches<true, 4>(
      o.rows, [&](int64_t row) { return masked.template fetch<true>(row, channel); },
      [&](int64_t row, const auto& fetched) {
        float gradient[V], distance[V];
        masked.unpack_masked(gradient, distance, fetched);
#pragma unroll
        for (int j = 0; j < V; ++j) gradient[j] = factor[j] * (gradient[j] - average[j] - distance[j] * slope[j]);
        store(o.dx + row * o.c + channel, gradient);
      });
}

// How many rows of c values make a wide row of whole 16-byte vectors.
int32_t rows_folded(int32_t c, dlfs_dtype dtype) {
  const int32_t vector = dtype == DLFS_F32 ? 4 : 8;
  return c > INT32_MAX / vector ? 1 : vector / std::gcd(c, vector);
}

// Bytes of workspace for dlfs_channel_sum, whatever the address allows.
int64_t sum_bytes(const Context& context, int64_t rows, int32_t c, dlfs_dtype dtype) {
  const int32_t fold = rows_folded(c, dtype);
  return std::max(partial_bytes(context, rows, c, 1), partial_bytes(context, ceil_div<int64_t>(rows, fold), int64_t{c} * fold, 1));
}

// The first pass, and the sums of its parts.
template <class T, int V, ReluMask relu>
void backward_sums(const Stream& s, const Operands<T>& o, float* dweight, float* dbias, float* partial) {
  using Sums = GradientSums<T, V, relu>;
  Sums sums{};
  sums.o = o;
  sums.masked.dy = o.dy;
  sums.masked.x = o.x;
  sums.masked.mask = o.mask;
  sums.masked.c = o.c;
  const auto sums_kernel = channel_sums_kernel<2, V, Sums>;
  const ChannelGrid g = sweep_grid(*s.context, o.rows, o.c / V, sums_kernel);
  launch(s, g.grid(), g.block(), 0, sums_kernel, partial, o.rows, o.c, 1, sums);
  launch(s, parts_grid(o.c), parts_block(), 0, finish_gradients_kernel, dweight, dbias, partial, o.invstd,
         static_cast<int64_t>(g.splits), o.c);
}

// The second pass, over dy as it was or as the first one left it in dresidual.
template <class T, int V, ReluMask relu>
void backward_input(const Stream& s, const Operands<T>& o, const float* dweight, const float* dbias) {
  const auto apply = [&](auto masked, const T* dy) {
    masked.dy = dy;
    masked.x = o.x;
    masked.mask = o.mask;
    masked.c = o.c;
    const auto kernel = input_gradient_kernel<T, V, decltype(masked)::kind>;
    const ChannelGrid a = sweep_grid(*s.context, o.rows, o.c / V, kernel);
    launch(s, a.grid(), a.block(), 0, kernel, o, masked, dweight, dbias);
  };
  if (o.dresidual) {
    apply(MaskedGradient<T, V, ReluMask::none>{}, o.dresidual);
  } else {
    apply(MaskedGradient<T, V, relu>{}, o.dy);
  }
}

// What both passes are given.
void check_backward(const void* dy, const void* x, const uint8_t* mask, const float* weight, const float* bias,
                    const float* save_mean, const float* save_invstd, const float* dweight, const float* dbias,
                    int64_t rows, int32_t c, dlfs_dtype dtype, dlfs_activation activation) {
  check_float_dtype(dtype);
  check_activation(activation, {DLFS_ACT_NONE, DLFS_ACT_RELU});
  check_size(rows, "rows");
  check_size(c, "c");
  checked_product({rows, c}, "x");
  check_pointer(dweight, "dweight");
  check_pointer(dbias, "dbias");
  check_pointer(dy, "dy");
  check_pointer(x, "x");
  check_pointer(weight, "weight");
  check_pointer(save_mean, "save_mean");
  check_pointer(save_invstd, "save_invstd");
  if (activation == DLFS_ACT_RELU && !mask) check_pointer(bias, "bias (read by the gradient of relu without a mask)");
}

// Calls run(operands, V, what ReLU's mask is) for the operands' dtype and alignment.
template <class Run>
void for_operands(void* dx, void* dresidual, const void* dy, const void* x, const uint8_t* mask, const float* weight,
                  const float* bias, const float* save_mean, const float* save_invstd, int64_t rows, int32_t c,
                  dlfs_dtype dtype, dlfs_activation activation, Run&& run) {
  dispatch_channels(dtype, c, aligned16({dx, dresidual, dy, x}), [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    const Operands<T> operands{static_cast<T*>(dx), static_cast<T*>(dresidual), static_cast<const T*>(dy),
                               static_cast<const T*>(x), mask, weight, bias, save_mean, save_invstd, rows, c};
    if (activation != DLFS_ACT_RELU) {
      run(operands, width, std::integral_constant<ReluMask, ReluMask::none>{});
    } else if (mask) {
      run(operands, width, std::integral_constant<ReluMask, ReluMask::bits>{});
    } else {
      run(operands, width, std::integral_constant<ReluMask, ReluMask::input>{});
    }
  });
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_channel_sum_workspace(dlfs_context ctx, int64_t* out, int64_t rows, int32_t c, dlfs_dtype dtype) {
  return context_call("dlfs_channel_sum_workspace", ctx, [&](Context& context) {
    check_pointer(out, "out");
    check_size(rows, "rows");
    check_size(c, "c");
    check_float_dtype(dtype);
    *out = sum_bytes(context, rows, c, dtype);
  });
}

dlfs_status dlfs_channel_sum(dlfs_stream stream, float* out, const void* x, void* workspace, int64_t rows, int32_t c,
                             dlfs_dtype dtype) {
  return stream_call("dlfs_channel_sum", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_size(rows, "rows");
    check_size(c, "c");
    checked_product({rows, c}, "x");
    check_pointer(out, "out");
    check_pointer(x, "x");
    check_workspace(workspace, sum_bytes(*s.context, rows, c, dtype));
    float* const partial = static_cast<float*>(workspace);
    const int32_t fold = aligned16({x}) ? rows_folded(c, dtype) : 1;
    const int64_t wide_rows = ceil_div<int64_t>(rows, fold);
    const int32_t width = c * fold;
    dispatch_channels(dtype, width, aligned16({x}), [&](auto tag, auto width_tag) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width_tag)::value;
      const auto kernel = channel_sums_kernel<1, V, Sum<T, V>>;
      const ChannelGrid g = sweep_grid(*s.context, wide_rows, width / V, kernel);
      launch(s, g.grid(), g.block(), 0, kernel, partial, wide_rows, width, 1,
             Sum<T, V>{static_cast<const T*>(x), width, rows * c});
      launch(s, parts_grid(c), parts_block(), 0, finish_sum_kernel, out, partial, static_cast<int64_t>(g.splits) * fold, c);
    });
  });
}

dlfs_status dlfs_batch_norm_backward(dlfs_stream stream, void* dx, void* dresidual, float* dweight, float* dbias,
                                     const void* dy, const void* x, const uint8_t* mask, const float* weight,
                                     const float* bias, const float* save_mean, const float* save_invstd,
                                     void* workspace, int64_t rows, int32_t c, dlfs_dtype dtype,
                                     dlfs_activation activation) {
  return stream_call("dlfs_batch_norm_backward", stream, [&](Stream& s) {
    check_backward(dy, x, mask, weight, bias, save_mean, save_invstd, dweight, dbias, rows, c, dtype, activation);
    check_pointer(dx, "dx");
    check_workspace(workspace, partial_bytes(*s.context, rows, c, 2));
    DLFS_CHECK(!dresidual || dresidual != dx, DLFS_ERROR_ARGUMENT, "dx and dresidual are the same buffer");
    for_operands(dx, dresidual, dy, x, mask, weight, bias, save_mean, save_invstd, rows, c, dtype, activation,
                 [&](const auto& operands, auto width, auto relu) {
                   using T = std::remove_const_t<std::remove_pointer_t<decltype(operands.dx)>>;
                   backward_sums<T, decltype(width)::value, decltype(relu)::value>(s, operands, dweight, dbias,
                                                                                   static_cast<float*>(workspace));
                   backward_input<T, decltype(width)::value, decltype(relu)::value>(s, operands, dweight, dbias);
                 });
  });
}

dlfs_status dlfs_batch_norm_backward_sums(dlfs_stream stream, void* dresidual, float* dweight, float* dbias,
                                          const void* dy, const void* x, const uint8_t* mask, const float* weight,
                                          const float* bias, const float* save_mean, const float* save_invstd,
                                          void* workspace, int64_t rows, int32_t c, dlfs_dtype dtype,
                                          dlfs_activation activation) {
  return stream_call("dlfs_batch_norm_backward_sums", stream, [&](Stream& s) {
    check_backward(dy, x, mask, weight, bias, save_mean, save_invstd, dweight, dbias, rows, c, dtype, activation);
    check_workspace(workspace, partial_bytes(*s.context, rows, c, 2));
    for_operands(nullptr, dresidual, dy, x, mask, weight, bias, save_mean, save_invstd, rows, c, dtype, activation,
                 [&](const auto& operands, auto width, auto relu) {
                   using T = std::remove_const_t<std::remove_pointer_t<decltype(operands.dx)>>;
                   backward_sums<T, decltype(width)::value, decltype(relu)::value>(s, operands, dweight, dbias,
                                                                                   static_cast<float*>(workspace));
                 });
  });
}

dlfs_status dlfs_batch_norm_backward_input(dlfs_stream stream, void* dx, const void* dy, const void* x,
                                           const uint8_t* mask, const float* weight, const float* bias,
                                           const float* save_mean, const float* save_invstd, const float* dweight,
                                           const float* dbias, int64_t rows, int32_t c, dlfs_dtype dtype,
                                           dlfs_activation activation) {
  return stream_call("dlfs_batch_norm_backward_input", stream, [&](Stream& s) {
    check_backward(dy, x, mask, weight, bias, save_mean, save_invstd, dweight, dbias, rows, c, dtype, activation);
    check_pointer(dx, "dx");
    for_operands(dx, nullptr, dy, x, mask, weight, bias, save_mean, save_invstd, rows, c, dtype, activation,
                 [&](const auto& operands, auto width, auto relu) {
                   using T = std::remove_const_t<std::remove_pointer_t<decltype(operands.dx)>>;
                   backward_input<T, decltype(width)::value, decltype(relu)::value>(s, operands, dweight, dbias);
                 });
  });
}

}  // extern "C"
