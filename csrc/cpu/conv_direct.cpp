// Convolutions of any shape by our own loops: the choice where oneDNN has no implementation that is both right and
// vectorised (see trusted() in conv_onednn.cpp). Every pass gathers: a thread owns what it writes, and sums are fp32 in
// an order that the sizes alone determine.
#include "cpu/conv.hpp"
#include "cpu/conv_taps.hpp"
#include "cpu/numeric.hpp"

namespace dlfs::cpu {

namespace {

class DirectConvolution : public ConvAlgorithm {
 public:
  explicit DirectConvolution(const ConvProblem& problem) : problem_(problem), g_(problem.g) {
    name_ = "direct loops";
    slow_ = true;
    if (problem.direction != DLFS_CONV_BACKWARD_WEIGHT) weights_ = reserve(g_.w_elements() * int64_t{sizeof(float)});
  }

  void run(const ConvBuffers& b) const override {
    problem_.dtype == DLFS_BF16 ? run_typed<Bf16>(b) : run_typed<float>(b);
  }

 private:
  int32_t group_c() const { return g_.c / g_.groups; }
  int32_t group_k() const { return g_.k / g_.groups; }

  template <class T>
  void run_typed(const ConvBuffers& b) const {
    if (problem_.direction == DLFS_CONV_BACKWARD_WEIGHT) {
      backward_weight(static_cast<float*>(b.w), static_cast<const T*>(b.x), static_cast<const T*>(b.y));
      return;
    }
    const T* w = static_cast<const T*>(b.w);
    float* weights = reinterpret_cast<float*>(static_cast<char*>(b.workspace) + weights_);
    if (problem_.direction == DLFS_CONV_BACKWARD_DATA) {
      for (int64_t i = 0; i < g_.w_elements(); ++i) weights[i] = to_float(w[i]);
      backward_data(static_cast<T*>(b.x), static_cast<const T*>(b.y), weights);
      return;
    }
    // (groups, K / groups, R S C / groups) -> (groups, R S C / groups, K / groups)
    const int64_t inner = int64_t{g_.r} * g_.s * group_c();
    for (int64_t k = 0; k < g_.k; ++k) {
      float* out = weights + k / group_k() * group_k() * inner + k % group_k();
      for (int64_t i = 0; i < inner; ++i) out[i * group_k()] = to_float(w[k * inner + i]);
    }
    dispatch_activation(problem_.activation, [&](auto tag) {
      forward<T, decltype(tag)::value>(static_cast<T*>(b.y), static_cast<const T*>(b.x), weights, b.bias,
                                       static_cast<const T*>(b.residual));
    });
  }

  template <class T, dlfs_activation activation>
  void forward(T* y, const T* x, const float* weights, const float* bias, const T* residual) const {
    const ConvGeometry& g = g_;
    const int32_t cs = group_c(), ks = group_k();
    parallel_for(int64_t{g.n} * g.p, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t n = row / g.p, top = row % g.p * g.stride_h - g.pad_h;
        const Taps rows = valid_taps(top, g.r, g.dilation_h, g.h);
        for (int64_t i = 0; i < int64_t{g.q} * g.groups; ++i) {
          const int64_t q = i / g.groups, group = i % g.groups, left = q * g.stride_w - g.pad_w;
          const Taps columns = valid_taps(left, g.s, g.dilation_w, g.w);
          const float* matrix = weights + group * ks * g.r * g.s * cs;
          const int64_t out = (row * g.q + q) * g.k + group * ks;
          for_each_chunk(ks, [&](auto width, int32_t k0) {
            const int32_t count = width;
            float sum[channel_chunk];
            for (int32_t j = 0; j < count; ++j) sum[j] = bias ? bias[group * ks + k0 + j] : 0.0f;
            for (int32_t r = rows.begin; r < rows.end; ++r) {
              for (int32_t s = columns.begin; s < columns.end; ++s) {
                const T* in =
                    x + ((n * g.h + top + int64_t{r} * g.dilation_h) * g.w + left + int64_t{s} * g.dilation_w) * g.c +
                    group * cs;
                const float* w = matrix + (int64_t{r} * g.s + s) * cs * ks + k0;
                for (int32_t c = 0; c < cs; ++c, w += ks) {
                  const float value = to_float(in[c]);
#pragma omp simd
                  for (int32_t j = 0; j < count; ++j) sum[j] += value * w[j];
                }
              }
            }
            if (residual) {
              for (int32_t j = 0; j < count; ++j) sum[j] += to_float(residual[out + k0 + j]);
            }
            for (int32_t j = 0; j < count; ++j) y[out + k0 + j] = from_float<T>(activate<activation>(sum[j]));
          });
        }
      }
    });
  }

  template <class T>
  void backward_data(T* dx, const T* dy, const float* weights) const {
    const ConvGeometry& g = g_;
    const int32_t cs = group_c(), ks = group_k();
    const int64_t k_step = int64_t{g.r} * g.s * cs;
    parallel_for(int64_t{g.n} * g.h, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t n = row / g.h, h = row % g.h;
        for (int64_t i = 0; i < int64_t{g.w} * g.groups; ++i) {
          const int64_t w = i / g.groups, group = i % g.groups;
          T* out = dx + (row * g.w + w) * g.c + group * cs;
          for_each_chunk(cs, [&](auto width, int32_t c0) {
            const int32_t count = width;
            float sum[channel_chunk] = {};
            for (int32_t r = 0; r < g.r; ++r) {
              const int64_t p = output_of(h + g.pad_h - int64_t{r} * g.dilation_h, g.stride_h, g.p);
              if (p < 0) continue;
              for (int32_t s = 0; s < g.s; ++s) {
                const int64_t q = output_of(w + g.pad_w - int64_t{s} * g.dilation_w, g.stride_w, g.q);
                if (q < 0) continue;
                const T* in = dy + ((n * g.p + p) * g.q + q) * g.k + group * ks;
                const float* matrix = weights + group * ks * k_step + (int64_t{r} * g.s + s) * cs + c0;
                for (int32_t k = 0; k < ks; ++k, matrix += k_step) {
                  const float value = to_float(in[k]);
#pragma omp simd
                  for (int32_t j = 0; j < count; ++j) sum[j] += value * matrix[j];
                }
              }
            }
            for (int32_t j = 0; j < count; ++j) out[c0 + j] = from_float<T>(sum[j]);
          });
        }
      }
    });
  }

  // Each output channel's gradient is one thread's: (R, S, C / groups) sums over all positions, row by row.
  template <class T>
  void backward_weight(float* dw, const T* x, const T* dy) const {
    const ConvGeometry& g = g_;
    const int32_t cs = group_c();
    parallel_for(g.k, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t group = k / group_k();
        float* out = dw + k * g.r * g.s * cs;
        std::fill_n(out, int64_t{g.r} * g.s * cs, 0.0f);
        for (int64_t row = 0; row < int64_t{g.n} * g.p; ++row) {
          const int64_t n = row / g.p, top = row % g.p * g.stride_h - g.pad_h;
          const Taps rows = valid_taps(top, g.r, g.dilation_h, g.h);
          const T* gradient = dy + row * g.q * g.k + k;
          for (int32_t r = rows.begin; r < rows.end; ++r) {
            const T* line = x + (n * g.h + top + int64_t{r} * g.dilation_h) * g.w * g.c + group * cs;
            for (int32_t s = 0; s < g.s; ++s) add_tap(out + (int64_t{r} * g.s + s) * cs, line, gradient, s);
          }
        }
      }
    });
  }

  // out (C / groups) += sum over the outputs q of one row of dy * x, for column s of the kernel.
  template <class T>
  void add_tap(float* out, const T* line, const T* gradient, int32_t s) const {
    const ConvGeometry& g = g_;
    const int64_t shift = int64_t{s} * g.dilation_w - g.pad_w;
    const Outputs outputs = valid_outputs(shift, g.stride_w, g.w, g.q);
    for_each_chunk(group_c(), [&](auto width, int32_t c0) {
      const int32_t count = width;
      float sum[channel_chunk] = {};
      for (int64_t q = outputs.begin; q < outputs.end; ++q) {
        const T* in = line + (q * g.stride_w + shift) * g.c + c0;
        const float value = to_float(gradient[q * g.k]);
#pragma omp simd
        for (int32_t j = 0; j < count; ++j) sum[j] += value * to_float(in[j]);
      }
      for (int32_t j = 0; j < count; ++j) out[c0 + j] += sum[j];
    });
  }

  const ConvProblem problem_;
  const ConvGeometry g_;
  int64_t weights_ = 0;  // offset in the workspace
};

}  // namespace

std::shared_ptr<const ConvAlgorithm> direct_convolution(const ConvProblem& problem) {
  return std::make_shared<const DirectConvolution>(problem);
}

}  // namespace dlfs::cpu
