// The Hopper convolution kernel (conv_sm90.cuh) as one of the algorithms of a convolution plan.
#pragma once

#include "cuda/conv.hpp"

namespace dlfs {

// What a kernel of one tile width computes, besides y = activation(scale conv(x, w) + bias + residual).
struct Sm90Tensors {
  const void* x;
  const void* w;
  void* y;
  const float* scale;     // of problems of 8 bits only
  const float* bias;      // nullable
  const void* residual;   // nullable, y's shape
  float* moments;         // nullable: dlfs_conv_forward_moments's, of as many parts as there are multiprocessors
};

// The tile widths (output channels) that serve a problem, most promising first; none where the kernel cannot compute it.
std::vector<int> sm90_tile_widths(const Context& context, const ConvProblem& problem);

// All addresses are multiples of 16 bytes. The second is the variants of 8 bits alone.
void run_sm90(Stream& stream, const ConvProblem& problem, int tile_width, const Sm90Tensors& tensors);
void run_sm90_quantized(Stream& stream, const ConvProblem& problem, int tile_width, const Sm90Tensors& tensors);

std::shared_ptr<const ConvAlgorithm> sm90_algorithm(const ConvProblem& problem, int tile_width);

}  // namespace dlfs
