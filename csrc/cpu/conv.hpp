// Convolution plans of the CPU backend: what to compute, and the algorithm that computes it.
#pragma once

#include "common/geometry.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {

// One direction of y = activation(conv(x, w) + bias + residual) or of its gradients; see dlfs_conv_create.
struct ConvProblem {
  ConvGeometry g;
  int32_t direction;
  dlfs_dtype dtype;
  int32_t flags;
  dlfs_activation activation;
  dlfs_dtype y_dtype;  // of y and the residual; another than dtype for plans of 8 bits only
  int threads;  // of the algorithm: its partition of the work, and so the order of its sums, depends on them

  bool bias() const { return flags & DLFS_CONV_BIAS; }
  bool residual() const { return flags & DLFS_CONV_RESIDUAL; }
  bool relu_mask() const { return flags & DLFS_CONV_RELU_MASK; }
  const char* direction_name() const;
};

// Addresses of one execution. x (N, H, W, C) and y (N, P, Q, K) are activations or their gradients, w (K, R, S, C /
// groups) weights or their fp32 gradient; which is written follows from the direction. mask: what x was, of a masked data
// gradient; scale: of plans of 8 bits.
struct ConvBuffers {
  void* x;
  void* y;
  void* w;
  const float* bias;
  const void* residual;
  const void* mask;
  void* workspace;
  const float* scale = nullptr;
};

// A way to compute a problem. Immutable once built, so captured graphs share it with the plan.
class ConvAlgorithm {
 public:
  virtual ~ConvAlgorithm() = default;
  virtual void run(const ConvBuffers& buffers) const = 0;
  int64_t workspace() const { return workspace_; }
  // "layout implementation", the text of dlfs_conv_pick.
  const std::string& name() const { return name_; }
  // Whether the implementation is one that no problem should fall to while there is another.
  bool slow() const { return slow_; }

 protected:
  // Reserves bytes of the workspace, 256-byte aligned, and returns their offset.
  int64_t reserve(int64_t bytes) {
    const int64_t offset = workspace_;
    workspace_ += (bytes + 255) / 256 * 256;
    return offset;
  }

  int64_t workspace_ = 0;
  std::string name_;
  bool slow_ = false;
};

// oneDNN's algorithm with activations in plain NHWC, or in the layout that oneDNN prefers with reorders before and
// after
// (`blocked`). NULL where it has none to be trusted, or where the preferred layout is NHWC.
std::shared_ptr<const ConvAlgorithm> onednn_convolution(const ConvProblem& problem, bool blocked);

// Our loops for depthwise convolutions (groups = C = K). NULL for others.
std::shared_ptr<const ConvAlgorithm> depthwise_convolution(const ConvProblem& problem);

// Our loops for forward convolutions of 8 bits.
std::shared_ptr<const ConvAlgorithm> quantized_convolution(const ConvProblem& problem);

// Our loops for any other convolution: slow, and always there.
std::shared_ptr<const ConvAlgorithm> direct_convolution(const ConvProblem& problem);

}  // namespace dlfs::cpu
