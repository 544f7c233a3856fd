// Convolution plans: choosing an algorithm by heuristics, by measurement or from a recorded pick, and running it.
#include <algorithm>
#include <cstring>
#include <mutex>

#include "common/conv_keys.hpp"
#include "cuda/conv.hpp"
#include "cuda/conv_contest.hpp"
#include "cuda/conv_pool.hpp"
#include "cuda/conv_sm90.hpp"

namespace dlfs {
namespace {

struct Conv {
  std::shared_ptr<Context> context;
  ConvProblem problem;

  std::shared_ptr<const ConvAlgorithm> algorithm() const {
    const std::lock_guard lock(mutex_);
    return algorithm_;
  }
  void use(std::shared_ptr<const ConvAlgorithm> algorithm) {
    const std::lock_guard lock(mutex_);
    algorithm_ = std::move(algorithm);
  }

  // The candidates that are being built for tuning; null where none are. Taking them leaves none.
  void put_builds(std::shared_ptr<Builds> builds) {
    const std::lock_guard lock(mutex_);
    builds_ = std::move(builds);
  }
  std::shared_ptr<Builds> take_builds() {
    const std::lock_guard lock(mutex_);
    return std::move(builds_);
  }

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const ConvAlgorithm> algorithm_;
  std::shared_ptr<Builds> builds_;
};

using ConvTable = HandleTable<Conv, HandleKind::conv>;

ConvTable& convs() {
  static auto* const table = new ConvTable();
  return *table;
}

const char* direction_name(int32_t direction) {
  static const char* const names[] = {"forward", "backward-data", "backward-weight"};
  return names[direction];
}

// The most workspace that an algorithm may ask for: a sixteenth of the card, within 64 MiB to 1 GiB. It depends on the
// card alone, so that the choice of algorithm does, too.
int64_t workspace_limit() {
  size_t free_bytes = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
  return std::clamp<int64_t>(static_cast<int64_t>(total / 16), int64_t{64} << 20, int64_t{1} << 30);
}

// True where cuBLASLt is the choice without a measurement, by those on an H100 (results/matrix-products-h100.txt):
// - fp32: twice as fast as cuDNN's first choice, whatever the direction;
// - gradients in bf16 and f16: as fast, and weight gradients come out in fp32, which cuDNN's quick engines would round;
// - forward in bf16 and f16: where no epilogue follows, which cuDNN fuses and cuBLASLt leaves to a kernel of ours, and the
//   channels need no padding; and for a few rows, where launching is what takes the time.
// It has nothing for a data gradient with a mask, and cuDNN goes before it followed by a kernel of ours.
bool prefers_cublaslt(const ConvProblem& problem) {
  const ConvGeometry& g = problem.g;
  if (!g.matrix_product() || problem.quantized()) return false;
  if (problem.dtype == DLFS_F32 || problem.direction != DLFS_CONV_FORWARD) return true;
  const bool few_rows = g.h == 1 && g.w == 1 && g.n <= 256;
  return few_rows || (!problem.epilogue() && g.c % 8 == 0 && g.k % 8 == 0);
}

// True where our Hopper kernel is the choice without a measurement in 16 bits: for the joins of residual blocks, which are bound by
// memory, and where cuDNN's fused engines take a fifth longer (docs/performance.md).
bool prefers_sm90(const ConvProblem& problem) {
  const ConvGeometry& g = problem.g;
  return g.r == 1 && g.s == 1 && problem.residual && g.c <= 256 && int64_t{g.n} * g.p * g.q >= 16384;
}

// The first algorithm of the most promising recipe that can be built; our own kernels where the libraries have none.
std::shared_ptr<const ConvAlgorithm> choose(Context& context, const ConvProblem& problem) {
  if (problem.moments) {  // which the Hopper kernel alone gives
    const std::vector<int> widths = sm90_tile_widths(context, problem);
    DLFS_CHECK(!widths.empty(), DLFS_ERROR_UNSUPPORTED, "this device gives no moments with %s",
               problem.g.text().c_str());
    return sm90_algorithm(problem, widths.front());
  }
  if (depthwise_supports(problem)) return depthwise_algorithm(context, problem);
  // On an H100 and a 7x7 convolution of 32x640x640x3 with stride 2, forward takes 0.37 ms where cuDNN's best takes 1.9,
  // and the weight gradient 0.47 where it takes 1.3; images of odd width gain least (1.4 times, two of 639x641).
  if (stem_supports(context, problem)) return stem_algorithm(context, problem);
  const std::vector<BareGradient> bare = bare_gradients(problem);
  const auto in_two_steps = [&](const BareGradient& one) {
    return two_step_gradient(problem, one, choose(context, one.problem));
  };
  if (problem.sparse_gradient() && problem.residual && !problem.relu_mask) return in_two_steps(bare.back());
  if (problem.quantized() || prefers_sm90(problem)) {
    const std::vector<int> widths = sm90_tile_widths(context, problem);
    if (!widths.empty()) return sm90_algorithm(problem, widths.front());
  }
  const int64_t limit = workspace_limit();
  if (prefers_cublaslt(problem)) {
    const auto candidates = cublaslt_candidates(context, problem, limit, false);
    if (!candidates.empty()) return candidates.front();
  }
  for (const CudnnRecipe& recipe : cudnn_recipes(problem, false)) {
    for (const bool fallback : {false, true}) {
      for (const auto& candidate : cudnn_candidates(context, problem, recipe, fallback)) {
        if (!recipe.compile && cudnn_compiles(*candidate)) continue;
        if (auto algorithm = cudnn_build(*candidate, limit)) return algorithm;
      }
    }
  }
  if (!problem.gradient_epilogue()) return direct_algorithm(problem);
  // The kernel adds and masks in one pass, but for matrix products, to which cuBLASLt adds the residual.
  const bool added = problem.residual && problem.relu_mask && !problem.g.matrix_product();
  return in_two_steps(bare[added ? 1 : 0]);
}

std::shared_ptr<const ConvAlgorithm> from_pick(Context& context, const ConvProblem& problem, const std::string& pick) {
  if (pick.empty()) return choose(context, problem);
  if (pick == "direct" && !problem.moments) return direct_algorithm(problem);
  if (pick == "depthwise") {
    DLFS_CHECK(depthwise_supports(problem), DLFS_ERROR_ARGUMENT, "pick 'depthwise' does not fit %s",
               problem.g.text().c_str());
    return depthwise_algorithm(context, problem);
  }
  if (pick == "stem") {
    DLFS_CHECK(stem_supports(context, problem), DLFS_ERROR_ARGUMENT, "pick 'stem' does not fit %s",
               problem.g.text().c_str());
    return stem_algorithm(context, problem);
  }
  if (pick.compare(0, 5, "then ") == 0) {
    for (const BareGradient& bare : bare_gradients(problem)) {
      const std::string prefix = two_step_prefix(bare.rest);
      if (pick.compare(0, prefix.size(), prefix) != 0) continue;
      return two_step_gradient(problem, bare, from_pick(context, bare.problem, pick.substr(prefix.size())));
    }
  }
  int tile_width = 0;
  if (sscanf(pick.c_str(), "sm90 %d", &tile_width) == 1) {
    const std::vector<int> widths = sm90_tile_widths(context, problem);
    DLFS_CHECK(std::find(widths.begin(), widths.end(), tile_width) != widths.end(), DLFS_ERROR_ARGUMENT,
               "pick '%.200s' does not fit %s", pick.c_str(), problem.g.text().c_str());
    return sm90_algorithm(problem, tile_width);
  }
  DLFS_CHECK(!problem.moments, DLFS_ERROR_ARGUMENT, "pick '%.200s' gives no moments", pick.c_str());
  if (pick.compare(0, 3, "lt:") == 0 && !problem.quantized()) {
    return cublaslt_from_pick(context, problem, pick, workspace_limit());
  }
  return cudnn_from_pick(context, problem, pick);
}

// ---- measuring ----------------------------------------------------------------------------------------------------

// Tensors full of noise for one problem.
class Scratch {
 public:
  Scratch(Stream& s, const ConvProblem& problem) {
    const ConvGeometry& g = problem.g;
    const bool wgrad = problem.direction == DLFS_CONV_BACKWARD_WEIGHT;
    tensors_.x = noise(s, g.x_elements(), problem.dtype);
    tensors_.w = noise(s, g.w_elements(), wgrad ? DLFS_F32 : problem.dtype);
    tensors_.y = noise(s, g.y_elements(), problem.y_dtype);
    tensors_.bias = problem.bias ? static_cast<const float*>(noise(s, g.k, DLFS_F32)) : nullptr;
    // That of a data gradient lies where dx does: it is a sum that nothing else needs.
    const bool gradient = problem.gradient_epilogue();
    tensors_.residual = !problem.residual ? nullptr : gradient ? tensors_.x : noise(s, g.y_elements(), problem.y_dtype);
    tensors_.mask = problem.relu_mask ? noise(s, g.x_elements(), problem.dtype) : nullptr;
    const int64_t moments = (2 * int64_t{g.k} + 1) * s.context->sm_count;
    tensors_.moments = problem.moments ? static_cast<float*>(noise(s, moments, DLFS_F32)) : nullptr;
    tensors_.scale = problem.quantized() ? static_cast<const float*>(noise(s, g.k, DLFS_F32)) : nullptr;
  }

  const ConvTensors& tensors() const { return tensors_; }

  int64_t bytes() const {
    int64_t sum = 0;
    for (const DeviceBuffer& buffer : buffers_) sum += buffer.bytes();
    return sum;
  }

 private:
  void* noise(Stream& s, int64_t n, dlfs_dtype dtype) {
    buffers_.emplace_back(*s.context, n * dtype_size(dtype), "tuning a convolution");
    fill_noise(s, buffers_.back().data(), n, dtype, static_cast<uint32_t>(buffers_.size()));
    return buffers_.back().data();
  }

  std::vector<DeviceBuffer> buffers_;
  ConvTensors tensors_{};
};

// Starts to build cuDNN's candidates for a problem on the context's pool.
std::shared_ptr<Builds> start_builds(Context& context, const ConvProblem& problem) {
  using Algorithm = Builds::Algorithm;
  auto builds = std::make_shared<Builds>();
  const int64_t limit = workspace_limit();
  // Each candidate for `one`, made into an algorithm for the problem by `as`.
  const auto build_all = [&](const ConvProblem& one, const auto& as) {
    if (one.moments) return;
    for (const CudnnRecipe& recipe : cudnn_recipes(one, true)) {
      for (const auto& candidate : cudnn_candidates(context, one, recipe, false)) {
        builds->add(context.plan_pool(), [candidate, limit, as] { return as(cudnn_build(*candidate, limit)); });
      }
    }
  };
  build_all(problem, [](Algorithm algorithm) { return algorithm; });
  for (const BareGradient& bare : bare_gradients(problem)) {
    build_all(bare.problem, [problem, bare](Algorithm algorithm) {
      return two_step_gradient(problem, bare, std::move(algorithm));
    });
  }
  return builds;
}

// The fastest algorithm out of those that are ready within the budget.
std::shared_ptr<const ConvAlgorithm> tune(Stream& s, Conv& conv, double budget_ms) {
  using Clock = Builds::Clock;
  const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                           std::chrono::duration<double, std::milli>(budget_ms));
  const auto spent = [&] { return Clock::now() >= deadline; };
  Context& context = *conv.context;
  const ConvProblem& problem = conv.problem;
  std::shared_ptr<Builds> builds = conv.take_builds();
  if (!builds) builds = start_builds(context, problem);
  const Scratch scratch(s, problem);
  ConvContest contest(s, scratch.tensors(), scratch.bytes(), budget_ms);
  const auto consider = [&](const std::shared_ptr<const ConvAlgorithm>& algorithm) { contest.consider(algorithm); };
  consider(conv.algorithm());
  // Each quick candidate for `one`, made into an algorithm for the problem by `as`.
  const auto consider_all = [&](const ConvProblem& one, const auto& as) {
    if (depthwise_supports(one)) consider(as(depthwise_algorithm(context, one)));
    if (stem_supports(context, one)) consider(as(stem_algorithm(context, one)));
    for (const int width : sm90_tile_widths(context, one)) consider(as(sm90_algorithm(one, width)));
    if (one.moments) return;
    for (const auto& candidate : cublaslt_candidates(context, one, workspace_limit(), true)) {
      if (spent()) break;
      consider(as(candidate));
    }
  };
  using Algorithm = Builds::Algorithm;
  consider_all(problem, [](Algorithm algorithm) { return algorithm; });
  for (const BareGradient& bare : bare_gradients(problem)) {
    consider_all(bare.problem,
                 [&](Algorithm algorithm) { return two_step_gradient(problem, bare, std::move(algorithm)); });
  }
  while (!spent()) {
    const Algorithm algorithm = builds->next(deadline);
    if (!algorithm) break;
    consider(algorithm);
  }
  const std::shared_ptr<const ConvAlgorithm> winner = contest.winner();
  return winner ? winner : conv.algorithm();
}

// ---- running ------------------------------------------------------------------------------------------------------

void check_direction(const Conv& conv, int32_t direction) {
  DLFS_CHECK(conv.problem.direction == direction, DLFS_ERROR_ARGUMENT, "expected a plan of direction %s, got one of %s",
             direction_name(direction), direction_name(conv.problem.direction));
}

void run(Stream& s, const Conv& conv, const ConvTensors& tensors, void* workspace) {
  DLFS_CHECK(conv.context == s.context, DLFS_ERROR_ARGUMENT, "the plan belongs to another context than the stream");
  const std::shared_ptr<const ConvAlgorithm> algorithm = conv.algorithm();
  DLFS_CHECK(workspace || algorithm->workspace_bytes() == 0, DLFS_ERROR_ARGUMENT,
             "workspace is NULL, the plan needs %lld bytes", static_cast<long long>(algorithm->workspace_bytes()));
  s.retain(std::const_pointer_cast<ConvAlgorithm>(algorithm));
  algorithm->run(s, tensors, workspace);
}

void run_forward(Stream& s, dlfs_conv conv, const ConvTensors& tensors, void* workspace) {
  const std::shared_ptr<Conv> object = convs().find(conv);
  const ConvProblem& problem = object->problem;
  check_direction(*object, DLFS_CONV_FORWARD);
  check_pointer(tensors.y, "y");
  check_pointer(tensors.x, "x");
  check_pointer(tensors.w, "w");
  DLFS_CHECK(!problem.moments, DLFS_ERROR_ARGUMENT, "this plan is for dlfs_conv_forward_moments");
  DLFS_CHECK((tensors.scale != nullptr) == problem.quantized(), DLFS_ERROR_ARGUMENT,
             "plans of 8 bits, and only they, have a scale: dlfs_conv_forward_scaled runs them");
  DLFS_CHECK((tensors.bias != nullptr) == problem.bias, DLFS_ERROR_ARGUMENT,
             "bias must be given exactly with DLFS_CONV_BIAS");
  DLFS_CHECK((tensors.residual != nullptr) == problem.residual, DLFS_ERROR_ARGUMENT,
             "residual must be given exactly with DLFS_CONV_RESIDUAL");
  run(s, *object, tensors, workspace);
}

}  // namespace

void ignore_unless_fatal(const Error& error) {
  cudaGetLastError();
  if (error.code == DLFS_ERROR_CUDA_FATAL) throw error;
}

}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_conv_create(dlfs_context ctx, dlfs_conv* out, const char* pick, int32_t direction, dlfs_dtype dtype,
                             int32_t n, int32_t h, int32_t w, int32_t c, int32_t k, int32_t r, int32_t s,
                             int32_t stride_h, int32_t stride_w, int32_t pad_h, int32_t pad_w, int32_t dilation_h,
                             int32_t dilation_w, int32_t groups, int32_t flags, dlfs_activation activation) {
  return context_call("dlfs_conv_create", ctx, [&](Context& context) {
    check_pointer(out, "out");
    check_dtype(dtype, {DLFS_F32, DLFS_BF16, DLFS_F16, DLFS_F8E4M3, DLFS_I8});
    check_conv_epilogue(direction, flags, activation);
    const dlfs_dtype y_dtype = conv_result_dtype(dtype, direction, flags);
    DLFS_CHECK(dtype != DLFS_BF16 || context.compute_capability >= 80, DLFS_ERROR_UNSUPPORTED,
               "bf16 convolutions need compute capability 8.0, this device has %d.%d", context.compute_capability / 10,
               context.compute_capability % 10);
    const int needed = dtype == DLFS_F8E4M3 ? 89 : dtype == DLFS_I8 ? 80 : 0;
    DLFS_CHECK(context.compute_capability >= needed, DLFS_ERROR_UNSUPPORTED,
               "%s convolutions need compute capability %d.%d, this device has %d.%d", dtype_name(dtype), needed / 10,
               needed % 10, context.compute_capability / 10, context.compute_capability % 10);
    auto conv = std::make_shared<Conv>();
    conv->context = context.shared_from_this();
    conv->problem = {
        conv_geometry(n, h, w, c, k, r, s, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups),
        direction,
        dtype,
        (flags & DLFS_CONV_BIAS) != 0,
        (flags & DLFS_CONV_RESIDUAL) != 0,
        (flags & DLFS_CONV_RELU_MASK) != 0,
        (flags & DLFS_CONV_MOMENTS) != 0,
        activation,
        context.deterministic,
        context.tf32,
        y_dtype};
    if (conv->problem.moments) check_conv_moments(conv->problem.g);
    conv->use(from_pick(context, conv->problem, pick ? pick : ""));
    *out = adopt(convs(), context, std::move(conv));
  });
}

dlfs_status dlfs_conv_create_many(dlfs_context ctx, dlfs_conv* out, const char* picks, const int32_t* keys,
                                  int64_t pick_bytes, int32_t count) {
  return context_call("dlfs_conv_create_many", ctx, [&](Context& context) {
    check_pointer(out, "out");
    check_pointer(picks, "picks");
    check_pointer(keys, "keys");
    check_size(count, "count");
    const std::vector<const char*> starts = split_picks(picks, pick_bytes, count);
    std::mutex mutex;
    std::condition_variable changed;
    int32_t left = count;
    for (int32_t i = 0; i < count; ++i) {
      context.plan_pool().submit([&, i] {
        out[i] = create_by_key(ctx, starts[static_cast<size_t>(i)], keys + int64_t{i} * DLFS_CONV_KEY);
        const std::lock_guard lock(mutex);
        if (--left == 0) changed.notify_one();
      });
    }
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return left == 0; });
  });
}

dlfs_status dlfs_conv_destroy(dlfs_conv conv) {
  return guard("dlfs_conv_destroy", [&] {
    std::shared_ptr<Conv> object = disown(convs(), conv);
    const std::shared_ptr<Context> context = object->context;
    context->release(std::move(object));
  });
}

dlfs_status dlfs_conv_tune_sync(dlfs_stream stream, dlfs_conv conv, double budget_ms) {
  return stream_call("dlfs_conv_tune_sync", stream, [&](Stream& s) {
    s.require_not_capturing("tuning");
    const std::shared_ptr<Conv> object = convs().find(conv);
    DLFS_CHECK(object->context == s.context, DLFS_ERROR_ARGUMENT,
               "the plan belongs to another context than the stream");
    DLFS_CHECK(budget_ms >= 0, DLFS_ERROR_ARGUMENT, "expected a budget of at least 0 ms, got %g", budget_ms);
    std::shared_ptr<const ConvAlgorithm> before = object->algorithm();
    object->use(tune(s, *object, budget_ms));
    // Work enqueued with the previous algorithm may still run.
    s.context->release(std::const_pointer_cast<ConvAlgorithm>(std::move(before)));
  });
}

dlfs_status dlfs_conv_tune_ahead(dlfs_conv conv) {
  return guard("dlfs_conv_tune_ahead", [&] {
    const std::shared_ptr<Conv> object = convs().find(conv);
    object->context->use();
    object->put_builds(start_builds(*object->context, object->problem));
  });
}

dlfs_status dlfs_conv_workspace(dlfs_conv conv, int64_t* out) {
  return guard("dlfs_conv_workspace", [&] {
    check_pointer(out, "out");
    *out = convs().find(conv)->algorithm()->workspace_bytes();
  });
}

dlfs_status dlfs_conv_pick(dlfs_conv conv, char* out, int64_t capacity) {
  return guard("dlfs_conv_pick", [&] {
    check_pointer(out, "out");
    const std::string pick = convs().find(conv)->algorithm()->pick();
    DLFS_CHECK(static_cast<int64_t>(pick.size()) < capacity, DLFS_ERROR_ARGUMENT,
               "the pick needs %zu bytes, capacity is %lld", pick.size() + 1, static_cast<long long>(capacity));
    std::memcpy(out, pick.c_str(), pick.size() + 1);
  });
}

dlfs_status dlfs_conv_forward(dlfs_stream stream, dlfs_conv conv, void* y, const void* x, const void* w,
                              const float* bias, const void* residual, void* workspace) {
  return stream_call("dlfs_conv_forward", stream, [&](Stream& s) {
    run_forward(s, conv, {const_cast<void*>(x), const_cast<void*>(w), y, bias, residual, nullptr}, workspace);
  });
}

dlfs_status dlfs_conv_forward_scaled(dlfs_stream stream, dlfs_conv conv, void* y, const void* x, const void* w,
                                     const float* scale, const float* bias, const void* residual, void* workspace) {
  return stream_call("dlfs_conv_forward_scaled", stream, [&](Stream& s) {
    check_pointer(scale, "scale");
    run_forward(s, conv, {const_cast<void*>(x), const_cast<void*>(w), y, bias, residual, nullptr, nullptr, scale},
                workspace);
  });
}

dlfs_status dlfs_conv_forward_moments(dlfs_stream stream, dlfs_conv conv, void* y, float* moments, const void* x,
                                      const void* w, void* workspace) {
  return stream_call("dlfs_conv_forward_moments", stream, [&](Stream& s) {
    const std::shared_ptr<Conv> object = convs().find(conv);
    check_direction(*object, DLFS_CONV_FORWARD);
    DLFS_CHECK(object->problem.moments, DLFS_ERROR_ARGUMENT, "this plan lacks DLFS_CONV_MOMENTS");
    check_pointer(y, "y");
    check_pointer(moments, "moments");
    check_pointer(x, "x");
    check_pointer(w, "w");
    run(s, *object, {const_cast<void*>(x), const_cast<void*>(w), y, nullptr, nullptr, nullptr, moments}, workspace);
  });
}

dlfs_status dlfs_conv_backward_data(dlfs_stream stream, dlfs_conv conv, void* dx, const void* dy, const void* w,
                                    const void* residual, const void* x, void* workspace) {
  return stream_call("dlfs_conv_backward_data", stream, [&](Stream& s) {
    const std::shared_ptr<Conv> object = convs().find(conv);
    check_direction(*object, DLFS_CONV_BACKWARD_DATA);
    check_pointer(dx, "dx");
    check_pointer(dy, "dy");
    check_pointer(w, "w");
    DLFS_CHECK((residual != nullptr) == object->problem.residual, DLFS_ERROR_ARGUMENT,
               "residual must be given exactly with DLFS_CONV_RESIDUAL");
    DLFS_CHECK((x != nullptr) == object->problem.relu_mask, DLFS_ERROR_ARGUMENT,
               "x must be given exactly with DLFS_CONV_RELU_MASK");
    run(s, *object, {dx, const_cast<void*>(w), const_cast<void*>(dy), nullptr, residual, x}, workspace);
  });
}

dlfs_status dlfs_conv_backward_weight(dlfs_stream stream, dlfs_conv conv, float* dw, const void* x, const void* dy,
                                      void* workspace) {
  return stream_call("dlfs_conv_backward_weight", stream, [&](Stream& s) {
    const std::shared_ptr<Conv> object = convs().find(conv);
    check_direction(*object, DLFS_CONV_BACKWARD_WEIGHT);
    check_pointer(dw, "dw");
    check_pointer(x, "x");
    check_pointer(dy, "dy");
    run(s, *object, {const_cast<void*>(x), dw, const_cast<void*>(dy), nullptr, nullptr, nullptr}, workspace);
  });
}

}  // extern "C"
