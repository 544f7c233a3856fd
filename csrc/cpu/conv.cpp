// Convolution plans on the CPU: creation, choice and measurement of algorithms, execution.
#include "cpu/conv.hpp"

#include <cmath>
#include <cstring>
#include <iterator>

#include "common/conv_keys.hpp"
#include "common/quantized.hpp"
#include "cpu/numeric.hpp"

namespace dlfs::cpu {

namespace {

struct ConvPlan {
  std::shared_ptr<Context> context;
  ConvProblem problem;
  bool moments = false;  // y's are computed after it
  std::mutex mutex;
  std::shared_ptr<const ConvAlgorithm> algorithm;  // guarded by the mutex: tuning replaces it
};

auto& plans() {
  static auto& table = *new ObjectTable<ConvPlan, HandleKind::conv>;
  return table;
}

// What can compute a problem, in the order of preference; `name` is the first word of the algorithm's name.
struct Candidate {
  const char* name;
  std::shared_ptr<const ConvAlgorithm> (*create)(const ConvProblem&);
};
constexpr Candidate quantized_candidates[] = {{"quantized", quantized_convolution}};
constexpr Candidate float_candidates[] = {
    {"nhwc", [](const ConvProblem& problem) { return onednn_convolution(problem, false); }},
    {"depthwise", [](const ConvProblem& problem) { return depthwise_convolution(problem); }},
    {"blocked", [](const ConvProblem& problem) { return onednn_convolution(problem, true); }},
    {"direct", [](const ConvProblem& problem) { return direct_convolution(problem); }},
};

struct CandidateList {
  const Candidate* first;
  size_t count;
  const Candidate* begin() const { return first; }
  const Candidate* end() const { return first + count; }
};
CandidateList candidates_for(const ConvProblem& problem) {
  if (is_quantized(problem.dtype)) return {quantized_candidates, std::size(quantized_candidates)};
  return {float_candidates, std::size(float_candidates)};
}

// A data gradient by an algorithm for the bare one, then a pass that adds the residual and masks.
class GradientWithEpilogue : public ConvAlgorithm {
 public:
  GradientWithEpilogue(const ConvProblem& problem, std::shared_ptr<const ConvAlgorithm> bare)
      : problem_(problem), bare_(std::move(bare)) {
    name_ = bare_->name();
    slow_ = bare_->slow();
    bare_workspace_ = reserve(bare_->workspace());
    // dx may be the residual, which is needed after the bare gradient.
    if (problem.residual()) gradient_ = reserve(problem.g.x_elements() * (problem.dtype == DLFS_BF16 ? 2 : 4));
  }

  void run(const ConvBuffers& b) const override {
    char* const workspace = static_cast<char*>(b.workspace);
    ConvBuffers bare{b.x, b.y, b.w, nullptr, nullptr, nullptr, workspace + bare_workspace_};
    if (problem_.residual()) bare.x = workspace + gradient_;
    bare_->run(bare);
    dispatch_float(problem_.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      finish(static_cast<T*>(b.x), static_cast<const T*>(bare.x), static_cast<const T*>(b.residual),
             static_cast<const T*>(b.mask));
    });
  }

 private:
  template <class T>
  void finish(T* dx, const T* gradient, const T* residual, const T* mask) const {
    parallel_for(problem_.g.x_elements(), 16384, [=](int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) {
        const float sum = to_float(gradient[i]) + (residual ? to_float(residual[i]) : 0.0f);
        dx[i] = from_float<T>(mask && to_float(mask[i]) <= 0.0f ? 0.0f : sum);
      }
    });
  }

  const ConvProblem problem_;
  const std::shared_ptr<const ConvAlgorithm> bare_;
  int64_t bare_workspace_ = 0, gradient_ = 0;  // offsets in the workspace
};

// The candidate's algorithm for a problem; NULL where it has none.
std::shared_ptr<const ConvAlgorithm> create(const Candidate& candidate, const ConvProblem& problem) {
  if (problem.direction != DLFS_CONV_BACKWARD_DATA || problem.flags == 0) return candidate.create(problem);
  ConvProblem bare = problem;
  bare.flags = 0;
  std::shared_ptr<const ConvAlgorithm> algorithm = candidate.create(bare);
  return algorithm ? std::make_shared<const GradientWithEpilogue>(problem, std::move(algorithm)) : nullptr;
}

// The heuristic choice: NHWC, which is within a few per cent of the fastest on processors with AVX-512 and needs no
// reorders of activations, unless oneDNN has no good implementation there and another candidate has.
std::shared_ptr<const ConvAlgorithm> choose(const ConvProblem& problem) {
  std::shared_ptr<const ConvAlgorithm> first;
  for (const Candidate& candidate : candidates_for(problem)) {
    std::shared_ptr<const ConvAlgorithm> algorithm = create(candidate, problem);
    if (!algorithm) continue;
    if (!algorithm->slow()) return algorithm;
    if (!first) first = std::move(algorithm);
  }
  return first;
}

// The algorithm that a text of dlfs_conv_pick names.
std::shared_ptr<const ConvAlgorithm> find_pick(const ConvProblem& problem, const std::string& pick) {
  for (const Candidate& candidate : candidates_for(problem)) {
    if (pick.compare(0, pick.find(' '), candidate.name) != 0) continue;
    std::shared_ptr<const ConvAlgorithm> algorithm = create(candidate, problem);
    DLFS_CHECK(algorithm, DLFS_ERROR_ARGUMENT, "pick: there is no algorithm '%s' for %s", pick.c_str(),
               problem.g.text().c_str());
    DLFS_CHECK(algorithm->name() == pick, DLFS_ERROR_ARGUMENT, "pick: expected '%s', got '%s'",
               algorithm->name().c_str(), pick.c_str());
    return algorithm;
  }
  throw Error(
      DLFS_ERROR_ARGUMENT,
      format("pick: expected a name that begins with %s, got '%s'",
             is_quantized(problem.dtype) ? "quantized" : "nhwc, depthwise, blocked or direct", pick.c_str()));
}

std::shared_ptr<const ConvAlgorithm> current_algorithm(ConvPlan& plan) {
  std::lock_guard lock(plan.mutex);
  return plan.algorithm;
}

// The moments of y (rows, k) in parts of neighbouring rows, as dlfs_conv_forward_moments stores them.
template <class T>
void write_moments(float* moments, const T* y, int64_t rows, int32_t k, int64_t parts) {
  float* const squares = moments + parts * k;
  parallel_for(parts, 1, [=](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = rows * part / parts, count = rows * (part + 1) / parts - first;
      float* const mean = moments + part * k;
      float* const m2 = squares + part * k;
      std::fill(mean, mean + k, 0.0f);
      std::fill(m2, m2 + k, 0.0f);
      moments[2 * parts * k + part] = static_cast<float>(count);
      for (int64_t row = first; row < first + count; ++row) {
        for (int32_t c = 0; c < k; ++c) mean[c] += to_float(y[row * k + c]);
      }
      for (int32_t c = 0; c < k && count > 0; ++c) mean[c] /= static_cast<float>(count);
      for (int64_t row = first; row < first + count; ++row) {
        for (int32_t c = 0; c < k; ++c) {
          const float distance = to_float(y[row * k + c]) - mean[c];
          m2[c] += distance * distance;
        }
      }
    }
  });
}

// Checks what the executions have in common, and enqueues. moments: of a plan that gives them.
void execute(Stream& stream, dlfs_conv handle, int32_t direction, const ConvBuffers& buffers,
             float* moments = nullptr) {
  const std::shared_ptr<ConvPlan> plan = plans().find(handle);
  const ConvProblem& problem = plan->problem;
  DLFS_CHECK(plan->context == stream.context, DLFS_ERROR_ARGUMENT,
             "the plan belongs to another context than the stream");
  DLFS_CHECK(problem.direction == direction, DLFS_ERROR_ARGUMENT, "this is a plan for the %s direction",
             problem.direction_name());
  check_pointer(buffers.x, direction == DLFS_CONV_BACKWARD_DATA ? "dx" : "x");
  check_pointer(buffers.y, direction == DLFS_CONV_FORWARD ? "y" : "dy");
  check_pointer(buffers.w, direction == DLFS_CONV_BACKWARD_WEIGHT ? "dw" : "w");
  DLFS_CHECK(plan->moments == (moments != nullptr), DLFS_ERROR_ARGUMENT,
             plan->moments ? "this plan is for dlfs_conv_forward_moments" : "this plan lacks DLFS_CONV_MOMENTS");
  DLFS_CHECK(is_quantized(problem.dtype) == (buffers.scale != nullptr), DLFS_ERROR_ARGUMENT,
             "plans of 8 bits, and only they, have a scale: dlfs_conv_forward_scaled runs them");
  DLFS_CHECK(problem.bias() == (buffers.bias != nullptr), DLFS_ERROR_ARGUMENT,
             problem.bias() ? "bias is NULL, but the plan adds one" : "a bias was given, but the plan adds none");
  DLFS_CHECK(
      problem.residual() == (buffers.residual != nullptr), DLFS_ERROR_ARGUMENT,
      problem.residual() ? "residual is NULL, but the plan adds one" : "a residual was given, but the plan adds none");
  DLFS_CHECK(problem.relu_mask() == (buffers.mask != nullptr), DLFS_ERROR_ARGUMENT,
             problem.relu_mask() ? "x is NULL, but the plan masks by it" : "x was given, but the plan does not mask");
  const std::shared_ptr<const ConvAlgorithm> algorithm = current_algorithm(*plan);
  check_workspace(buffers.workspace, algorithm->workspace());
  const auto run = [algorithm, buffers, moments, g = problem.g, dtype = problem.dtype] {
    algorithm->run(buffers);
    if (!moments) return;
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      write_moments(moments, static_cast<const T*>(buffers.y), int64_t{g.n} * g.p * g.q, g.k, available_cores());
    });
  };
  stream.enqueue(run, Lane::compute, problem.threads);
}

// Memory for measuring, released with the scope.
class Scratch {
 public:
  Scratch(const ConvProblem& problem, int64_t workspace) {
    const ConvGeometry& g = problem.g;
    const dlfs_dtype dtype = problem.dtype, y_dtype = problem.y_dtype;
    buffers.x = filled(g.x_elements(), dtype);
    buffers.y = filled(g.y_elements(), y_dtype);
    buffers.w = filled(g.w_elements(), problem.direction == DLFS_CONV_BACKWARD_WEIGHT ? DLFS_F32 : dtype);
    if (is_quantized(dtype)) buffers.scale = static_cast<const float*>(filled(g.k, DLFS_F32));
    if (problem.bias()) buffers.bias = static_cast<const float*>(filled(g.k, DLFS_F32));
    const bool forward = problem.direction == DLFS_CONV_FORWARD;
    if (problem.residual()) buffers.residual = filled(forward ? g.y_elements() : g.x_elements(), y_dtype);
    if (problem.relu_mask()) buffers.mask = filled(g.x_elements(), dtype);
    if (workspace > 0) buffers.workspace = context_.allocate(workspace, false);
  }

  ConvBuffers buffers{};

 private:
  // Small normal numbers: zeros and denormals are faster or slower than what is to be measured.
  void* filled(int64_t elements, dlfs_dtype dtype) {
    void* address = context_.allocate(elements * dtype_size(dtype), false);
    for (int64_t i = 0; i < elements; ++i) {
      const float value = 0.01f + 0.01f * static_cast<float>(i * 7919 % 97);
      switch (dtype) {
        case DLFS_F32: store(static_cast<float*>(address) + i, value); break;
        case DLFS_BF16: store(static_cast<Bf16*>(address) + i, value); break;
        default: static_cast<uint8_t*>(address)[i] = static_cast<uint8_t>(i * 7919 % 97);
      }
    }
    return address;
  }

  Context context_;  // releases its memory at its end
};

// Milliseconds of the fastest of several runs: at least two, for about budget_ms.
double measure(Stream& stream, const ConvProblem& problem, const ConvAlgorithm& algorithm, double budget_ms) {
  using Clock = std::chrono::steady_clock;
  Scratch scratch(problem, algorithm.workspace());
  double best = INFINITY;
  double spent = 0;
  for (int run = 0; run < 2 || (spent < budget_ms && run < 100); ++run) {
    double ms = 0;
    stream.run_sync(
        [&] {
          const auto start = Clock::now();
          algorithm.run(scratch.buffers);
          ms = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
        },
        Lane::compute, problem.threads);
    best = std::min(best, ms);
    spent += ms;
  }
  return best;
}

}  // namespace

const char* ConvProblem::direction_name() const {
  static const char* const names[] = {"forward", "backward-data", "backward-weight"};
  return names[direction];
}

}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_conv_create(dlfs_context ctx, dlfs_conv* out, const char* pick, int32_t direction,
                                        dlfs_dtype dtype, int32_t n, int32_t h, int32_t w, int32_t c, int32_t k,
                                        int32_t r, int32_t s, int32_t stride_h, int32_t stride_w, int32_t pad_h,
                                        int32_t pad_w, int32_t dilation_h, int32_t dilation_w, int32_t groups,
                                        int32_t flags, dlfs_activation activation) {
  return guard("dlfs_conv_create", [&] {
    auto plan = std::make_shared<ConvPlan>();
    plan->context = require_context(ctx);
    check_pointer(out, "out");
    check_pointer(pick, "pick");
    check_dtype(dtype, {DLFS_F32, DLFS_BF16, DLFS_F16, DLFS_F8E4M3, DLFS_I8});
    check_conv_epilogue(direction, flags, activation);
    const dlfs_dtype y_dtype = conv_result_dtype(dtype, direction, flags);
    plan->problem = {
        conv_geometry(n, h, w, c, k, r, s, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups),
        direction,
        dtype,
        flags & ~DLFS_CONV_MOMENTS,
        activation,
        y_dtype,
        plan->context->threads()};
    plan->moments = (flags & DLFS_CONV_MOMENTS) != 0;
    if (plan->moments) check_conv_moments(plan->problem.g);
    DLFS_CHECK(y_dtype != DLFS_F16, DLFS_ERROR_UNSUPPORTED, "f16 is not supported by the CPU backend");
    DLFS_CHECK(dtype != DLFS_BF16 || has_bf16(), DLFS_ERROR_UNSUPPORTED,
               "bf16 is not supported by this processor (AVX512_BF16 or AMX)");
    plan->algorithm = *pick ? find_pick(plan->problem, pick) : choose(plan->problem);
    *out = plans().add(std::move(plan));
  });
}

extern "C" dlfs_status dlfs_conv_create_many(dlfs_context ctx, dlfs_conv* out, const char* picks, const int32_t* keys,
                                             int64_t pick_bytes, int32_t count) {
  return guard("dlfs_conv_create_many", [&] {
    require_context(ctx);
    check_pointer(out, "out");
    check_pointer(picks, "picks");
    check_pointer(keys, "keys");
    check_size(count, "count");
    const std::vector<const char*> starts = split_picks(picks, pick_bytes, count);
    for (int32_t i = 0; i < count; ++i) {
      out[i] = create_by_key(ctx, starts[static_cast<size_t>(i)], keys + int64_t{i} * DLFS_CONV_KEY);
    }
  });
}

extern "C" dlfs_status dlfs_conv_destroy(dlfs_conv conv) {
  return guard("dlfs_conv_destroy", [&] { plans().remove(conv); });
}

extern "C" dlfs_status dlfs_conv_tune_sync(dlfs_stream stream, dlfs_conv conv, double budget_ms) {
  return on_stream("dlfs_conv_tune_sync", stream, [&](Stream& s) {
    const std::shared_ptr<ConvPlan> plan = plans().find(conv);
    DLFS_CHECK(plan->context == s.context, DLFS_ERROR_ARGUMENT, "the plan belongs to another context than the stream");
    DLFS_CHECK(budget_ms >= 0, DLFS_ERROR_ARGUMENT, "expected budget_ms >= 0, got %g", budget_ms);
    s.refuse_capture("a call that waits");
    std::shared_ptr<const ConvAlgorithm> fastest;
    double fastest_ms = INFINITY;
    const CandidateList candidates = candidates_for(plan->problem);
    for (const Candidate& candidate : candidates) {
      std::shared_ptr<const ConvAlgorithm> algorithm = create(candidate, plan->problem);
      // Slow ones can be a thousand times slower: they are measured only where there is nothing else.
      if (!algorithm || (algorithm->slow() && fastest && !fastest->slow())) continue;
      const double ms = measure(s, plan->problem, *algorithm, budget_ms / static_cast<double>(candidates.count));
      if (ms < fastest_ms || (fastest && fastest->slow() && !algorithm->slow())) {
        fastest_ms = ms;
        fastest = std::move(algorithm);
      }
    }
    if (!fastest) return;
    std::lock_guard lock(plan->mutex);
    plan->algorithm = std::move(fastest);
  });
}

extern "C" dlfs_status dlfs_conv_tune_ahead(dlfs_conv conv) {
  return guard("dlfs_conv_tune_ahead", [&] { plans().find(conv); });
}

extern "C" dlfs_status dlfs_conv_workspace(dlfs_conv conv, int64_t* out) {
  return guard("dlfs_conv_workspace", [&] {
    check_pointer(out, "out");
    *out = current_algorithm(*plans().find(conv))->workspace();
  });
}

extern "C" dlfs_status dlfs_conv_pick(dlfs_conv conv, char* out, int64_t capacity) {
  return guard("dlfs_conv_pick", [&] {
    check_pointer(out, "out");
    const std::shared_ptr<const ConvAlgorithm> algorithm = current_algorithm(*plans().find(conv));
    const std::string& name = algorithm->name();
    DLFS_CHECK(capacity > static_cast<int64_t>(name.size()), DLFS_ERROR_ARGUMENT,
               "expected a capacity of at least %zu, got %lld", name.size() + 1, static_cast<long long>(capacity));
    std::memcpy(out, name.c_str(), name.size() + 1);
  });
}

extern "C" dlfs_status dlfs_conv_forward(dlfs_stream stream, dlfs_conv conv, void* y, const void* x, const void* w,
                                         const float* bias, const void* residual, void* workspace) {
  return on_stream("dlfs_conv_forward", stream, [&](Stream& s) {
    execute(s, conv, DLFS_CONV_FORWARD, {const_cast<void*>(x), y, const_cast<void*>(w), bias, residual, nullptr, workspace});
  });
}

extern "C" dlfs_status dlfs_conv_forward_moments(dlfs_stream stream, dlfs_conv conv, void* y, float* moments,
                                                 const void* x, const void* w, void* workspace) {
  return on_stream("dlfs_conv_forward_moments", stream, [&](Stream& s) {
    check_pointer(moments, "moments");
    execute(s, conv, DLFS_CONV_FORWARD,
            {const_cast<void*>(x), y, const_cast<void*>(w), nullptr, nullptr, nullptr, workspace}, moments);
  });
}

extern "C" dlfs_status dlfs_conv_forward_scaled(dlfs_stream stream, dlfs_conv conv, void* y, const void* x,
                                                const void* w, const float* scale, const float* bias,
                                                const void* residual, void* workspace) {
  return on_stream("dlfs_conv_forward_scaled", stream, [&](Stream& s) {
    check_pointer(scale, "scale");
    execute(s, conv, DLFS_CONV_FORWARD,
            {const_cast<void*>(x), y, const_cast<void*>(w), bias, residual, nullptr, workspace, scale});
  });
}

extern "C" dlfs_status dlfs_conv_backward_data(dlfs_stream stream, dlfs_conv conv, void* dx, const void* dy,
                                               const void* w, const void* residual, const void* x, void* workspace) {
  return on_stream("dlfs_conv_backward_data", stream, [&](Stream& s) {
    execute(s, conv, DLFS_CONV_BACKWARD_DATA,
            {dx, const_cast<void*>(dy), const_cast<void*>(w), nullptr, residual, x, workspace});
  });
}

extern "C" dlfs_status dlfs_conv_backward_weight(dlfs_stream stream, dlfs_conv conv, float* dw, const void* x,
                                                 const void* dy, void* workspace) {
  return on_stream("dlfs_conv_backward_weight", stream, [&](Stream& s) {
    execute(s, conv, DLFS_CONV_BACKWARD_WEIGHT,
            {const_cast<void*>(x), const_cast<void*>(dy), dw, nullptr, nullptr, nullptr, workspace});
  });
}
