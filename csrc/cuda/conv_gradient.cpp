// Data gradients in two steps: an algorithm that knows neither residual nor mask, or no mask, or that computes the touched
// pixels alone, and a kernel of ours after it.
#include "common/arguments.hpp"
#include "cuda/conv.hpp"

namespace dlfs {
namespace {

using Rest = BareGradient::Rest;

class TwoStepGradient final : public ConvAlgorithm {
 public:
  TwoStepGradient(const ConvProblem& problem, const BareGradient& bare, std::shared_ptr<const ConvAlgorithm> algorithm)
      : g_(problem.g),
        dtype_(problem.dtype),
        rest_(bare.rest),
        bare_elements_(bare.problem.g.x_elements()),
        algorithm_(std::move(algorithm)),
        gradient_at_((algorithm_->workspace_bytes() + 255) / 256 * 256),
        // dx may be the residual, so the gradient waits for it in the workspace.
        waits_(rest_ == Rest::scatter || (rest_ == Rest::add && problem.residual)) {}

  int64_t workspace_bytes() const override {
    return waits_ ? gradient_at_ + bare_elements_ * dtype_size(dtype_) : algorithm_->workspace_bytes();
  }
  std::string pick() const override { return two_step_prefix(rest_) + algorithm_->pick(); }

  void run(Stream& s, const ConvTensors& t, void* workspace) const override {
    void* const gradient = waits_ ? static_cast<char*>(workspace) + gradient_at_ : t.x;
    const void* const residual = rest_ == Rest::mask ? nullptr : t.residual;
    algorithm_->run(s, {gradient, t.w, t.y, nullptr, residual ? nullptr : t.residual, nullptr}, workspace);
    if (rest_ == Rest::scatter) {
      scatter_gradient(s, t.x, gradient, residual, t.mask, g_, dtype_);
    } else {
      gradient_epilogue(s, t.x, gradient, residual, t.mask, bare_elements_, dtype_);
    }
  }

 private:
  const ConvGeometry g_;
  const dlfs_dtype dtype_;
  const Rest rest_;
  const int64_t bare_elements_;
  const std::shared_ptr<const ConvAlgorithm> algorithm_;
  const int64_t gradient_at_;
  const bool waits_;
};

}  // namespace

std::vector<BareGradient> bare_gradients(const ConvProblem& problem) {
  std::vector<BareGradient> bare;
  ConvProblem one = problem;
  one.relu_mask = false;
  if (problem.gradient_epilogue()) {
    if (problem.relu_mask) bare.push_back({one, Rest::mask});
    one.residual = false;
    if (problem.residual) bare.push_back({one, Rest::add});
  }
  if (problem.sparse_gradient()) {
    one.g.h = one.g.p;
    one.g.w = one.g.q;
    one.g.stride_h = one.g.stride_w = 1;
    bare.push_back({one, Rest::scatter});
  }
  return bare;
}

std::shared_ptr<const ConvAlgorithm> two_step_gradient(const ConvProblem& problem, const BareGradient& bare,
                                                       std::shared_ptr<const ConvAlgorithm> algorithm) {
  if (!algorithm) return nullptr;
  return std::make_shared<TwoStepGradient>(problem, bare, std::move(algorithm));
}

const char* two_step_prefix(Rest rest) {
  static const char* const prefixes[] = {"then mask ", "then add ", "then scatter "};
  return prefixes[static_cast<int>(rest)];
}

}  // namespace dlfs
