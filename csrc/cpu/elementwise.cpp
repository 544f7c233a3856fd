// Elementwise operations: fill, cast, add, multiply, scale, activations and their gradients, the finite check. One pass over
// memory each, in parallel parts, computed in fp32. Results may overwrite an operand element by element: `omp simd`
// says so, where the compiler's own check for overlap would send such calls to its scalar loop.
#include <limits>
#include <type_traits>

#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {
namespace {

constexpr int64_t kGrain = 16384;  // elements below which a second thread costs more than it saves

// Any dtype that dlfs_cast takes, read as and written from fp32 or, among integers, int64.
template <class Body>
void dispatch_cast(dlfs_dtype dtype, Body&& body) {
  switch (dtype) {
    case DLFS_F32: return body(Type<float>{});
    case DLFS_BF16: return body(Type<Bf16>{});
    case DLFS_F16: return body(Type<F16>{});
    case DLFS_I32: return body(Type<int32_t>{});
    default: return body(Type<uint8_t>{});
  }
}

template <class T>
constexpr bool is_integer = std::is_integral_v<T>;

// Integers are rounded to nearest even and saturate; NaN becomes 0.
template <class T>
inline T integer_from(float value) {
  const float rounded = std::nearbyint(value);
  if (!(rounded == rounded)) return 0;
  const double low = static_cast<double>(std::numeric_limits<T>::min());
  const double high = static_cast<double>(std::numeric_limits<T>::max());
  return static_cast<T>(std::min(high, std::max(low, static_cast<double>(rounded))));
}

template <class To, class From>
inline To convert(From value) {
  if constexpr (is_integer<To> && is_integer<From>) {
    const int64_t wide = value;
    return static_cast<To>(
        std::min<int64_t>(std::numeric_limits<To>::max(), std::max<int64_t>(std::numeric_limits<To>::min(), wide)));
  } else if constexpr (is_integer<To>) {
    return integer_from<To>(to_float(value));
  } else if constexpr (is_integer<From>) {
    return from_float<To>(static_cast<float>(value));
  } else {
    return from_float<To>(to_float(value));
  }
}

}  // namespace
}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_fill(dlfs_stream stream, void* dst, int64_t n, dlfs_dtype dtype, double value) {
  return on_stream("dlfs_fill", stream, [&](Stream& s) {
    check_count(n, "n");
    check_dtype(dtype, {DLFS_F32, DLFS_BF16, DLFS_F16, DLFS_I32});
    if (n == 0) return;
    check_pointer(dst, "dst");
    s.enqueue([=] {
      dispatch_cast(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        T element;
        if constexpr (is_integer<T>) {
          element = static_cast<T>(std::min(2147483647.0, std::max(-2147483648.0, std::nearbyint(value))));
        } else {
          element = from_float<T>(static_cast<float>(value));
        }
        T* out = static_cast<T*>(dst);
        parallel_for(n, kGrain, [=](int64_t begin, int64_t end) { std::fill(out + begin, out + end, element); });
      });
    });
  });
}

extern "C" dlfs_status dlfs_cast(dlfs_stream stream, void* dst, const void* src, int64_t n, dlfs_dtype dst_dtype,
                                 dlfs_dtype src_dtype) {
  return on_stream("dlfs_cast", stream, [&](Stream& s) {
    check_count(n, "n");
    check_dtype(dst_dtype, {DLFS_F32, DLFS_BF16, DLFS_F16, DLFS_I32, DLFS_U8}, "dst_dtype");
    check_dtype(src_dtype, {DLFS_F32, DLFS_BF16, DLFS_F16, DLFS_I32, DLFS_U8}, "src_dtype");
    if (n == 0) return;
    check_pointer(dst, "dst");
    check_pointer(src, "src");
    s.enqueue([=] {
      dispatch_cast(dst_dtype, [&](auto to) {
        dispatch_cast(src_dtype, [&](auto from) {
          using To = typename decltype(to)::type;
          using From = typename decltype(from)::type;
          To* out = static_cast<To*>(dst);
          const From* in = static_cast<const From*>(src);
          parallel_for(n, kGrain, [=](int64_t begin, int64_t end) {
#pragma omp simd
            for (int64_t i = begin; i < end; ++i) out[i] = convert<To>(in[i]);
          });
        });
      });
    });
  });
}

extern "C" dlfs_status dlfs_add(dlfs_stream stream, void* dst, const void* a, const void* b, int64_t n,
                                dlfs_dtype dtype, dlfs_activation activation) {
  return on_stream("dlfs_add", stream, [&](Stream& s) {
    check_count(n, "n");
    dispatch_float(dtype, [](auto) {});
    check_activation(activation);
    if (n == 0) return;
    check_pointer(dst, "dst");
    check_pointer(a, "a");
    check_pointer(b, "b");
    s.enqueue([=] {
      dispatch_float(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        T* out = static_cast<T*>(dst);
        const T* left = static_cast<const T*>(a);
        const T* right = static_cast<const T*>(b);
        dispatch_activation(activation, [&](auto act) {
          parallel_for(n, kGrain, [=](int64_t begin, int64_t end) {
#pragma omp simd
            for (int64_t i = begin; i < end; ++i) {
              store(out + i, activate<decltype(act)::value>(load(left + i) + load(right + i)));
            }
          });
        });
      });
    });
  });
}

extern "C" dlfs_status dlfs_multiply(dlfs_stream stream, void* dst, const void* a, const void* b, int64_t n,
                                     dlfs_dtype dtype) {
  return on_stream("dlfs_multiply", stream, [&](Stream& s) {
    check_count(n, "n");
    dispatch_float(dtype, [](auto) {});
    if (n == 0) return;
    check_pointer(dst, "dst");
    check_pointer(a, "a");
    check_pointer(b, "b");
    s.enqueue([=] {
      dispatch_float(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        T* out = static_cast<T*>(dst);
        const T* left = static_cast<const T*>(a);
        const T* right = static_cast<const T*>(b);
        parallel_for(n, kGrain, [=](int64_t begin, int64_t end) {
#pragma omp simd
          for (int64_t i = begin; i < end; ++i) store(out + i, load(left + i) * load(right + i));
        });
      });
    });
  });
}

extern "C" dlfs_status dlfs_scale(dlfs_stream stream, void* dst, const void* src, const float* device_factor, int64_t n,
                                  dlfs_dtype dtype, double factor) {
  return on_stream("dlfs_scale", stream, [&](Stream& s) {
    check_count(n, "n");
    dispatch_float(dtype, [](auto) {});
    if (n == 0) return;
    check_pointer(dst, "dst");
    check_pointer(src, "src");
    s.enqueue([=] {
      const float scale = static_cast<float>(factor) * (device_factor ? *device_factor : 1.0f);
      dispatch_float(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        T* out = static_cast<T*>(dst);
        const T* in = static_cast<const T*>(src);
        parallel_for(n, kGrain, [=](int64_t begin, int64_t end) {
#pragma omp simd
          for (int64_t i = begin; i < end; ++i) store(out + i, load(in + i) * scale);
        });
      });
    });
  });
}

extern "C" dlfs_status dlfs_activation_forward(dlfs_stream stream, void* y, const void* x, int64_t n, dlfs_dtype dtype,
                                               dlfs_activation activation, double slope) {
  return on_stream("dlfs_activation_forward", stream, [&](Stream& s) {
    check_count(n, "n");
    dispatch_float(dtype, [](auto) {});
    check_any_activation(activation, slope);
    if (n == 0) return;
    check_pointer(y, "y");
    check_pointer(x, "x");
    s.enqueue([=] {
      dispatch_float(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        T* out = static_cast<T*>(y);
        const T* in = static_cast<const T*>(x);
        const float leak = static_cast<float>(slope);
        dispatch_any_activation(activation, [&](auto act) {
          parallel_for(n, kGrain, [=](int64_t begin, int64_t end) {
#pragma omp simd
            for (int64_t i = begin; i < end; ++i) store(out + i, activate<decltype(act)::value>(load(in + i), leak));
          });
        });
      });
    });
  });
}

extern "C" dlfs_status dlfs_activation_backward(dlfs_stream stream, void* dx, const void* dy, const void* x,
                                                const void* y, int64_t n, dlfs_dtype dtype,
                                                dlfs_activation activation, double slope) {
  return on_stream("dlfs_activation_backward", stream, [&](Stream& s) {
    check_count(n, "n");
    dispatch_float(dtype, [](auto) {});
    check_any_activation(activation, slope);
    if (n == 0) return;
    check_pointer(dx, "dx");
    check_pointer(dy, "dy");
    const bool reads_x = differentiated_from_input(activation, slope);
    const void* kept = reads_x ? x : y;
    if (activation != DLFS_ACT_NONE) check_pointer(kept, reads_x ? "x" : "y");
    s.enqueue([=] {
      dispatch_float(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        T* out = static_cast<T*>(dx);
        const T* upstream = static_cast<const T*>(dy);
        const T* memory = static_cast<const T*>(kept);
        const float leak = static_cast<float>(slope);
        dispatch_any_activation(activation, [&](auto act) {
          parallel_for(n, kGrain, [=](int64_t begin, int64_t end) {
#pragma omp simd
            for (int64_t i = begin; i < end; ++i) {
              float g = load(upstream + i);
              if constexpr (decltype(act)::value == DLFS_ACT_RELU) {
                g = load(memory + i) > 0.0f ? g : 0.0f;
              } else if constexpr (decltype(act)::value == DLFS_ACT_SIGMOID) {
                const float p = load(memory + i);
                g *= p * (1.0f - p);
              } else if constexpr (decltype(act)::value == DLFS_ACT_SILU) {
                const float v = load(memory + i);
                const float p = sigmoid_f32(v);
                g *= p * (1.0f + v * (1.0f - p));
              } else if constexpr (decltype(act)::value == DLFS_ACT_RELU6) {
                g = relu6_gradient(g, load(memory + i));
              } else if constexpr (decltype(act)::value == DLFS_ACT_LEAKY_RELU) {
                g = leaky_relu_gradient(g, load(memory + i), leak);
              } else if constexpr (decltype(act)::value == DLFS_ACT_HARDSWISH) {
                g = hardswish_gradient(g, load(memory + i));
              } else if constexpr (decltype(act)::value == DLFS_ACT_HARDSIGMOID) {
                g = hardsigmoid_gradient(g, load(memory + i));
              }
              store(out + i, g);
            }
          });
        });
      });
    });
  });
}

extern "C" dlfs_status dlfs_check_finite(dlfs_stream stream, int32_t* flag, const void* x, int64_t n,
                                         dlfs_dtype dtype) {
  return on_stream("dlfs_check_finite", stream, [&](Stream& s) {
    check_count(n, "n");
    check_float_dtype(dtype);
    check_pointer(flag, "flag");
    if (n == 0) return;
    check_pointer(x, "x");
    s.enqueue([=] {
      std::atomic<bool> bad{false};
      dispatch_cast(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        if constexpr (!is_integer<T>) {
          const T* in = static_cast<const T*>(x);
          parallel_for(n, kGrain, [in, &bad](int64_t begin, int64_t end) {
            // All exponent bits set: NaN or infinity.
            uint32_t found = 0;
#pragma omp simd reduction(| : found)
            for (int64_t i = begin; i < end; ++i) {
              found |= (float_bits(to_float(in[i])) & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
            }
            if (found) bad.store(true, std::memory_order_relaxed);
          });
        }
      });
      if (bad.load()) *flag = 1;
    });
  });
}
