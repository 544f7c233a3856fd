// Convolutions by cuDNN's backend descriptors (cuDNN 9's graph API in plain C): building operation graphs, asking the
// heuristics for engines, making and running execution plans. All use of the descriptors is in this file.
#include <cudnn.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <tuple>
#include <utility>

#include "common/arguments.hpp"
#include "cuda/conv.hpp"
#include "cuda/conv_pool.hpp"

namespace dlfs {
namespace {

// The handle to plan with: of a pool's thread its own, else the context's, which is locked as long as this lives.
class PlanningHandle {
 public:
  explicit PlanningHandle(Context& context) : handle_(pool_handle()) {
    if (handle_) return;
    lock_ = std::unique_lock(context.planning);
    handle_ = context.planner();
  }
  cudnnHandle_t get() const { return handle_; }

 private:
  cudnnHandle_t handle_;
  std::unique_lock<std::mutex> lock_;
};

// ---- descriptors --------------------------------------------------------------------------------------------------

class Descriptor {
 public:
  explicit Descriptor(cudnnBackendDescriptorType_t type) {
    CUDNN_CHECK(cudnnBackendCreateDescriptor(type, &descriptor_));
  }
  ~Descriptor() {
    if (descriptor_) cudnnBackendDestroyDescriptor(descriptor_);
  }
  Descriptor(Descriptor&& other) noexcept : descriptor_(std::exchange(other.descriptor_, nullptr)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }

  cudnnBackendDescriptor_t get() const { return descriptor_; }

  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count, const void* values) {
    CUDNN_CHECK(cudnnBackendSetAttribute(descriptor_, name, type, count, values));
  }
  void set(cudnnBackendAttributeName_t name, int64_t value) { set(name, CUDNN_TYPE_INT64, 1, &value); }
  void set(cudnnBackendAttributeName_t name, float value) { set(name, CUDNN_TYPE_FLOAT, 1, &value); }
  void set(cudnnBackendAttributeName_t name, double value) { set(name, CUDNN_TYPE_DOUBLE, 1, &value); }
  void set(cudnnBackendAttributeName_t name, bool value) { set(name, CUDNN_TYPE_BOOLEAN, 1, &value); }
  void set(cudnnBackendAttributeName_t name, cudnnDataType_t value) { set(name, CUDNN_TYPE_DATA_TYPE, 1, &value); }
  void set(cudnnBackendAttributeName_t name, const Descriptor& value) {
    const cudnnBackendDescriptor_t raw = value.get();
    set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &raw);
  }
  void set(cudnnBackendAttributeName_t name, const std::vector<int64_t>& values) {
    set(name, CUDNN_TYPE_INT64, static_cast<int64_t>(values.size()), values.data());
  }

  int64_t get_int64(cudnnBackendAttributeName_t name) const {
    int64_t value = 0, count = 0;
    CUDNN_CHECK(cudnnBackendGetAttribute(descriptor_, name, CUDNN_TYPE_INT64, 1, &count, &value));
    return value;
  }

  Descriptor&& finalize() {
    CUDNN_CHECK(cudnnBackendFinalize(descriptor_));
    return std::move(*this);
  }

 private:
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

cudnnDataType_t cudnn_type(dlfs_dtype dtype) {
  switch (dtype) {
    case DLFS_BF16: return CUDNN_DATA_BFLOAT16;
    case DLFS_F16: return CUDNN_DATA_HALF;
    case DLFS_F8E4M3: return CUDNN_DATA_FP8_E4M3;
    case DLFS_I8: return CUDNN_DATA_INT8;
    default: return CUDNN_DATA_FLOAT;
  }
}

// ---- operation graphs ---------------------------------------------------------------------------------------------

enum TensorId : int64_t { id_x = 1, id_w, id_y, id_scale, id_bias, id_residual, id_mask, id_virtual };

// A tensor (n, c, h, w) as cuDNN counts its dimensions, packed as (n, h, w, c). Virtual ones stay inside the kernel, in
// fp32.
Descriptor tensor(int64_t id, cudnnDataType_t type, int64_t n, int64_t c, int64_t h, int64_t w,
                  bool is_virtual = false) {
  Descriptor t(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  t.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, id);
  t.set(CUDNN_ATTR_TENSOR_DATA_TYPE, type);
  t.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, int64_t{16});
  t.set(CUDNN_ATTR_TENSOR_DIMENSIONS, std::vector<int64_t>{n, c, h, w});
  t.set(CUDNN_ATTR_TENSOR_STRIDES, std::vector<int64_t>{h * w * c, 1, w * c, c});
  t.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, is_virtual);
  return t.finalize();
}

Descriptor convolution(const ConvGeometry& g, cudnnDataType_t sum) {
  Descriptor c(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
  const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
  const std::vector<int64_t> pads{g.pad_h, g.pad_w};
  c.set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, sum);
  c.set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
  c.set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, int64_t{2});
  c.set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, pads);
  c.set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, pads);
  c.set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, std::vector<int64_t>{g.stride_h, g.stride_w});
  c.set(CUDNN_ATTR_CONVOLUTION_DILATIONS, std::vector<int64_t>{g.dilation_h, g.dilation_w});
  return c.finalize();
}

// upper_clip: of a ReLU and its backward pass.
Descriptor pointwise_mode(cudnnPointwiseMode_t mode, double upper_clip = std::numeric_limits<float>::max()) {
  Descriptor p(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  p.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
  p.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_DATA_FLOAT);
  if (mode == CUDNN_POINTWISE_RELU_FWD || mode == CUDNN_POINTWISE_RELU_BWD) {
    const cudnnNanPropagation_t propagate = CUDNN_PROPAGATE_NAN;
    p.set(CUDNN_ATTR_POINTWISE_NAN_PROPAGATION, CUDNN_TYPE_NAN_PROPOGATION, 1, &propagate);
    p.set(CUDNN_ATTR_POINTWISE_RELU_LOWER_CLIP, 0.0);
    p.set(CUDNN_ATTR_POINTWISE_RELU_UPPER_CLIP, upper_clip);
    p.set(CUDNN_ATTR_POINTWISE_RELU_LOWER_CLIP_SLOPE, 0.0);
  }
  if (mode == CUDNN_POINTWISE_SWISH_FWD) p.set(CUDNN_ATTR_POINTWISE_SWISH_BETA, 1.0);
  return p.finalize();
}

Descriptor activation_mode(dlfs_activation activation) {
  switch (activation) {
    case DLFS_ACT_SIGMOID: return pointwise_mode(CUDNN_POINTWISE_SIGMOID_FWD);
    case DLFS_ACT_SILU: return pointwise_mode(CUDNN_POINTWISE_SWISH_FWD);
    case DLFS_ACT_RELU6: return pointwise_mode(CUDNN_POINTWISE_RELU_FWD, 6.0);
    default: return pointwise_mode(CUDNN_POINTWISE_RELU_FWD);
  }
}

// An operation graph with the descriptors that it is made of.
struct Graph {
  std::vector<Descriptor> parts;
  Descriptor descriptor{CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR};

  const Descriptor& keep(Descriptor part) {
    parts.push_back(std::move(part));
    return parts.back();
  }
};

std::shared_ptr<const Graph> build_graph(cudnnHandle_t handle, const ConvProblem& problem, const CudnnRecipe& recipe) {
  const ConvGeometry& g = problem.g;
  const cudnnDataType_t type = cudnn_type(recipe.form == CudnnForm::wide ? DLFS_F32 : problem.dtype);
  const bool wgrad = problem.direction == DLFS_CONV_BACKWARD_WEIGHT;
  auto graph = std::make_shared<Graph>();
  graph->parts.reserve(32);  // keep() hands out references
  const Descriptor& x = graph->keep(tensor(id_x, type, g.n, recipe.c, g.h, g.w));
  const cudnnDataType_t w_type = wgrad && recipe.form == CudnnForm::plain ? CUDNN_DATA_FLOAT : type;
  const Descriptor& w = graph->keep(tensor(id_w, w_type, recipe.k, recipe.c / g.groups, g.r, g.s));
  const cudnnDataType_t y_type = problem.quantized() ? cudnn_type(problem.y_dtype) : type;
  const Descriptor& y = graph->keep(tensor(id_y, y_type, g.n, recipe.k, g.p, g.q));
  const cudnnDataType_t sum_type = problem.dtype == DLFS_I8 ? CUDNN_DATA_INT32 : CUDNN_DATA_FLOAT;
  const bool fast = recipe.form == CudnnForm::fast_sums;
  const Descriptor& conv = graph->keep(convolution(g, fast ? CUDNN_DATA_FAST_FLOAT_FOR_FP8 : sum_type));
  std::vector<cudnnBackendDescriptor_t> operations;
  const auto operation = [&](Descriptor done) { operations.push_back(graph->keep(std::move(done)).get()); };

  // The convolution, then what follows it, each result but the last virtual: forward + residual -> + bias -> activation,
  // which is also the order of cuDNN's precompiled engines; in 8 bits, * scale before them; the data gradient + residual
  // -> mask.
  const bool forward = problem.direction == DLFS_CONV_FORWARD;
  const int64_t channels = forward ? recipe.k : recipe.c, height = forward ? g.p : g.h, width = forward ? g.q : g.w;
  const int steps = !recipe.fused ? 0
                                  : problem.quantized() + problem.residual + problem.bias + problem.relu_mask +
                                        (problem.activation != DLFS_ACT_NONE);
  int64_t next_id = id_virtual;
  const auto result = [&](int step) -> const Descriptor& {
    if (step == steps) return forward ? y : wgrad ? w : x;
    const cudnnDataType_t inner = step == 0 ? sum_type : CUDNN_DATA_FLOAT;
    return graph->keep(tensor(next_id++, inner, g.n, channels, height, width, true));
  };
  int step = 0;
  const Descriptor* value = &result(step);
  if (problem.direction == DLFS_CONV_BACKWARD_DATA) {
    Descriptor op(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, conv);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, w);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, *value);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, y);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, 1.0f);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA, 0.0f);
    operation(op.finalize());
  } else if (wgrad) {
    Descriptor op(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC, conv);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW, *value);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, x);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY, y);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA, 1.0f);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA, 0.0f);
    operation(op.finalize());
  } else {
    Descriptor op(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, conv);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, w);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, *value);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, 1.0f);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, 0.0f);
    operation(op.finalize());
  }
  // The next result from the last one, and an operand.
  const auto pointwise = [&](cudnnBackendAttributeName_t input, cudnnBackendAttributeName_t output, Descriptor mode,
                             cudnnBackendAttributeName_t name, const Descriptor* operand) {
    const Descriptor& out = result(++step);
    Descriptor point(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    point.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, graph->keep(std::move(mode)));
    point.set(input, *value);
    if (operand) point.set(name, *operand);
    point.set(output, out);
    operation(point.finalize());
    value = &out;
  };
  const auto apply = [&](Descriptor mode, const Descriptor* operand) {
    pointwise(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, std::move(mode),
              CUDNN_ATTR_OPERATION_POINTWISE_BDESC, operand);
  };
  if (problem.quantized()) {
    apply(pointwise_mode(CUDNN_POINTWISE_MUL), &graph->keep(tensor(id_scale, CUDNN_DATA_FLOAT, 1, recipe.k, 1, 1)));
  }
  if (recipe.fused && problem.residual) {
    apply(pointwise_mode(CUDNN_POINTWISE_ADD),
          &graph->keep(tensor(id_residual, forward ? y_type : type, g.n, channels, height, width)));
  }
  if (recipe.fused && problem.bias) {
    apply(pointwise_mode(CUDNN_POINTWISE_ADD), &graph->keep(tensor(id_bias, CUDNN_DATA_FLOAT, 1, recipe.k, 1, 1)));
  }
  if (recipe.fused && problem.activation != DLFS_ACT_NONE) apply(activation_mode(problem.activation), nullptr);
  if (recipe.fused && problem.relu_mask) {
    pointwise(CUDNN_ATTR_OPERATION_POINTWISE_DYDESC, CUDNN_ATTR_OPERATION_POINTWISE_DXDESC,
              pointwise_mode(CUDNN_POINTWISE_RELU_BWD), CUDNN_ATTR_OPERATION_POINTWISE_XDESC,
              &graph->keep(tensor(id_mask, type, g.n, channels, height, width)));
  }
  Descriptor& d = graph->descriptor;
  d.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<int64_t>(operations.size()),
        operations.data());
  d.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
  CUDNN_CHECK(cudnnBackendFinalize(d.get()));
  return graph;
}

// ---- engines ------------------------------------------------------------------------------------------------------

struct EngineNotes {
  int64_t index = -1;
  std::vector<cudnnBackendNumericalNote_t> numerical;
  bool compiles = false;

  bool has(cudnnBackendNumericalNote_t note) const {
    return std::find(numerical.begin(), numerical.end(), note) != numerical.end();
  }
};

EngineNotes notes_of(const Descriptor& config) {
  Descriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  cudnnBackendDescriptor_t raw = engine.get();
  int64_t count = 0;
  CUDNN_CHECK(cudnnBackendGetAttribute(config.get(), CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                       &count, &raw));
  EngineNotes notes;
  notes.index = engine.get_int64(CUDNN_ATTR_ENGINE_GLOBAL_INDEX);
  notes.numerical.resize(CUDNN_NUMERICAL_NOTE_TYPE_COUNT);
  CUDNN_CHECK(cudnnBackendGetAttribute(engine.get(), CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                       static_cast<int64_t>(notes.numerical.size()), &count, notes.numerical.data()));
  // A newer library may know, and count, more notes than this header.
  notes.numerical.resize(static_cast<size_t>(std::clamp<int64_t>(count, 0, CUDNN_NUMERICAL_NOTE_TYPE_COUNT)));
  std::vector<cudnnBackendBehaviorNote_t> behaviour(CUDNN_BEHAVIOR_NOTE_TYPE_COUNT);
  CUDNN_CHECK(cudnnBackendGetAttribute(engine.get(), CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE,
                                       static_cast<int64_t>(behaviour.size()), &count, behaviour.data()));
  behaviour.resize(static_cast<size_t>(std::clamp<int64_t>(count, 0, CUDNN_BEHAVIOR_NOTE_TYPE_COUNT)));
  notes.compiles =
      std::find(behaviour.begin(), behaviour.end(), CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION) != behaviour.end();
  return notes;
}

// Why an engine may not be used for a problem; null where it may.
const char* excluded(const ConvProblem& problem, const CudnnRecipe& recipe, const EngineNotes& notes) {
  if (problem.deterministic && notes.has(CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC)) return "it is not deterministic";
  // The tensor cores of F8E4M3 themselves sum in less than fp32.
  const bool rounds_sums = notes.has(CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION);
  if (rounds_sums && problem.dtype != DLFS_F8E4M3) return "it does not sum in fp32";
  const bool wide = recipe.form == CudnnForm::wide;
  if (problem.dtype == DLFS_F32 || wide) {
    const bool rounds =
        notes.has(CUDNN_NUMERICAL_NOTE_TENSOR_CORE) || notes.has(CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS);
    if (rounds && !problem.tf32 && !wide) return "it rounds fp32 inputs and tf32 is off";
    if (notes.has(CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13)) return "its large Winograd tiles lose precision";
  }
  return nullptr;
}

struct KnobChoice {
  cudnnBackendKnobType_t type;
  int64_t value;
};

std::vector<KnobChoice> knobs_of(const Descriptor& config) {
  std::vector<Descriptor> choices;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (int i = 0; i < CUDNN_KNOB_TYPE_COUNTS; ++i) {
    choices.emplace_back(CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
    raw.push_back(choices.back().get());
  }
  int64_t count = 0;
  CUDNN_CHECK(cudnnBackendGetAttribute(config.get(), CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                       static_cast<int64_t>(raw.size()), &count, raw.data()));
  std::vector<KnobChoice> knobs(static_cast<size_t>(std::clamp<int64_t>(count, 0, CUDNN_KNOB_TYPE_COUNTS)));
  for (size_t i = 0; i < knobs.size(); ++i) {
    int64_t got = 0;
    CUDNN_CHECK(cudnnBackendGetAttribute(raw[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &got,
                                         &knobs[i].type));
    CUDNN_CHECK(cudnnBackendGetAttribute(raw[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1, &got,
                                         &knobs[i].value));
  }
  return knobs;
}

int64_t aligned_bytes(int64_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

struct CudnnCandidate {
  Context* context;
  ConvProblem problem;
  CudnnRecipe recipe;
  std::shared_ptr<const Graph> graph;
  std::shared_ptr<const Descriptor> config;
  EngineNotes notes;
};

namespace {

// ---- the algorithm ------------------------------------------------------------------------------------------------

class CudnnConv final : public ConvAlgorithm {
 public:
  CudnnConv(const CudnnCandidate& from, Descriptor plan)
      : problem_(from.problem),
        recipe_(from.recipe),
        graph_(from.graph),
        config_(from.config),
        plan_(std::move(plan)),
        cudnn_bytes_(plan_.get_int64(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)) {
    const ConvGeometry& g = problem_.g;
    const int64_t size = dtype_size(inner_dtype()), y_size = dtype_size(inner_y_dtype());
    const bool wgrad = problem_.direction == DLFS_CONV_BACKWARD_WEIGHT;
    const bool pad_c = recipe_.c != g.c, pad_k = recipe_.k != g.k, wide = recipe_.form == CudnnForm::wide;
    const int64_t out_pixels = int64_t{g.n} * g.p * g.q;
    int64_t at = aligned_bytes(cudnn_bytes_);
    const auto section = [&at](bool wanted, int64_t bytes) {
      const int64_t here = at;
      if (wanted) at += aligned_bytes(bytes);
      return wanted ? here : -1;
    };
    x_at_ = section(wide || pad_c, int64_t{g.n} * g.h * g.w * recipe_.c * size);
    w_at_ = section(pad_c || pad_k || inner_w_dtype() != (wgrad ? DLFS_F32 : problem_.dtype),
                    int64_t{recipe_.k} * g.r * g.s * (recipe_.c / g.groups) * dtype_size(inner_w_dtype()));
    y_at_ = section(wide || pad_k, out_pixels * recipe_.k * y_size);
    scale_at_ = section(problem_.quantized() && pad_k, recipe_.k * int64_t{4});
    bias_at_ = section(recipe_.fused && problem_.bias && pad_k, recipe_.k * int64_t{4});
    const bool forward = problem_.direction == DLFS_CONV_FORWARD;
    residual_at_ = section(forward && recipe_.fused && problem_.residual && pad_k, out_pixels * recipe_.k * y_size);
    bytes_ = at;
    pick_ = format("cudnn %zu sm%d f%d c%d k%d w%d e%lld b%lld k", cudnnGetVersion(), from.context->compute_capability,
                   recipe_.fused, recipe_.c, recipe_.k, static_cast<int>(recipe_.form),
                   static_cast<long long>(from.notes.index),
                   static_cast<long long>(cudnn_bytes_));
    for (const KnobChoice& knob : knobs_of(*config_)) {
      pick_ += format("%s%d=%lld", pick_.back() == 'k' ? "" : ",", static_cast<int>(knob.type),
                      static_cast<long long>(knob.value));
    }
  }

  int64_t workspace_bytes() const override { return bytes_; }
  std::string pick() const override { return pick_; }

  void run(Stream& s, const ConvTensors& t, void* workspace) const override {
    // The tensors are described to cuDNN as multiples of 16 bytes, which its fast engines need.
    const auto odd = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 != 0; };
    if (odd(t.x) || odd(t.w) || odd(t.y) || odd(t.bias) || odd(t.residual) || odd(t.mask) || odd(t.scale) ||
        odd(workspace)) {
      return run_direct(s, problem_, t);
    }
    const ConvGeometry& g = problem_.g;
    const dlfs_dtype dtype = problem_.dtype, inner = inner_dtype();
    const int64_t in_pixels = int64_t{g.n} * g.h * g.w, out_pixels = int64_t{g.n} * g.p * g.q;
    const int64_t w_rows = int64_t{g.k} * g.r * g.s, w_rows_padded = int64_t{recipe_.k} * g.r * g.s;
    const auto place = [&](int64_t at, const void* otherwise) {
      return at < 0 ? const_cast<void*>(otherwise) : static_cast<char*>(workspace) + at;
    };
    void* const x = place(x_at_, t.x);
    void* const w = place(w_at_, t.w);
    void* const y = place(y_at_, t.y);
    void* const scale = place(scale_at_, t.scale);
    void* const bias = place(bias_at_, t.bias);
    void* const residual = place(residual_at_, t.residual);
    const bool dgrad = problem_.direction == DLFS_CONV_BACKWARD_DATA;
    const bool wgrad = problem_.direction == DLFS_CONV_BACKWARD_WEIGHT;
    const bool forward = !dgrad && !wgrad;
    if (x != t.x && !dgrad) pad_channels(s, x, t.x, in_pixels, in_pixels, recipe_.c, g.c, inner, dtype);
    if (w != t.w && problem_.quantized()) {  // whole rows are added, moved as words of four numbers
      pad_channels(s, w, t.w, w_rows_padded, w_rows, recipe_.c / 4, recipe_.c / 4, DLFS_F32, DLFS_F32);
    } else if (w != t.w && !wgrad) {
      pad_channels(s, w, t.w, w_rows_padded, w_rows, recipe_.c / g.groups, g.c / g.groups, inner, dtype);
    }
    if (y != t.y && !forward) pad_channels(s, y, t.y, out_pixels, out_pixels, recipe_.k, g.k, inner, dtype);
    if (scale != t.scale) pad_channels(s, scale, t.scale, 1, 1, recipe_.k, g.k, DLFS_F32, DLFS_F32);
    if (bias != t.bias) pad_channels(s, bias, t.bias, 1, 1, recipe_.k, g.k, DLFS_F32, DLFS_F32);
    if (residual != t.residual) {
      pad_channels(s, residual, t.residual, out_pixels, out_pixels, recipe_.k, g.k, inner, dtype);
    }

    execute(s, {x, w, y, static_cast<const float*>(bias), residual, t.mask, nullptr, static_cast<const float*>(scale)},
            workspace);

    if (forward && !recipe_.fused && problem_.epilogue()) {
      conv_epilogue(s, t.y, y, t.bias, t.residual, out_pixels, g.k, recipe_.k, dtype, inner, problem_.activation);
    } else if (forward && y != t.y) {
      conv_epilogue(s, t.y, y, nullptr, nullptr, out_pixels, g.k, recipe_.k, problem_.y_dtype, inner_y_dtype(),
                    DLFS_ACT_NONE);
    } else if (dgrad && x != t.x) {
      conv_epilogue(s, t.x, x, nullptr, nullptr, in_pixels, g.c, recipe_.c, dtype, inner, DLFS_ACT_NONE);
    } else if (wgrad && w != t.w) {
      conv_epilogue(s, t.w, w, nullptr, nullptr, w_rows, g.c / g.groups, recipe_.c / g.groups, DLFS_F32,
                    inner_w_dtype(), DLFS_ACT_NONE);
    }
  }

 private:
  // The dtypes that cuDNN sees: of the activations, and of the weights or their gradient.
  dlfs_dtype inner_dtype() const { return recipe_.form == CudnnForm::wide ? DLFS_F32 : problem_.dtype; }
  dlfs_dtype inner_y_dtype() const { return problem_.quantized() ? problem_.y_dtype : inner_dtype(); }
  dlfs_dtype inner_w_dtype() const {
    const bool wgrad = problem_.direction == DLFS_CONV_BACKWARD_WEIGHT;
    return wgrad && recipe_.form == CudnnForm::plain ? DLFS_F32 : inner_dtype();
  }

  // t: with the copies in place of what was copied.
  void execute(Stream& s, const ConvTensors& t, void* workspace) const {
    int64_t ids[7] = {id_x, id_w, id_y};
    void* pointers[7] = {t.x, t.w, t.y};
    int64_t count = 3;
    const auto operand = [&](bool wanted, TensorId id, const void* pointer) {
      if (!recipe_.fused || !wanted) return;
      ids[count] = id;
      pointers[count++] = const_cast<void*>(pointer);
    };
    operand(problem_.quantized(), id_scale, t.scale);
    operand(problem_.bias, id_bias, t.bias);
    operand(problem_.residual, id_residual, t.residual);
    operand(problem_.relu_mask, id_mask, t.mask);
    Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, ids);
    pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, pointers);
    pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    CUDNN_CHECK(cudnnBackendFinalize(pack.get()));
    CUDNN_CHECK(cudnnBackendExecute(s.cudnn(), plan_.get(), pack.get()));
  }

  const ConvProblem problem_;
  const CudnnRecipe recipe_;
  const std::shared_ptr<const Graph> graph_;
  const std::shared_ptr<const Descriptor> config_;
  const Descriptor plan_;
  const int64_t cudnn_bytes_;
  // Where copies lie in the workspace; -1: not needed.
  int64_t x_at_ = -1, w_at_ = -1, y_at_ = -1, scale_at_ = -1, bias_at_ = -1, residual_at_ = -1;
  int64_t bytes_ = 0;
  std::string pick_;
};

Descriptor make_plan(Context& context, const Descriptor& config) {
  const PlanningHandle planning(context);
  const cudnnHandle_t handle = planning.get();
  Descriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
  plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
  return plan.finalize();
}

// An engine with its settings, and the graph that it is for, made with the calling thread's handle.
std::pair<std::shared_ptr<const Graph>, std::shared_ptr<const Descriptor>> make_config(
    Context& context, const ConvProblem& problem, const CudnnRecipe& recipe, int64_t engine_index,
    const std::vector<KnobChoice>& knobs) {
  const PlanningHandle planning(context);
  std::shared_ptr<const Graph> graph = build_graph(planning.get(), problem, recipe);
  Descriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  engine.set(CUDNN_ATTR_ENGINE_OPERATION_GRAPH, graph->descriptor);
  engine.set(CUDNN_ATTR_ENGINE_GLOBAL_INDEX, engine_index);
  CUDNN_CHECK(cudnnBackendFinalize(engine.get()));
  std::vector<Descriptor> choices;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (const KnobChoice& knob : knobs) {
    Descriptor choice(CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
    choice.set(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &knob.type);
    choice.set(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, knob.value);
    choices.push_back(choice.finalize());
    raw.push_back(choices.back().get());
  }
  auto config = std::make_shared<Descriptor>(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  config->set(CUDNN_ATTR_ENGINECFG_ENGINE, engine);
  if (!raw.empty()) {
    config->set(CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<int64_t>(raw.size()),
                raw.data());
  }
  CUDNN_CHECK(cudnnBackendFinalize(config->get()));
  return {std::move(graph), std::move(config)};
}

}  // namespace

std::vector<CudnnRecipe> cudnn_recipes(const ConvProblem& problem, bool all) {
  const ConvGeometry& g = problem.g;
  if (problem.quantized()) {
    const bool may_pad_k = problem.y_dtype != problem.dtype && !problem.residual && g.k <= INT32_MAX - 16;
    if (g.groups != 1 || g.c % 16 != 0 || (g.k % 16 != 0 && !may_pad_k)) return {};
    const CudnnRecipe plain{true, g.c, (g.k + 15) / 16 * 16, CudnnForm::plain, true};
    if (problem.dtype == DLFS_I8 || !all) return {plain};
    CudnnRecipe fast = plain;
    fast.form = CudnnForm::fast_sums;
    return {plain, fast};
  }
  const bool low = problem.dtype != DLFS_F32;
  const bool pad = low && g.groups == 1 && g.c <= INT32_MAX - 8 && g.k <= INT32_MAX - 8;
  const int32_t c8 = pad ? (g.c + 7) / 8 * 8 : g.c;
  const int32_t k8 = pad ? (g.k + 7) / 8 * 8 : g.k;
  const bool epilogue = problem.direction == DLFS_CONV_FORWARD && problem.epilogue();
  const bool first_layer = all && pad && g.c < 4;
  std::vector<CudnnRecipe> recipes;
  const auto add = [&](bool fused, int32_t c, int32_t k, CudnnForm form, bool compile) {
    for (const CudnnRecipe& one : recipes) {
      const bool covers = one.compile || !compile;
      if (one.fused == fused && one.c == c && one.k == k && one.form == form && covers) return;
    }
    recipes.push_back({fused, c, k, form, compile});
  };
  if (problem.direction == DLFS_CONV_BACKWARD_WEIGHT && low) {
    // An fp32 gradient of bf16 or f16 may need an engine that cuDNN compiles, which takes long; without a measurement
    // to justify it, the gradient is rounded instead, as mixed-precision training commonly does.
    add(false, c8, k8, CudnnForm::plain, all);
    add(false, c8, k8, CudnnForm::low_result, true);
    if (first_layer) add(false, 4, k8, CudnnForm::low_result, true);
    add(false, g.c, g.k, CudnnForm::low_result, true);
  } else if (problem.gradient_epilogue()) {
    // Kernels that cuDNN compiles, for the tensor cores and stride 1; residual and mask are not padded.
    // Whether that helps where channels come in groups only a measurement tells.
    const bool stride_1 = g.stride_h == 1 && g.stride_w == 1;
    if (stride_1 && c8 == g.c && (low || problem.tf32) && (all || g.groups == 1)) {
      add(true, g.c, k8, CudnnForm::plain, true);
      add(true, g.c, g.k, CudnnForm::plain, true);
    }
    return recipes;
  } else {
    add(epilogue, c8, k8, CudnnForm::plain, true);
    if (first_layer) add(epilogue, 4, k8, CudnnForm::plain, true);
    add(epilogue, g.c, g.k, CudnnForm::plain, true);
    add(false, c8, k8, CudnnForm::plain, true);
    add(false, g.c, g.k, CudnnForm::plain, true);
  }
  if (low) add(false, c8, k8, CudnnForm::wide, true);
  return recipes;
}

std::vector<std::shared_ptr<const CudnnCandidate>> cudnn_candidates(Context& context, const ConvProblem& problem,
                                                                    const CudnnRecipe& recipe, bool fallback) {
  std::vector<std::shared_ptr<const CudnnCandidate>> candidates;
  const PlanningHandle planning(context);
  try {
    const std::shared_ptr<const Graph> graph = build_graph(planning.get(), problem, recipe);
    Descriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    const cudnnBackendHeurMode_t mode = fallback ? CUDNN_HEUR_MODE_FALLBACK : CUDNN_HEUR_MODE_A;
    heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph->descriptor);
    heuristics.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    CUDNN_CHECK(cudnnBackendFinalize(heuristics.get()));
    int64_t count = 0;
    CUDNN_CHECK(cudnnBackendGetAttribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                         0, &count, nullptr));
    std::vector<std::shared_ptr<const Descriptor>> configs;
    std::vector<cudnnBackendDescriptor_t> raw;
    for (int64_t i = 0; i < count; ++i) {
      configs.push_back(std::make_shared<Descriptor>(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR));
      raw.push_back(configs.back()->get());
    }
    int64_t filled = 0;
    if (count > 0) {
      CUDNN_CHECK(cudnnBackendGetAttribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                           CUDNN_TYPE_BACKEND_DESCRIPTOR, count, &filled, raw.data()));
    }
    for (int64_t i = 0; i < std::min(count, filled); ++i) {
      const std::shared_ptr<const Descriptor>& config = configs[static_cast<size_t>(i)];
      try {
        EngineNotes notes = notes_of(*config);
        if (excluded(problem, recipe, notes)) continue;
        candidates.push_back(std::make_shared<CudnnCandidate>(
            CudnnCandidate{&context, problem, recipe, graph, config, std::move(notes)}));
      } catch (const Error& error) {
        ignore_unless_fatal(error);
      }
    }
  } catch (const Error& error) {  // cuDNN has nothing for this graph
    ignore_unless_fatal(error);
  }
  return candidates;
}

bool cudnn_compiles(const CudnnCandidate& candidate) { return candidate.notes.compiles; }

std::shared_ptr<const ConvAlgorithm> cudnn_build(const CudnnCandidate& candidate, int64_t workspace_limit) {
  try {
    CudnnCandidate own = candidate;
    // The candidate's graph holds the handle that it was made with, which another thread may be using.
    if (pool_handle()) {
      std::tie(own.graph, own.config) = make_config(*candidate.context, candidate.problem, candidate.recipe,
                                                    candidate.notes.index, knobs_of(*candidate.config));
    }
    auto algorithm = std::make_shared<CudnnConv>(own, make_plan(*own.context, *own.config));
    return algorithm->workspace_bytes() <= workspace_limit ? algorithm : nullptr;
  } catch (const Error& error) {
    ignore_unless_fatal(error);
    return nullptr;
  }
}

std::shared_ptr<const ConvAlgorithm> cudnn_from_pick(Context& context, const ConvProblem& problem,
                                                     const std::string& pick) {
  size_t version = 0;
  int capability = 0, fused = 0, form = 0, length = 0;
  CudnnRecipe recipe{};
  long long engine_index = -1, bytes = 0;
  const int fields = sscanf(pick.c_str(), "cudnn %zu sm%d f%d c%d k%d w%d e%lld b%lld k%n", &version, &capability,
                            &fused, &recipe.c, &recipe.k, &form, &engine_index, &bytes, &length);
  DLFS_CHECK(fields == 8 && length > 0, DLFS_ERROR_ARGUMENT, "pick '%.200s' is not one of dlfs_conv_pick",
             pick.c_str());
  DLFS_CHECK(version == cudnnGetVersion(), DLFS_ERROR_ARGUMENT, "the pick is of cuDNN %zu, this is %zu", version,
             cudnnGetVersion());
  DLFS_CHECK(capability == context.compute_capability, DLFS_ERROR_ARGUMENT,
             "the pick is of a device of compute capability %d.%d, this one has %d.%d", capability / 10,
             capability % 10, context.compute_capability / 10, context.compute_capability % 10);
  recipe.fused = fused != 0;
  recipe.form = static_cast<CudnnForm>(form);
  recipe.compile = true;
  bool known = false;
  for (const CudnnRecipe& one : cudnn_recipes(problem, true)) {
    known = known || (one.fused == recipe.fused && one.c == recipe.c && one.k == recipe.k && one.form == recipe.form);
  }
  DLFS_CHECK(known, DLFS_ERROR_ARGUMENT, "pick '%.200s' is of another convolution than %s", pick.c_str(),
             problem.g.text().c_str());
  std::vector<KnobChoice> knobs;
  for (const char* p = pick.c_str() + length; *p;) {
    int type = 0, used = 0;
    long long value = 0;
    DLFS_CHECK(sscanf(p, "%d=%lld%n", &type, &value, &used) == 2, DLFS_ERROR_ARGUMENT, "pick '%.200s' is damaged",
               pick.c_str());
    knobs.push_back({static_cast<cudnnBackendKnobType_t>(type), value});
    p += used;
    if (*p == ',') ++p;
  }
  try {
    auto [graph, config] = make_config(context, problem, recipe, engine_index, knobs);
    EngineNotes notes = notes_of(*config);
    const char* const why_not = excluded(problem, recipe, notes);
    DLFS_CHECK(!why_not, DLFS_ERROR_ARGUMENT, "engine %lld of the pick is excluded: %s", engine_index, why_not);
    const CudnnCandidate candidate{&context, problem, recipe, std::move(graph), std::move(config), std::move(notes)};
    return std::make_shared<CudnnConv>(candidate, make_plan(context, *candidate.config));
  } catch (const Error& error) {
    if (error.code != DLFS_ERROR_CUDNN) throw;
    throw Error(DLFS_ERROR_ARGUMENT, format("pick '%.200s' does not fit: %s", pick.c_str(), error.what()));
  }
}

}  // namespace dlfs
