// Forward convolutions of 8 bits by our own loops: every output is gathered by one thread, sums are exact int32 for I8
// and fp32 in a fixed order for F8E4M3.
#include "common/quantized.hpp"
#include "cpu/conv.hpp"
#include "cpu/conv_taps.hpp"
#include "cpu/numeric.hpp"

namespace dlfs::cpu {
namespace {

// What products are summed in.
template <class T>
using SumOf = std::conditional_t<std::is_same_v<T, Int8>, int32_t, float>;

template <class T>
SumOf<T> widen(T x) {
  if constexpr (std::is_same_v<T, Int8>) return x.value;
  else return to_float(x);
}

template <class Y>
Y rounded(float value) {
  if constexpr (std::is_same_v<Y, E4m3> || std::is_same_v<Y, Int8>) return to_quantized<Y>(value);
  else return from_float<Y>(value);
}

class QuantizedConvolution : public ConvAlgorithm {
 public:
  explicit QuantizedConvolution(const ConvProblem& problem) : problem_(problem), g_(problem.g) {
    name_ = "quantized loops";
    weights_ = reserve(g_.w_elements() * int64_t{sizeof(float)});
  }

  void run(const ConvBuffers& b) const override {
    dispatch_quantized(problem_.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      if (problem_.y_dtype == problem_.dtype) return run_typed<T, T>(b);
      dispatch_float(problem_.y_dtype, [&](auto type) { run_typed<T, typename decltype(type)::type>(b); });
    });
  }

 private:
  template <class T, class Y>
  void run_typed(const ConvBuffers& b) const {
    using Sum = SumOf<T>;
    static_assert(sizeof(Sum) == sizeof(float));
    Sum* weights = reinterpret_cast<Sum*>(static_cast<char*>(b.workspace) + weights_);
    // (groups, K / groups, R S C / groups) -> (groups, R S C / groups, K / groups)
    const int64_t ks = g_.k / g_.groups, inner = int64_t{g_.r} * g_.s * (g_.c / g_.groups);
    const T* w = static_cast<const T*>(b.w);
    for (int64_t k = 0; k < g_.k; ++k) {
      Sum* out = weights + k / ks * ks * inner + k % ks;
      for (int64_t i = 0; i < inner; ++i) out[i * ks] = widen(w[k * inner + i]);
    }
    dispatch_activation(problem_.activation, [&](auto tag) {
      constexpr dlfs_activation activation = decltype(tag)::value;
      const Y* residual = static_cast<const Y*>(b.residual);
      Y* y = static_cast<Y*>(b.y);
      gather(static_cast<const T*>(b.x), weights, [&](int64_t at, int32_t k, Sum sum) {
        float value = b.scale[k] * static_cast<float>(sum);
        if (b.bias) value += b.bias[k];
        if (residual) value += to_float(residual[at]);
        y[at] = rounded<Y>(activate<activation>(value));
      });
    });
  }

  // Calls store(index in y, output channel, sum) for every output.
  template <class T, class Sum, class Store>
  void gather(const T* x, const Sum* weights, const Store& store_sum) const {
    const ConvGeometry& g = g_;
    const int32_t cs = g.c / g.groups, ks = g.k / g.groups;
    parallel_for(int64_t{g.n} * g.p, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * g.q; i < end * g.q; ++i) {
        const int64_t row = i / g.q, n = row / g.p;
        const int64_t top = row % g.p * g.stride_h - g.pad_h, left = i % g.q * g.stride_w - g.pad_w;
        const Taps rows = valid_taps(top, g.r, g.dilation_h, g.h), columns = valid_taps(left, g.s, g.dilation_w, g.w);
        for (int32_t group = 0; group < g.groups; ++group) {
          for_each_chunk(ks, [&](auto width, int32_t k0) {
            const int32_t count = width;
            Sum sum[channel_chunk] = {};
            for (int32_t r = rows.begin; r < rows.end; ++r) {
              for (int32_t s = columns.begin; s < columns.end; ++s) {
                const int64_t line = (n * g.h + top + int64_t{r} * g.dilation_h) * g.w;
                const T* in = x + (line + left + int64_t{s} * g.dilation_w) * g.c + group * cs;
                const Sum* matrix = weights + ((int64_t{group} * g.r + r) * g.s + s) * cs * ks + k0;
                for (int32_t c = 0; c < cs; ++c, matrix += ks) {
                  const Sum value = widen(in[c]);
#pragma omp simd
                  for (int32_t j = 0; j < count; ++j) sum[j] += value * matrix[j];
                }
              }
            }
            const int32_t first = group * ks + k0;
            for (int32_t j = 0; j < count; ++j) store_sum(i * g.k + first + j, first + j, sum[j]);
          });
        }
      }
    });
  }

  const ConvProblem problem_;
  const ConvGeometry g_;
  int64_t weights_ = 0;  // offset in the workspace
};

}  // namespace

std::shared_ptr<const ConvAlgorithm> quantized_convolution(const ConvProblem& problem) {
  return std::make_shared<const QuantizedConvolution>(problem);
}

}  // namespace dlfs::cpu
