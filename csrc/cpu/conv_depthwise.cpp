// Depthwise convolutions (groups = C = K) by our own loops, for the cases where oneDNN falls back to a general kernel:
// 5x5 weight gradients, dilation, channels that do not fill its registers. Channels are the vector dimension. Every
// pass gathers: a thread owns the rows that it writes. Sums are fp32.
#include <cstring>

#include "cpu/conv.hpp"
#include "cpu/conv_taps.hpp"
#include "cpu/numeric.hpp"

namespace dlfs::cpu {

namespace {

// Partial weight gradients: a number that does not depend on the threads, so the order of sums does not either.
constexpr int64_t max_parts = 32;

class DepthwiseConvolution : public ConvAlgorithm {
 public:
  explicit DepthwiseConvolution(const ConvProblem& problem) : problem_(problem), g_(problem.g) {
    name_ = "depthwise loops";
    weights_ = reserve(taps() * g_.c * int64_t{sizeof(float)});
    if (problem.direction == DLFS_CONV_BACKWARD_WEIGHT) {
      parts_count_ = std::min<int64_t>(max_parts, int64_t{g_.n} * g_.p);
      parts_ = reserve(parts_count_ * part_elements() * int64_t{sizeof(float)});
    }
  }

  void run(const ConvBuffers& b) const override {
    problem_.dtype == DLFS_BF16 ? run_typed<Bf16>(b) : run_typed<float>(b);
  }

 private:
  int64_t taps() const { return int64_t{g_.r} * g_.s; }
  // Floats of one partial gradient, padded so that threads share no cache line.
  int64_t part_elements() const { return (taps() * g_.c + 31) / 32 * 32; }

  template <class T>
  void run_typed(const ConvBuffers& b) const {
    float* weights = reinterpret_cast<float*>(static_cast<char*>(b.workspace) + weights_);
    if (problem_.direction == DLFS_CONV_BACKWARD_WEIGHT) {
      float* parts = reinterpret_cast<float*>(static_cast<char*>(b.workspace) + parts_);
      backward_weight(static_cast<float*>(b.w), static_cast<const T*>(b.x), static_cast<const T*>(b.y), weights, parts);
      return;
    }
    // (C, R, S) -> (R, S, C)
    const T* w = static_cast<const T*>(b.w);
    for (int32_t c = 0; c < g_.c; ++c) {
      for (int64_t tap = 0; tap < taps(); ++tap) weights[tap * g_.c + c] = to_float(w[c * taps() + tap]);
    }
    if (problem_.direction == DLFS_CONV_BACKWARD_DATA) {
      backward_data(static_cast<T*>(b.x), static_cast<const T*>(b.y), weights);
      return;
    }
    dispatch_activation(problem_.activation, [&](auto tag) {
      forward<T, decltype(tag)::value>(static_cast<T*>(b.y), static_cast<const T*>(b.x), weights, b.bias,
                                       static_cast<const T*>(b.residual));
    });
  }

  template <class Body>
  void for_each_row(int32_t rows, int64_t row_work, const Body& body) const {
    const int64_t grain = std::max<int64_t>(1, 8192 / std::max<int64_t>(1, row_work));
    parallel_for(int64_t{g_.n} * rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(i / rows, static_cast<int32_t>(i % rows));
    });
  }

  template <class T, dlfs_activation activation>
  void forward(T* y, const T* x, const float* weights, const float* bias, const T* residual) const {
    const ConvGeometry& g = g_;
    for_each_row(g.p, int64_t{g.q} * g.c * taps(), [&](int64_t n, int32_t p) {
      const int64_t top = int64_t{p} * g.stride_h - g.pad_h;
      const Taps rows = valid_taps(top, g.r, g.dilation_h, g.h);
      for (int32_t q = 0; q < g.q; ++q) {
        const int64_t left = int64_t{q} * g.stride_w - g.pad_w;
        const Taps columns = valid_taps(left, g.s, g.dilation_w, g.w);
        const int64_t out = ((n * g.p + p) * g.q + q) * g.c;
        for_each_chunk(g.c, [&](auto width, int32_t c0) {
          const int32_t count = width;
          float sum[channel_chunk];
          for (int32_t j = 0; j < count; ++j) sum[j] = bias ? bias[c0 + j] : 0.0f;
          for (int32_t r = rows.begin; r < rows.end; ++r) {
            for (int32_t s = columns.begin; s < columns.end; ++s) {
              const T* in =
                  x + ((n * g.h + top + int64_t{r} * g.dilation_h) * g.w + left + int64_t{s} * g.dilation_w) * g.c + c0;
              const float* w = weights + (int64_t{r} * g.s + s) * g.c + c0;
#pragma omp simd
              for (int32_t j = 0; j < count; ++j) sum[j] += to_float(in[j]) * w[j];
            }
          }
          if (residual) {
            for (int32_t j = 0; j < count; ++j) sum[j] += to_float(residual[out + c0 + j]);
          }
          for (int32_t j = 0; j < count; ++j) y[out + c0 + j] = from_float<T>(activate<activation>(sum[j]));
        });
      }
    });
  }

  template <class T>
  void backward_data(T* dx, const T* dy, const float* weights) const {
    const ConvGeometry& g = g_;
    for_each_row(g.h, int64_t{g.w} * g.c * taps() / (int64_t{g.stride_h} * g.stride_w), [&](int64_t n, int32_t h) {
      for (int32_t w = 0; w < g.w; ++w) {
        T* out = dx + ((n * g.h + h) * g.w + w) * g.c;
        for_each_chunk(g.c, [&](auto width, int32_t c0) {
          const int32_t count = width;
          float sum[channel_chunk] = {};
          for (int32_t r = 0; r < g.r; ++r) {
            const int64_t p = output_of(int64_t{h} + g.pad_h - int64_t{r} * g.dilation_h, g.stride_h, g.p);
            if (p < 0) continue;
            for (int32_t s = 0; s < g.s; ++s) {
              const int64_t q = output_of(int64_t{w} + g.pad_w - int64_t{s} * g.dilation_w, g.stride_w, g.q);
              if (q < 0) continue;
              const T* in = dy + ((n * g.p + p) * g.q + q) * g.c + c0;
              const float* weight = weights + (int64_t{r} * g.s + s) * g.c + c0;
#pragma omp simd
              for (int32_t j = 0; j < count; ++j) sum[j] += to_float(in[j]) * weight[j];
            }
          }
          for (int32_t j = 0; j < count; ++j) out[c0 + j] = from_float<T>(sum[j]);
        });
      }
    });
  }

  // Adds x * dy of one output row, for one row of taps and one chunk of channels, to part (S, C). The taps' sums are
  // kept apart over the row, which also keeps fp32 sums short.
  template <class T, class Width>
  void accumulate_row(float* part, const T* x_row, const T* dy_row, int32_t c0, Width width) const {
    const int32_t count = width;
    const ConvGeometry& g = g_;
    for (int32_t s = 0; s < g.s; ++s) {
      const int64_t shift = int64_t{s} * g.dilation_w - g.pad_w;
      const Outputs outputs = valid_outputs(shift, g.stride_w, g.w, g.q);
      float sum[channel_chunk] = {};
      for (int64_t q = outputs.begin; q < outputs.end; ++q) {
        const T* in = x_row + (q * g.stride_w + shift) * g.c + c0;
        const T* gradient = dy_row + q * g.c + c0;
#pragma omp simd
        for (int32_t j = 0; j < count; ++j) sum[j] += to_float(in[j]) * to_float(gradient[j]);
      }
      float* out = part + int64_t{s} * g.c + c0;
      for (int32_t j = 0; j < count; ++j) out[j] += sum[j];
    }
  }

  template <class T>
  void backward_weight(float* dw, const T* x, const T* dy, float* sums, float* parts) const {
    const ConvGeometry& g = g_;
    const int64_t rows = int64_t{g.n} * g.p;
    parallel_for(parts_count_, 1, [&](int64_t part_begin, int64_t part_end) {
      for (int64_t i = part_begin; i < part_end; ++i) {
        float* part = parts + i * part_elements();
        std::memset(part, 0, static_cast<size_t>(part_elements()) * sizeof(float));
        for (int64_t row = rows * i / parts_count_; row < rows * (i + 1) / parts_count_; ++row) {
          const int64_t n = row / g.p, top = row % g.p * g.stride_h - g.pad_h;
          const Taps valid = valid_taps(top, g.r, g.dilation_h, g.h);
          for_each_chunk(g.c, [&](auto width, int32_t c0) {
            for (int32_t r = valid.begin; r < valid.end; ++r) {
              accumulate_row(part + int64_t{r} * g.s * g.c, x + (n * g.h + top + int64_t{r} * g.dilation_h) * g.w * g.c,
                             dy + row * g.q * g.c, c0, width);
            }
          });
        }
      }
    });
    // (R, S, C) partial sums -> (C, R, S)
    std::memcpy(sums, parts, static_cast<size_t>(taps() * g.c) * sizeof(float));
    for (int64_t i = 1; i < parts_count_; ++i) {
      const float* part = parts + i * part_elements();
#pragma omp simd
      for (int64_t j = 0; j < taps() * g.c; ++j) sums[j] += part[j];
    }
    for (int32_t c = 0; c < g.c; ++c) {
      for (int64_t tap = 0; tap < taps(); ++tap) dw[c * taps() + tap] = sums[tap * g.c + c];
    }
  }

  const ConvProblem problem_;
  const ConvGeometry g_;
  int64_t weights_ = 0;  // offsets in the workspace
  int64_t parts_ = 0;
  int64_t parts_count_ = 0;
};

}  // namespace

std::shared_ptr<const ConvAlgorithm> depthwise_convolution(const ConvProblem& problem) {
  if (!problem.g.depthwise()) return nullptr;
  return std::make_shared<const DepthwiseConvolution>(problem);
}

}  // namespace dlfs::cpu
