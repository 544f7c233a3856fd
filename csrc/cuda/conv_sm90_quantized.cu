// The Hopper convolution kernel (conv_sm90.cuh) in 8 bits: E4M3 and int8, with a scale for each output channel, bias,
// residual and ReLU in its epilogue, and results in 8 bits, bf16 or f16.
#include "cuda/conv_sm90.cuh"

namespace dlfs {
namespace {

using namespace sm90;

#ifdef DLFS_SM90

// Four numbers in their order in memory, rounded to nearest even and saturated.
template <class T>
__device__ __forceinline__ uint32_t pack4(const float (&v)[4]);
template <>
__device__ __forceinline__ uint32_t pack4<E4m3>(const float (&v)[4]) {
  const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(v[0], v[1]), __NV_SATFINITE, __NV_E4M3);
  const uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(v[2], v[3]), __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}
template <>
__device__ __forceinline__ uint32_t pack4<Int8>(const float (&v)[4]) {
  uint32_t high, bits;
  asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, 0;" : "=r"(high) : "r"(__float2int_rn(v[3])), "r"(__float2int_rn(v[2])));
  asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;"
      : "=r"(bits)
      : "r"(__float2int_rn(v[1])), "r"(__float2int_rn(v[0])), "r"(high));
  return bits;
}

template <class T>
__device__ __forceinline__ void unpack4(float (&v)[4], uint32_t bits);
template <>
__device__ __forceinline__ void unpack4<E4m3>(float (&v)[4], uint32_t bits) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const auto pair = static_cast<__nv_fp8x2_storage_t>(bits >> 16 * i);
    const float2 wide = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3)));
    v[2 * i] = wide.x;
    v[2 * i + 1] = wide.y;
  }
}
template <>
__device__ __forceinline__ void unpack4<Int8>(float (&v)[4], uint32_t bits) {
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = static_cast<float>(static_cast<int8_t>(bits >> 8 * i));
}

// N values from `at` on of a vector of `size`, 0 beyond it; the vector is a multiple of 16 bytes, `at` of N.
template <int N>
__device__ __forceinline__ void load_vector(float (&v)[N], const float* from, int at, int size) {
  if (at < size) {
    load(v, from + at);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = 0.0f;
  }
}

#endif

template <class Tiles>
struct Epilogue {
  const float* scale;
  const float* bias;  // nullable

#ifdef DLFS_SM90
  using Y = typename Tiles::Y;
  struct State {};

  __device__ bool whole() const { return false; }

  template <class Sum>
  __device__ __forceinline__ void round(const Sum* sums, uint32_t (&bits)[4], int column, int quarter,
                                        const Sizes& z) const {
    if constexpr (Tiles::interleaved) {
      // Two times 16 columns, of which the thread has four channels in a row, of two rows.
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = column + 16 * half + 4 * quarter;
        float factor[4], offset[4] = {};
        load_vector(factor, scale, at, z.k);
        if (bias) load_vector(offset, bias, at, z.k);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const Sum* const own = sums + 8 * half + 2 * row;
          const Sum values[4] = {own[0], own[1], own[4], own[5]};
          finish<4>(bits[2 * half + row], values, factor, offset, z);
        }
      }
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = column + 8 * half + 2 * quarter;
        float factor[2], offset[2] = {};
        load_vector(factor, scale, at, z.k);
        if (bias) load_vector(offset, bias, at, z.k);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const Sum* const own = sums + 4 * half + 2 * row;
          const Sum values[2] = {own[0], own[1]};
          finish<2>(bits[2 * half + row], values, factor, offset, z);
        }
      }
    }
  }

  __device__ __forceinline__ void look(const State&, const char*, int, int) const {}
  __device__ __forceinline__ void end(const State&, char*, int, const Sizes&) const {}

 private:
  // bits: the residual, then the result.
  template <int N, class Sum>
  __device__ __forceinline__ static void finish(uint32_t& bits, const Sum (&sums)[N], const float (&factor)[N],
                                                const float (&offset)[N], const Sizes& z) {
    float value[N], residual[N] = {};
    if (z.has_residual) {
      if constexpr (N == 4) {
        unpack4<Y>(residual, bits);
      } else {
        Pack<Y, N> pack;
        memcpy(&pack, &bits, 4);
        unpack(residual, pack);
      }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      value[i] = fmaf(factor[i], static_cast<float>(sums[i]), offset[i]);
      if (z.has_residual) value[i] += residual[i];
      if (z.relu) value[i] = activate<DLFS_ACT_RELU>(value[i]);
    }
    if constexpr (N == 4) {
      bits = pack4<Y>(value);
    } else {
      Pack<Y, N> pack;
      store(pack.value, value);
      memcpy(&bits, &pack, 4);
    }
  }
#endif
};

template <class X, class Y, int width>
void launch_width(Stream& s, const ConvProblem& problem, const Sm90Tensors& t) {
  using Tiling = Tiles<X, Y, width>;
  launch_tiles<Tiling>(s, problem.g, problem.dtype, problem.y_dtype, problem.activation == DLFS_ACT_RELU, t,
                       Epilogue<Tiling>{t.scale, t.bias}, s.context->sm_count);
}

}  // namespace

void run_sm90_quantized(Stream& stream, const ConvProblem& problem, int tile_width, const Sm90Tensors& tensors) {
  const auto run = [&](auto tag, auto y_tag) {
    using X = typename decltype(tag)::type;
    using Y = typename decltype(y_tag)::type;
    if (tile_width == 64) return launch_width<X, Y, 64>(stream, problem, tensors);
    if (tile_width == 128) return launch_width<X, Y, 128>(stream, problem, tensors);
    if constexpr (sizeof(Y) == 2) {
      if (tile_width == 208) return launch_width<X, Y, 208>(stream, problem, tensors);
    }
    launch_width<X, Y, 256>(stream, problem, tensors);
  };
  dispatch_quantized(problem.dtype, [&](auto tag) {
    switch (problem.y_dtype) {
      case DLFS_BF16: return run(tag, TypeTag<bf16>{});
      case DLFS_F16: return run(tag, TypeTag<f16>{});
      default: return run(tag, tag);
    }
  });
}

}  // namespace dlfs
