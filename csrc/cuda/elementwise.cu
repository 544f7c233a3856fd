// Elementwise operations on packed arrays: fill, cast, add, multiply, scale, activations, the finite check. All are bound by
// memory: each thread moves 16 bytes per access where the addresses allow it, in a grid-stride loop.
#include <climits>
#include <cmath>

#include "common/arguments.hpp"
#include "cuda/numeric.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

constexpr int block_threads = 256;

// Calls op.template apply<V>(i) for i = 0, V, 2 V, ... and op.template apply<1>(i) for what is left of n.
template <int V, class Op>
__global__ void __launch_bounds__(block_threads) map_kernel(int64_t n, Op op) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * block_threads;
  const int64_t vectors = n / V;
  for (int64_t i = thread; i < vectors; i += stride) op.template apply<V>(i * V);
  if constexpr (V > 1) {
    for (int64_t i = vectors * V + thread; i < n; i += stride) op.template apply<1>(i);
  }
}

template <int V, class Op>
void map(const Stream& s, int64_t n, const Op& op) {
  launch(s, grid_size(*s.context, ceil_div<int64_t>(n, V), block_threads), block_threads, 0, map_kernel<V, Op>, n, op);
}

// ---- fill ---------------------------------------------------------------------------------------------------------

template <class T>
struct Fill {
  T* dst;
  T value;
  template <int V>
  __device__ void apply(int64_t i) const {
    Pack<T, V> pack;
#pragma unroll
    for (int j = 0; j < V; ++j) pack.value[j] = value;
    *reinterpret_cast<Pack<T, V>*>(dst + i) = pack;
  }
};

template <class T>
void fill(const Stream& s, void* dst, int64_t n, T value) {
  const Fill<T> op{static_cast<T*>(dst), value};
  if (aligned16({dst})) {
    map<vector_width<T>>(s, n, op);
  } else {
    map<1>(s, n, op);
  }
}

// ---- cast ---------------------------------------------------------------------------------------------------------

// One value converted; to nearest, ties to even. Integers saturate, NaN becomes 0.
template <class Dst, class Src>
__device__ __forceinline__ Dst convert(Src x) {
  if constexpr (std::is_same_v<Dst, Src>) {
    return x;
  } else if constexpr (std::is_same_v<Src, int32_t>) {
    if constexpr (std::is_same_v<Dst, float>) {
      return __int2float_rn(x);
    } else if constexpr (std::is_same_v<Dst, bf16>) {
      return __int2bfloat16_rn(x);
    } else if constexpr (std::is_same_v<Dst, f16>) {
      return __int2half_rn(x);
    } else {
      return static_cast<uint8_t>(min(max(x, 0), 255));
    }
  } else if constexpr (std::is_same_v<Src, uint8_t>) {
    if constexpr (std::is_same_v<Dst, int32_t>) {
      return x;
    } else {
      return from_float<Dst>(static_cast<float>(x));
    }
  } else if constexpr (std::is_same_v<Dst, int32_t>) {
    return __float2int_rn(to_float(x));
  } else if constexpr (std::is_same_v<Dst, uint8_t>) {
    return static_cast<uint8_t>(min(max(__float2int_rn(to_float(x)), 0), 255));
  } else {
    return from_float<Dst>(to_float(x));
  }
}

template <class Dst, class Src>
struct Cast {
  Dst* dst;
  const Src* src;
  template <int V>
  __device__ void apply(int64_t i) const {
    const Pack<Src, V> in = *reinterpret_cast<const Pack<Src, V>*>(src + i);
    Pack<Dst, V> out;
#pragma unroll
    for (int j = 0; j < V; ++j) out.value[j] = convert<Dst>(in.value[j]);
    *reinterpret_cast<Pack<Dst, V>*>(dst + i) = out;
  }
};

template <class Body>
void dispatch_castable(dlfs_dtype dtype, Body&& body) {
  switch (dtype) {
    case DLFS_F32: return body(TypeTag<float>{});
    case DLFS_BF16: return body(TypeTag<bf16>{});
    case DLFS_F16: return body(TypeTag<f16>{});
    case DLFS_I32: return body(TypeTag<int32_t>{});
    case DLFS_U8: return body(TypeTag<uint8_t>{});
  }
  throw Error(DLFS_ERROR_DTYPE, format("unexpected dtype %s", dtype_name(dtype)));
}

// ---- add, multiply, scale, activations ----------------------------------------------------------------------------

template <class T, dlfs_activation activation>
struct Add {
  T* dst;
  const T* a;
  const T* b;
  template <int V>
  __device__ void apply(int64_t i) const {
    float x[V], y[V];
    load(x, a + i);
    load(y, b + i);
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] = activate<activation>(x[j] + y[j]);
    store(dst + i, x);
  }
};

template <class T>
struct Multiply {
  T* dst;
  const T* a;
  const T* b;
  template <int V>
  __device__ void apply(int64_t i) const {
    float x[V], y[V];
    load(x, a + i);
    load(y, b + i);
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] *= y[j];
    store(dst + i, x);
  }
};

template <class T>
struct Scale {
  T* dst;
  const T* src;
  const float* device_factor;
  float factor;
  template <int V>
  __device__ void apply(int64_t i) const {
    const float by = device_factor ? factor * *device_factor : factor;
    float x[V];
    load(x, src + i);
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] *= by;
    store(dst + i, x);
  }
};

template <class T, dlfs_activation activation>
struct ActivationForward {
  T* y;
  const T* x;
  float slope;
  template <int V>
  __device__ void apply(int64_t i) const {
    float value[V];
    load(value, x + i);
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] = activate<activation>(value[j], slope);
    store(y + i, value);
  }
};

// saved: x where differentiated_from_input(), else y; not read for none.
template <class T, dlfs_activation activation>
struct ActivationBackward {
  T* dx;
  const T* dy;
  const T* saved;
  float slope;
  template <int V>
  __device__ void apply(int64_t i) const {
    float gradient[V];
    load(gradient, dy + i);
    if constexpr (activation != DLFS_ACT_NONE) {
      float v[V];
      load(v, saved + i);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        if constexpr (activation == DLFS_ACT_RELU) {
          gradient[j] = v[j] <= 0.0f ? 0.0f : gradient[j];
        } else if constexpr (activation == DLFS_ACT_SIGMOID) {
          gradient[j] *= v[j] * (1.0f - v[j]);
        } else if constexpr (activation == DLFS_ACT_RELU6) {
          gradient[j] = relu6_gradient(gradient[j], v[j]);
        } else if constexpr (activation == DLFS_ACT_LEAKY_RELU) {
          gradient[j] = leaky_relu_gradient(gradient[j], v[j], slope);
        } else if constexpr (activation == DLFS_ACT_HARDSWISH) {
          gradient[j] = hardswish_gradient(gradient[j], v[j]);
        } else if constexpr (activation == DLFS_ACT_HARDSIGMOID) {
          gradient[j] = hardsigmoid_gradient(gradient[j], v[j]);
        } else {
          static_assert(activation == DLFS_ACT_SILU, "every activation has a derivative here");
          const float sig = sigmoid(v[j]);
          gradient[j] *= sig * (1.0f + v[j] * (1.0f - sig));
        }
      }
    }
    store(dx + i, gradient);
  }
};

// ---- finite check -------------------------------------------------------------------------------------------------

template <class T>
struct CheckFinite {
  int32_t* flag;
  const T* x;
  template <int V>
  __device__ void apply(int64_t i) const {
    float value[V];
    load(value, x + i);
    bool finite = true;
#pragma unroll
    for (int j = 0; j < V; ++j) finite = finite && isfinite(value[j]);
    if (!finite) *flag = 1;  // every writer writes the same
  }
};

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_fill(dlfs_stream stream, void* dst, int64_t n, dlfs_dtype dtype, double value) {
  return stream_call("dlfs_fill", stream, [&](Stream& s) {
    check_dtype(dtype, {DLFS_F32, DLFS_BF16, DLFS_F16, DLFS_I32});
    check_count(n, "n");
    if (n == 0) return;
    check_pointer(dst, "dst");
    switch (dtype) {
      case DLFS_F32: return fill(s, dst, n, static_cast<float>(value));
      case DLFS_BF16: return fill(s, dst, n, __float2bfloat16_rn(static_cast<float>(value)));
      case DLFS_F16: return fill(s, dst, n, __float2half_rn(static_cast<float>(value)));
      default:
        return fill(s, dst, n,
                    static_cast<int32_t>(std::fmin(2147483647.0, std::fmax(-2147483648.0, std::nearbyint(value)))));
    }
  });
}

dlfs_status dlfs_cast(dlfs_stream stream, void* dst, const void* src, int64_t n, dlfs_dtype dst_dtype,
                      dlfs_dtype src_dtype) {
  return stream_call("dlfs_cast", stream, [&](Stream& s) {
    check_dtype(dst_dtype, {DLFS_F32, DLFS_BF16, DLFS_F16, DLFS_I32, DLFS_U8}, "dst_dtype");
    check_dtype(src_dtype, {DLFS_F32, DLFS_BF16, DLFS_F16, DLFS_I32, DLFS_U8}, "src_dtype");
    check_count(n, "n");
    if (n == 0) return;
    check_pointer(dst, "dst");
    check_pointer(src, "src");
    dispatch_castable(dst_dtype, [&](auto dst_tag) {
      using Dst = typename decltype(dst_tag)::type;
      dispatch_castable(src_dtype, [&](auto src_tag) {
        using Src = typename decltype(src_tag)::type;
        const Cast<Dst, Src> op{static_cast<Dst*>(dst), static_cast<const Src*>(src)};
        if (aligned16({dst, src})) {
          map<vector_width<std::conditional_t<(sizeof(Dst) > sizeof(Src)), Dst, Src>>>(s, n, op);
        } else {
          map<1>(s, n, op);
        }
      });
    });
  });
}

dlfs_status dlfs_add(dlfs_stream stream, void* dst, const void* a, const void* b, int64_t n, dlfs_dtype dtype,
                     dlfs_activation activation) {
  return stream_call("dlfs_add", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_activation(activation);
    check_count(n, "n");
    if (n == 0) return;
    check_pointer(dst, "dst");
    check_pointer(a, "a");
    check_pointer(b, "b");
    dispatch_vector(dtype, aligned16({dst, a, b}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      dispatch_activation(activation, [&](auto act) {
        map<decltype(width)::value>(s, n, Add<T, decltype(act)::value>{static_cast<T*>(dst), static_cast<const T*>(a),
                                                                       static_cast<const T*>(b)});
      });
    });
  });
}

dlfs_status dlfs_multiply(dlfs_stream stream, void* dst, const void* a, const void* b, int64_t n, dlfs_dtype dtype) {
  return stream_call("dlfs_multiply", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_count(n, "n");
    if (n == 0) return;
    check_pointer(dst, "dst");
    check_pointer(a, "a");
    check_pointer(b, "b");
    dispatch_vector(dtype, aligned16({dst, a, b}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      map<decltype(width)::value>(
          s, n, Multiply<T>{static_cast<T*>(dst), static_cast<const T*>(a), static_cast<const T*>(b)});
    });
  });
}

dlfs_status dlfs_scale(dlfs_stream stream, void* dst, const void* src, const float* device_factor, int64_t n,
                       dlfs_dtype dtype, double factor) {
  return stream_call("dlfs_scale", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_count(n, "n");
    if (n == 0) return;
    check_pointer(dst, "dst");
    check_pointer(src, "src");
    dispatch_vector(dtype, aligned16({dst, src}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      map<decltype(width)::value>(
          s, n, Scale<T>{static_cast<T*>(dst), static_cast<const T*>(src), device_factor, static_cast<float>(factor)});
    });
  });
}

dlfs_status dlfs_activation_forward(dlfs_stream stream, void* y, const void* x, int64_t n, dlfs_dtype dtype,
                                    dlfs_activation activation, double slope) {
  return stream_call("dlfs_activation_forward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_any_activation(activation, slope);
    check_count(n, "n");
    if (n == 0) return;
    check_pointer(y, "y");
    check_pointer(x, "x");
    dispatch_vector(dtype, aligned16({y, x}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      dispatch_any_activation(activation, [&](auto act) {
        map<decltype(width)::value>(s, n,
                                    ActivationForward<T, decltype(act)::value>{
                                        static_cast<T*>(y), static_cast<const T*>(x), static_cast<float>(slope)});
      });
    });
  });
}

dlfs_status dlfs_activation_backward(dlfs_stream stream, void* dx, const void* dy, const void* x, const void* y,
                                     int64_t n, dlfs_dtype dtype, dlfs_activation activation, double slope) {
  return stream_call("dlfs_activation_backward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_any_activation(activation, slope);
    check_count(n, "n");
    if (n == 0) return;
    check_pointer(dx, "dx");
    check_pointer(dy, "dy");
    const void* saved = nullptr;
    if (differentiated_from_input(activation, slope)) {
      check_pointer(x, "x");
      saved = x;
    } else if (activation != DLFS_ACT_NONE) {
      check_pointer(y, "y");
      saved = y;
    }
    dispatch_vector(dtype, aligned16({dx, dy, saved}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      dispatch_any_activation(activation, [&](auto act) {
        map<decltype(width)::value>(
            s, n,
            ActivationBackward<T, decltype(act)::value>{static_cast<T*>(dx), static_cast<const T*>(dy),
                                                        static_cast<const T*>(saved), static_cast<float>(slope)});
      });
    });
  });
}

dlfs_status dlfs_check_finite(dlfs_stream stream, int32_t* flag, const void* x, int64_t n, dlfs_dtype dtype) {
  return stream_call("dlfs_check_finite", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_count(n, "n");
    check_pointer(flag, "flag");
    if (n == 0) return;
    check_pointer(x, "x");
    dispatch_vector(dtype, aligned16({x}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      map<decltype(width)::value>(s, n, CheckFinite<T>{flag, static_cast<const T*>(x)});
    });
  });
}

}  // extern "C"
