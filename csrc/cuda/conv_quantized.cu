// Forward convolutions of 8 bits by their definition, one thread per result: for the shapes and addresses that the
// library has no engine for. Sums in int32 or fp32, a fixed order, no workspace.
#include "cuda/conv.hpp"
#include "cuda/pixel.cuh"
#include "cuda/quantized.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

__device__ __forceinline__ int32_t widen(Int8 x) { return x.value; }
__device__ __forceinline__ float widen(E4m3 x) { return to_float(x); }

template <class Y>
__device__ __forceinline__ Y rounded(float value) {
  if constexpr (std::is_same_v<Y, E4m3> || std::is_same_v<Y, Int8>) {
    return to_quantized<Y>(value);
  } else {
    return from_float<Y>(value);
  }
}

template <class T, class Y>
__global__ void __launch_bounds__(256)
    forward_kernel(Y* y, const T* x, const T* w, const float* scale, const float* bias, const Y* residual,
                   ConvGeometry g, dlfs_activation activation) {
  const int32_t in_group = g.c / g.groups, out_group = g.k / g.groups;
  for_rows(int64_t{g.n} * g.p * g.q, g.k, [&](int64_t row, int32_t k) {
    const Pixel out = pixel_of(row, g.p, g.q);
    SumOf<T> sum = 0;
    for (int32_t r = 0; r < g.r; ++r) {
      const int64_t h = int64_t{out.row} * g.stride_h - g.pad_h + int64_t{r} * g.dilation_h;
      if (h < 0 || h >= g.h) continue;
      for (int32_t s = 0; s < g.s; ++s) {
        const int64_t v = int64_t{out.column} * g.stride_w - g.pad_w + int64_t{s} * g.dilation_w;
        if (v < 0 || v >= g.w) continue;
        const T* const from = x + ((int64_t{out.n} * g.h + h) * g.w + v) * g.c + int64_t{k / out_group} * in_group;
        const T* const by = w + ((int64_t{k} * g.r + r) * g.s + s) * in_group;
        for (int32_t c = 0; c < in_group; ++c) sum += widen(from[c]) * widen(by[c]);
      }
    }
    const int64_t at = row * g.k + k;
    float value = scale[k] * static_cast<float>(sum);
    if (bias) value += bias[k];
    if (residual) value += to_float(residual[at]);
    y[at] = rounded<Y>(activate(activation, value));
  });
}

}  // namespace

void run_direct_quantized(Stream& stream, const ConvProblem& problem, const ConvTensors& t) {
  const ConvGeometry& g = problem.g;
  const auto run = [&](auto tag, auto y_tag) {
    using T = typename decltype(tag)::type;
    using Y = typename decltype(y_tag)::type;
    const RowGrid grid = row_grid(*stream.context, int64_t{g.n} * g.p * g.q, g.k);
    launch(stream, grid.grid, grid.block, 0, forward_kernel<T, Y>, static_cast<Y*>(t.y), static_cast<const T*>(t.x),
           static_cast<const T*>(t.w), t.scale, t.bias, static_cast<const Y*>(t.residual), g, problem.activation);
  };
  dispatch_quantized(problem.dtype, [&](auto tag) {
    if (problem.y_dtype == problem.dtype) return run(tag, tag);
    dispatch_float(problem.y_dtype, [&](auto y_tag) { run(tag, y_tag); });
  });
}

}  // namespace dlfs
