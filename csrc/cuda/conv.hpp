// Convolution plans: what the files conv*.cpp and conv*.cu share. A plan holds one algorithm out of several kinds: cuDNN
// (conv_cudnn.cpp), cuBLASLt (conv_cublaslt.cpp), our Hopper kernel (conv_sm90*.cu), our kernels for depthwise
// convolutions (conv_depthwise.cu) and for few input channels (conv_stem*.cu), or our direct kernels (conv_direct.cu),
// which take everything that cuDNN has no engine for. What follows a data gradient may be a kernel of its own after any
// of them (conv_gradient.cpp).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/geometry.hpp"
#include "common/quantized.hpp"
#include "cuda/runtime.hpp"

namespace dlfs {

// What a plan computes, fixed when it is created.
struct ConvProblem {
  ConvGeometry g;
  int32_t direction;  // DLFS_CONV_FORWARD, ...
  dlfs_dtype dtype;
  bool bias;
  bool residual;
  bool relu_mask;  // of a data gradient
  bool moments;    // of y
  dlfs_activation activation;
  bool deterministic;
  bool tf32;
  dlfs_dtype y_dtype;  // of y and the residual; another than dtype for plans of 8 bits only

  // True for x and w of 8 bits, with a scale for each output channel.
  bool quantized() const { return is_quantized(dtype); }
  // True where something follows the convolution itself.
  bool epilogue() const { return bias || residual || relu_mask || activation != DLFS_ACT_NONE; }
  bool gradient_epilogue() const { return direction == DLFS_CONV_BACKWARD_DATA && epilogue(); }
  // True where most pixels of dx depend on nothing but the residual.
  bool sparse_gradient() const {
    return direction == DLFS_CONV_BACKWARD_DATA && g.pointwise() && g.groups == 1 && !g.matrix_product();
  }
};

// The device addresses of one execution. The direction says which of x, w, y is the output: y forward, x (dx) for the
// data gradient, w (dw, always fp32) for the weight gradient; y is dy for both gradients.
struct ConvTensors {
  void* x;
  void* w;
  void* y;
  const float* bias;
  const void* residual;
  const void* mask;          // what x was, of a masked data gradient
  float* moments = nullptr;  // of y
  const float* scale = nullptr;  // of plans of 8 bits
};

// One way to compute a problem. Immutable; run may be called from several threads for different streams.
class ConvAlgorithm {
 public:
  virtual ~ConvAlgorithm() = default;
  virtual int64_t workspace_bytes() const = 0;
  // The text for dlfs_conv_pick, under 256 characters.
  virtual std::string pick() const = 0;
  virtual void run(Stream& stream, const ConvTensors& tensors, void* workspace) const = 0;
};

// A failed attempt with one algorithm is no error, unless the process cannot go on.
void ignore_unless_fatal(const Error& error);

// ---- cuDNN --------------------------------------------------------------------------------------------------------

// In which dtypes cuDNN sees a problem's tensors.
enum class CudnnForm : int32_t {
  plain,       // as they are: the weight gradient in fp32, all else in the problem's dtype
  low_result,  // the weight gradient in the problem's dtype, widened afterwards
  wide,        // fp32 copies in the workspace, multiplied as TF32, which holds bf16 and f16 exactly
  fast_sums,   // F8E4M3 summed by the tensor cores alone, in less than fp32
};

// How a problem is put to cuDNN.
struct CudnnRecipe {
  bool fused;    // what follows the convolution in cuDNN's graph, else in a kernel of ours afterwards
  int32_t c, k;  // channels after padding with zeros, which tensor cores want in multiples of 8
  CudnnForm form;
  bool compile;  // engines that cuDNN compiles when the plan is made, too
};

// The recipes for a problem, most promising first; `all` adds those that only a measurement can rank.
std::vector<CudnnRecipe> cudnn_recipes(const ConvProblem& problem, bool all);

// An engine of cuDNN with its settings, not yet built.
struct CudnnCandidate;

// The engines that cuDNN's heuristics name for a recipe, best first, without those that the problem's options exclude.
// fallback: the short list of engines that nearly always work.
std::vector<std::shared_ptr<const CudnnCandidate>> cudnn_candidates(Context& context, const ConvProblem& problem,
                                                                    const CudnnRecipe& recipe, bool fallback);

// True for an engine that cuDNN compiles when the plan is made.
bool cudnn_compiles(const CudnnCandidate& candidate);

// Makes the execution plan; null where this engine cannot, or wants more workspace than the limit.
std::shared_ptr<const ConvAlgorithm> cudnn_build(const CudnnCandidate& candidate, int64_t workspace_limit);

// The algorithm that a pick names; throws DLFS_ERROR_ARGUMENT where it does not fit.
std::shared_ptr<const ConvAlgorithm> cudnn_from_pick(Context& context, const ConvProblem& problem,
                                                     const std::string& pick);

// ---- cuBLASLt -----------------------------------------------------------------------------------------------------

// The algorithms that cuBLASLt's heuristics name for a matrix product, best first, without those that sum in another
// precision or in no fixed order; none for other convolutions. `all` adds those that only a measurement can rank.
std::vector<std::shared_ptr<const ConvAlgorithm>> cublaslt_candidates(Context& context, const ConvProblem& problem,
                                                                      int64_t workspace_limit, bool all);

// The algorithm that a pick names, "lt:..." by its own text or "lt:N" by its place among all candidates; throws
// DLFS_ERROR_ARGUMENT where it does not fit.
std::shared_ptr<const ConvAlgorithm> cublaslt_from_pick(Context& context, const ConvProblem& problem,
                                                        const std::string& pick, int64_t workspace_limit);

// ---- data gradients in two steps ----------------------------------------------------------------------------------

// A problem whose algorithms, with a kernel of ours after them, compute a data gradient.
struct BareGradient {
  // What the kernel does.
  enum class Rest {
    mask,     // masks dx
    add,      // adds the residual, and masks
    scatter,  // puts the gradient of the pixels that a 1x1 convolution with stride reads among the others, and the same
  };
  ConvProblem problem;
  Rest rest;
};

// The problems that serve for a data gradient; none where it is a bare one itself.
std::vector<BareGradient> bare_gradients(const ConvProblem& problem);

// An algorithm for one of these problems, then the kernel. NULL where `algorithm` is.
std::shared_ptr<const ConvAlgorithm> two_step_gradient(const ConvProblem& problem, const BareGradient& bare,
                                                       std::shared_ptr<const ConvAlgorithm> algorithm);

// How the picks of these begin; the rest is the pick of the algorithm for the bare problem.
const char* two_step_prefix(BareGradient::Rest rest);

// ---- our kernels --------------------------------------------------------------------------------------------------

// True where the depthwise kernels can compute the problem.
bool depthwise_supports(const ConvProblem& problem);
std::shared_ptr<const ConvAlgorithm> depthwise_algorithm(Context& context, const ConvProblem& problem);

// True where the kernels for few input channels can compute the problem: forward or weight gradient in 16 bits, C <= 4.
bool stem_supports(const Context& context, const ConvProblem& problem);
std::shared_ptr<const ConvAlgorithm> stem_algorithm(Context& context, const ConvProblem& problem);

std::shared_ptr<const ConvAlgorithm> direct_algorithm(const ConvProblem& problem);

// The direct kernels; any alignment, no workspace. The second is for problems of 8 bits.
void run_direct(Stream& stream, const ConvProblem& problem, const ConvTensors& tensors);
void run_direct_quantized(Stream& stream, const ConvProblem& problem, const ConvTensors& tensors);

// dst (rows_out, c_out) = src (rows_in, c_in), zero beyond src's rows and channels. The dtypes are equal or
// one is F32.
void pad_channels(Stream& stream, void* dst, const void* src, int64_t rows_out, int64_t rows_in, int32_t c_out,
                  int32_t c_in, dlfs_dtype dst_dtype, dlfs_dtype src_dtype);

// dst (rows, k) = activation(the first k of src's (rows, k_in) channels + bias + residual), bias and residual nullable,
// the residual of dst_dtype; dst may be src where the sizes and dtypes are equal. The dtypes are equal or one is F32.
void conv_epilogue(Stream& stream, void* dst, const void* src, const float* bias, const void* residual, int64_t rows,
                   int32_t k, int32_t k_in, dlfs_dtype dst_dtype, dlfs_dtype src_dtype, dlfs_activation activation);

// dx[i] = mask[i] <= 0 ? 0 : gradient[i] + residual[i]; residual and mask nullable, dx may be any of the others.
void gradient_epilogue(Stream& stream, void* dx, const void* gradient, const void* residual, const void* mask, int64_t n,
                       dlfs_dtype dtype);

// dx (N, H, W, C) = the gradient of the pixels (p stride_h, q stride_w) from `packed` (N, P, Q, C), 0 elsewhere, with residual
// and mask as above. Where dx is the residual and there is no mask, other pixels are not touched.
void scatter_gradient(Stream& stream, void* dx, const void* packed, const void* residual, const void* mask,
                      const ConvGeometry& g, dlfs_dtype dtype);

// Fills n values with noise in [-1, 1), in 8 bits in [-2, 2) or [-64, 64), for timing on data that switches as many bits
// as real data.
void fill_noise(Stream& stream, void* dst, int64_t n, dlfs_dtype dtype, uint32_t seed);

}  // namespace dlfs
