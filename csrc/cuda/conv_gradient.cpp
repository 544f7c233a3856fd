// Data gradients with a residual or a mask by an algorithm that knows neither, or no mask, and a kernel of ours after it.
#include "common/arguments.hpp"
#include "cuda/conv.hpp"

namespace dlfs {
namespace {

class SeparateGradient final : public ConvAlgorithm {
 public:
  SeparateGradient(const ConvProblem& problem, const ConvProblem& bare_problem,
                   std::shared_ptr<const ConvAlgorithm> bare)
      : elements_(problem.g.x_elements()),
        dtype_(problem.dtype),
        adds_(problem.residual && !bare_problem.residual),
        prefix_(separate_gradient_prefix(problem, bare_problem)),
        bare_(std::move(bare)),
        gradient_at_((bare_->workspace_bytes() + 255) / 256 * 256) {}

  // dx may be the residual, so the gradient waits for it in the workspace.
  int64_t workspace_bytes() const override {
    return adds_ ? gradient_at_ + elements_ * dtype_size(dtype_) : bare_->workspace_bytes();
  }
  std::string pick() const override { return prefix_ + bare_->pick(); }

  void run(Stream& s, const ConvTensors& t, void* workspace) const override {
    void* const gradient = adds_ ? static_cast<char*>(workspace) + gradient_at_ : t.x;
    bare_->run(s, {gradient, t.w, t.y, nullptr, adds_ ? nullptr : t.residual, nullptr}, workspace);
    gradient_epilogue(s, t.x, gradient, adds_ ? t.residual : nullptr, t.mask, elements_, dtype_);
  }

 private:
  const int64_t elements_;
  const dlfs_dtype dtype_;
  const bool adds_;  // the residual, after the algorithm
  const std::string prefix_;
  const std::shared_ptr<const ConvAlgorithm> bare_;
  const int64_t gradient_at_;
};

}  // namespace

std::vector<ConvProblem> separable_gradients(const ConvProblem& problem) {
  std::vector<ConvProblem> bare;
  if (!problem.gradient_epilogue()) return bare;
  ConvProblem one = problem;
  one.relu_mask = false;
  if (problem.residual && problem.relu_mask) bare.push_back(one);
  one.residual = false;
  bare.push_back(one);
  return bare;
}

std::string separate_gradient_prefix(const ConvProblem& problem, const ConvProblem& bare_problem) {
  return problem.residual && !bare_problem.residual ? "then add " : "then mask ";
}

std::shared_ptr<const ConvAlgorithm> separate_gradient(const ConvProblem& problem, const ConvProblem& bare_problem,
                                                       std::shared_ptr<const ConvAlgorithm> bare) {
  if (!bare) return nullptr;
  return std::make_shared<SeparateGradient>(problem, bare_problem, std::move(bare));
}

}  // namespace dlfs
