// Convolution by its definition, one thread per result: for the shapes that cuDNN has no engine for (bf16 with odd
// groups, tensors at odd addresses), in all three directions, any dtype, stride, dilation and group count. Sums in
// fp32, a fixed order, no workspace.
#include "cuda/conv.hpp"
#include "cuda/numeric.cuh"
#include "cuda/pixel.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

// Input coordinate of output `out` at kernel position `tap`; outside [0, size) in the padding.
__device__ __forceinline__ int64_t input_at(int32_t out, int32_t stride, int32_t pad, int32_t tap, int32_t dilation) {
  return static_cast<int64_t>(out) * stride - pad + static_cast<int64_t>(tap) * dilation;
}

// Output coordinate that reads input `in` at kernel position `tap`, or -1.
__device__ __forceinline__ int64_t output_at(int32_t in, int32_t stride, int32_t pad, int32_t tap, int32_t dilation,
                                             int32_t out) {
  const int64_t distance = static_cast<int64_t>(in) + pad - static_cast<int64_t>(tap) * dilation;
  return distance >= 0 && distance % stride == 0 && distance / stride < out ? distance / stride : -1;
}

template <class T>
__global__ void __launch_bounds__(256) forward_kernel(T* y, const T* x, const T* w, const float* bias,
                                                      const T* residual, ConvGeometry g, dlfs_activation activation) {
  const int32_t in_group = g.c / g.groups, out_group = g.k / g.groups;
  for_rows(int64_t{g.n} * g.p * g.q, g.k, [&](int64_t row, int32_t k) {
    const Pixel out = pixel_of(row, g.p, g.q);
    float sum = 0.0f;
    for (int32_t r = 0; r < g.r; ++r) {
      const int64_t h = input_at(out.row, g.stride_h, g.pad_h, r, g.dilation_h);
      if (h < 0 || h >= g.h) continue;
      for (int32_t s = 0; s < g.s; ++s) {
        const int64_t v = input_at(out.column, g.stride_w, g.pad_w, s, g.dilation_w);
        if (v < 0 || v >= g.w) continue;
        const T* const from = x + ((int64_t{out.n} * g.h + h) * g.w + v) * g.c + int64_t{k / out_group} * in_group;
        const T* const by = w + ((int64_t{k} * g.r + r) * g.s + s) * in_group;
        for (int32_t c = 0; c < in_group; ++c) sum += to_float(from[c]) * to_float(by[c]);
      }
    }
    const int64_t at = row * g.k + k;
    if (bias) sum += bias[k];
    if (residual) sum += to_float(residual[at]);
    y[at] = from_float<T>(activate(activation, sum));
  });
}

template <class T>
__global__ void __launch_bounds__(256)
    data_gradient_kernel(T* dx, const T* dy, const T* w, const T* residual, const T* mask, ConvGeometry g) {
  const int32_t in_group = g.c / g.groups, out_group = g.k / g.groups;
  for_rows(int64_t{g.n} * g.h * g.w, g.c, [&](int64_t row, int32_t c) {
    const Pixel in = pixel_of(row, g.h, g.w);
    const int32_t first_k = c / in_group * out_group;
    float sum = 0.0f;
    for (int32_t r = 0; r < g.r; ++r) {
      const int64_t p = output_at(in.row, g.stride_h, g.pad_h, r, g.dilation_h, g.p);
      if (p < 0) continue;
      for (int32_t s = 0; s < g.s; ++s) {
        const int64_t q = output_at(in.column, g.stride_w, g.pad_w, s, g.dilation_w, g.q);
        if (q < 0) continue;
        const T* const from = dy + ((int64_t{in.n} * g.p + p) * g.q + q) * g.k + first_k;
        const T* const by = w + ((int64_t{first_k} * g.r + r) * g.s + s) * in_group + c % in_group;
        const int64_t step = int64_t{g.r} * g.s * in_group;
        for (int32_t k = 0; k < out_group; ++k) sum += to_float(from[k]) * to_float(by[k * step]);
      }
    }
    const int64_t at = row * g.c + c;
    if (residual) sum += to_float(residual[at]);
    if (mask && to_float(mask[at]) <= 0.0f) sum = 0.0f;
    dx[at] = from_float<T>(sum);
  });
}

// A block of 32 input channels by 8 lanes, which share the images' rows, per kernel position of an output channel.
template <class T>
__global__ void __launch_bounds__(256) weight_gradient_kernel(float* dw, const T* x, const T* dy, ConvGeometry g) {
  __shared__ float partial[8][32];
  const int32_t in_group = g.c / g.groups, out_group = g.k / g.groups;
  const int64_t positions = int64_t{g.k} * g.r * g.s;
  const int64_t lines = int64_t{g.n} * g.p;
  for (int64_t position = blockIdx.x; position < positions; position += gridDim.x) {
    const int32_t s = static_cast<int32_t>(position % g.s);
    const int32_t r = static_cast<int32_t>(position / g.s % g.r);
    const int32_t k = static_cast<int32_t>(position / g.s / g.r);
    for (int64_t first = int64_t{blockIdx.y} * 32; first < in_group; first += int64_t{gridDim.y} * 32) {
      const int32_t c = static_cast<int32_t>(first) + static_cast<int32_t>(threadIdx.x);
      float sum = 0.0f;
      if (c < in_group) {
        for (int64_t line = threadIdx.y; line < lines; line += 8) {
          const int64_t h = input_at(static_cast<int32_t>(line % g.p), g.stride_h, g.pad_h, r, g.dilation_h);
          if (h < 0 || h >= g.h) continue;
          const T* const from = x + (line / g.p * g.h + h) * g.w * g.c + int64_t{k / out_group} * in_group + c;
          const T* const by = dy + line * g.q * g.k + k;
          float line_sum = 0.0f;  // a sum of sums keeps more digits than one long sum
          for (int32_t q = 0; q < g.q; ++q) {
            const int64_t v = input_at(q, g.stride_w, g.pad_w, s, g.dilation_w);
            if (v >= 0 && v < g.w) line_sum += to_float(from[v * g.c]) * to_float(by[int64_t{q} * g.k]);
          }
          sum += line_sum;
        }
      }
      partial[threadIdx.y][threadIdx.x] = sum;
      __syncthreads();
      if (threadIdx.y == 0 && c < in_group) {
        for (int i = 1; i < 8; ++i) sum += partial[i][threadIdx.x];
        dw[position * in_group + c] = sum;
      }
      __syncthreads();
    }
  }
}

class DirectConv final : public ConvAlgorithm {
 public:
  explicit DirectConv(const ConvProblem& problem) : problem_(problem) {}
  int64_t workspace_bytes() const override { return 0; }
  std::string pick() const override { return "direct"; }
  void run(Stream& stream, const ConvTensors& tensors, void*) const override { run_direct(stream, problem_, tensors); }

 private:
  const ConvProblem problem_;
};

}  // namespace

void run_direct(Stream& stream, const ConvProblem& problem, const ConvTensors& t) {
  if (problem.quantized()) return run_direct_quantized(stream, problem, t);
  const ConvGeometry& g = problem.g;
  dispatch_float(problem.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (problem.direction == DLFS_CONV_FORWARD) {
      const RowGrid grid = row_grid(*stream.context, int64_t{g.n} * g.p * g.q, g.k);
      launch(stream, grid.grid, grid.block, 0, forward_kernel<T>, static_cast<T*>(t.y), static_cast<const T*>(t.x),
             static_cast<const T*>(t.w), t.bias, static_cast<const T*>(t.residual), g, problem.activation);
    } else if (problem.direction == DLFS_CONV_BACKWARD_DATA) {
      const RowGrid grid = row_grid(*stream.context, int64_t{g.n} * g.h * g.w, g.c);
      launch(stream, grid.grid, grid.block, 0, data_gradient_kernel<T>, static_cast<T*>(t.x),
             static_cast<const T*>(t.y), static_cast<const T*>(t.w), static_cast<const T*>(t.residual),
             static_cast<const T*>(t.mask), g);
    } else {
      const int64_t positions = int64_t{g.k} * g.r * g.s;
      const int64_t tiles = ceil_div<int64_t>(g.c / g.groups, 32);
      const dim3 grid(static_cast<unsigned>(std::min<int64_t>(positions, 1 << 20)),
                      static_cast<unsigned>(std::min<int64_t>(tiles, 1 << 10)));
      launch(stream, grid, dim3(32, 8), 0, weight_gradient_kernel<T>, static_cast<float*>(t.w),
             static_cast<const T*>(t.x), static_cast<const T*>(t.y), g);
    }
  });
}

std::shared_ptr<const ConvAlgorithm> direct_algorithm(const ConvProblem& problem) {
  return std::make_shared<DirectConv>(problem);
}

}  // namespace dlfs
