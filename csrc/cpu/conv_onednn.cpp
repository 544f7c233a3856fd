// Convolutions by oneDNN (https://oneapi-src.github.io/oneDNN, version 2's operation descriptors, which 3 removed: they
// stay in this file). Weights cross the ABI as KRSC and are reordered into oneDNN's blocked layout in the workspace at
// every call, which costs 0.1 to 1 % of the convolution.
#include <omp.h>

#include <cstring>
#include <dnnl.hpp>

#include "cpu/conv.hpp"
#include "cpu/conv_taps.hpp"
#include "cpu/numeric.hpp"

namespace dlfs::cpu {

namespace {

using dnnl::memory;

const dnnl::engine& cpu_engine() {
  static const dnnl::engine& engine = *new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

dnnl::stream& cpu_stream() {
  thread_local dnnl::stream stream(cpu_engine());
  return stream;
}

// Runs body with the number of OpenMP threads that primitives are to be built for.
template <class Body>
auto with_threads(int threads, Body&& body) {
  struct Restore {
    int threads;
    ~Restore() { omp_set_num_threads(threads); }
  } restore{omp_get_max_threads()};
  omp_set_num_threads(threads);
  return body();
}

// What oneDNN 2.6.3 computes wrongly, as random shapes compared with a reference showed; another candidate serves
// these.
bool trusted(const ConvProblem& problem, const std::string& implementation, bool blocked) {
  const ConvGeometry& g = problem.g;
  const auto is = [&](const char* part) { return implementation.find(part) != std::string::npos; };
  const bool bf16 = problem.dtype == DLFS_BF16, pointwise = is("1x1");
  if (is("ref")) return false;  // right, but slower than our own loops
  // Rows are transposed into one row per stride, and those without a pixel are not cleared.
  if (problem.direction == DLFS_CONV_BACKWARD_WEIGHT && is("jit_bf16") && g.w < g.stride_w) return false;
  if (blocked) return true;
  switch (problem.direction) {
    case DLFS_CONV_BACKWARD_DATA:
      // Pairs of output channels: the last one of an odd number is paired with the next pixel's first.
      return !(bf16 && pointwise && g.k % 2 != 0);
    case DLFS_CONV_BACKWARD_WEIGHT:
      // The scratchpad for the strided copy of x is sized by C and written in blocks of 16 channels.
      return !(pointwise && (g.stride_h > 1 || g.stride_w > 1) && g.c % 16 != 0);
    default: return true;
  }
}

// Whether some window touches no pixel along an axis, by a padding of the whole kernel or by dilation: the forward
// kernels then read outside of x, and crash.
bool empty_windows(const ConvGeometry& g) {
  const auto empty = [](int64_t start, int32_t window, int32_t dilation, int32_t size) {
    const Taps taps = valid_taps(start, window, dilation, size);
    return taps.begin >= taps.end;
  };
  for (int64_t p = 0; p < g.p; ++p) {
    if (empty(p * g.stride_h - g.pad_h, g.r, g.dilation_h, g.h)) return true;
  }
  for (int64_t q = 0; q < g.q; ++q) {
    if (empty(q * g.stride_w - g.pad_w, g.s, g.dilation_w, g.w)) return true;
  }
  return false;
}

// The geometry that oneDNN is given. Its 1x1 kernels split the work by images and rows and handle each one's pixels on
// their own, so that images of a few pixels, or of one as in a linear layer, take up to five times as long as the same
// pixels as one image; from 16 pixels on there is no difference.
ConvGeometry merge_small_images(ConvGeometry g) {
  const int64_t pixels = int64_t{g.n} * g.h * g.w;
  if (!g.matrix_product() || int64_t{g.h} * g.w >= 16 || pixels > INT32_MAX) return g;
  g.n = g.w = g.q = 1;
  g.h = g.p = static_cast<int32_t>(pixels);
  return g;
}

// A tensor as the caller lays it out, and as the primitive wants it.
struct Operand {
  memory::desc user, inner;
  int64_t offset = 0;  // of the reordered copy in the workspace
  dnnl::reorder reorder;

  bool reordered() const { return user != inner; }
};

class OnednnConvolution : public ConvAlgorithm {
 public:
  OnednnConvolution(const ConvProblem& problem, bool blocked);

  // Whether activations really are in another layout than NHWC.
  bool blocked() const { return x_.reordered() || y_.reordered(); }

  void run(const ConvBuffers& buffers) const override;

 private:
  void create_forward(const ConvProblem& problem, const memory::desc& x, const memory::desc& w, const memory::desc& y);
  void create_backward_data(const memory::desc& x, const memory::desc& w, const memory::desc& y);
  void create_backward_weights(const memory::desc& x, const memory::desc& w, const memory::desc& y);

  template <class Primitive>
  void adopt(const typename Primitive::primitive_desc& descriptor) {
    const std::string implementation = descriptor.impl_info_str();
    const auto is = [&](const char* part) { return implementation.find(part) != std::string::npos; };
    slow_ = is("gemm") || (g_.depthwise() && !is("dw"));
    name_ = implementation;
    scratchpad_ = descriptor.scratchpad_desc();
    primitive_ = Primitive(descriptor);
  }

  // The forward operation with its epilogue. accumulate: the residual is what y holds before; else it is an operand.
  dnnl::convolution_forward::primitive_desc describe_forward(const memory::desc& x, const memory::desc& w,
                                                             const memory::desc& y, dlfs_activation activation,
                                                             bool accumulate) const;
  // Describes and builds it; false where oneDNN cannot.
  bool try_forward(const memory::desc& x, const memory::desc& w, const memory::desc& y, dlfs_activation activation,
                   bool accumulate);

  void activate_output(void* y) const;

  ConvGeometry g_;
  int32_t direction_;
  bool bias_, residual_;
  dlfs_dtype dtype_;
  dlfs_activation late_activation_ = DLFS_ACT_NONE;  // applied by our own loop afterwards
  bool accumulate_ = false;
  memory::dims strides_, dilation_, padding_;
  Operand x_, w_, y_, r_;  // r: the residual
  memory::desc bias_desc_, scratchpad_;
  int64_t scratchpad_offset_ = 0;
  dnnl::primitive primitive_;
};

OnednnConvolution::OnednnConvolution(const ConvProblem& problem, bool blocked)
    : g_(merge_small_images(problem.g)),
      direction_(problem.direction),
      bias_(problem.bias()),
      residual_(problem.residual()),
      dtype_(problem.dtype) {
  const ConvGeometry& g = g_;
  const memory::data_type type = problem.dtype == DLFS_BF16 ? memory::data_type::bf16 : memory::data_type::f32;
  const memory::data_type w_type = direction_ == DLFS_CONV_BACKWARD_WEIGHT ? memory::data_type::f32 : type;
  const memory::dims x_dims{g.n, g.c, g.h, g.w}, y_dims{g.n, g.k, g.p, g.q};
  const int64_t ci = g.c / g.groups, ko = g.k / g.groups, rs = int64_t{g.r} * g.s;
  memory::dims w_dims, w_strides;  // KRSC
  if (g.groups == 1) {
    w_dims = {g.k, g.c, g.r, g.s};
    w_strides = {rs * ci, 1, g.s * ci, ci};
  } else {
    w_dims = {g.groups, ko, ci, g.r, g.s};
    w_strides = {ko * rs * ci, rs * ci, 1, g.s * ci, ci};
  }
  x_.user = memory::desc(x_dims, type, memory::format_tag::nhwc);
  y_.user = memory::desc(y_dims, type, memory::format_tag::nhwc);
  w_.user = memory::desc(w_dims, w_type, w_strides);
  const memory::desc x = blocked ? memory::desc(x_dims, type, memory::format_tag::any) : x_.user;
  const memory::desc y = blocked ? memory::desc(y_dims, type, memory::format_tag::any) : y_.user;
  const memory::desc w(w_dims, w_type, memory::format_tag::any);
  strides_ = {g.stride_h, g.stride_w};
  dilation_ = {g.dilation_h - 1, g.dilation_w - 1};
  padding_ = {g.pad_h, g.pad_w};

  switch (direction_) {
    case DLFS_CONV_FORWARD: create_forward(problem, x, w, y); break;
    case DLFS_CONV_BACKWARD_DATA: create_backward_data(x, w, y); break;
    default: create_backward_weights(x, w, y);
  }
  if (!trusted(problem, name_, blocked)) throw dnnl::error(dnnl_unimplemented, "the implementation is not trusted");
  name_ = (blocked ? "blocked " : "nhwc ") + name_;

  const auto plan = [this](Operand& operand, bool output) {
    if (!operand.reordered()) return;
    operand.offset = reserve(static_cast<int64_t>(operand.inner.get_size()));
    const memory::desc& from = output ? operand.inner : operand.user;
    const memory::desc& to = output ? operand.user : operand.inner;
    operand.reorder = dnnl::reorder(dnnl::reorder::primitive_desc(cpu_engine(), from, cpu_engine(), to));
  };
  plan(x_, direction_ == DLFS_CONV_BACKWARD_DATA);
  plan(w_, direction_ == DLFS_CONV_BACKWARD_WEIGHT);
  plan(y_, direction_ == DLFS_CONV_FORWARD);
  if (residual_) {
    r_.user = y_.user;
    r_.inner = y_.inner;
    // Accumulated into y: the residual is copied (and reordered) to where the primitive writes.
    if (accumulate_ || r_.reordered()) {
      r_.offset = accumulate_ ? y_.offset : reserve(static_cast<int64_t>(r_.inner.get_size()));
      r_.reorder = dnnl::reorder(dnnl::reorder::primitive_desc(cpu_engine(), r_.user, cpu_engine(), r_.inner));
    }
  }
  scratchpad_offset_ = reserve(static_cast<int64_t>(scratchpad_.get_size()));
}

dnnl::convolution_forward::primitive_desc OnednnConvolution::describe_forward(const memory::desc& x,
                                                                              const memory::desc& w,
                                                                              const memory::desc& y,
                                                                              dlfs_activation activation,
                                                                              bool accumulate) const {
  const auto kind = dnnl::prop_kind::forward_inference;
  const auto direct = dnnl::algorithm::convolution_direct;
  using Operation = dnnl::convolution_forward::desc;
  const Operation operation =
      bias_ ? Operation(kind, direct, x, w, bias_desc_, y, strides_, dilation_, padding_, padding_)
            : Operation(kind, direct, x, w, y, strides_, dilation_, padding_, padding_);
  dnnl::post_ops after;
  if (residual_ && accumulate) after.append_sum(1.0f);
  if (residual_ && !accumulate) {
    // The operand takes y's layout, which is known once the convolution has chosen it.
    const memory::desc layout = dnnl::convolution_forward::primitive_desc(operation, cpu_engine()).dst_desc();
    after.append_binary(dnnl::algorithm::binary_add, layout);
  }
  switch (activation) {
    case DLFS_ACT_RELU: after.append_eltwise(1.0f, dnnl::algorithm::eltwise_relu, 0.0f, 0.0f); break;
    case DLFS_ACT_SIGMOID: after.append_eltwise(1.0f, dnnl::algorithm::eltwise_logistic, 0.0f, 0.0f); break;
    case DLFS_ACT_SILU: after.append_eltwise(1.0f, dnnl::algorithm::eltwise_swish, 1.0f, 0.0f); break;
    case DLFS_ACT_RELU6: after.append_eltwise(1.0f, dnnl::algorithm::eltwise_clip, 0.0f, 6.0f); break;
    default: break;
  }
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  attributes.set_post_ops(after);
  return {operation, attributes, cpu_engine()};
}

bool OnednnConvolution::try_forward(const memory::desc& x, const memory::desc& w, const memory::desc& y,
                                    dlfs_activation activation, bool accumulate) {
  try {
    const auto descriptor = describe_forward(x, w, y, activation, accumulate);
    // Only the brgemm kernels add an operand rightly; others do so for the first image alone.
    if (residual_ && !accumulate && !std::strstr(descriptor.impl_info_str(), "brg")) return false;
    adopt<dnnl::convolution_forward>(descriptor);
    x_.inner = descriptor.src_desc();
    w_.inner = descriptor.weights_desc();
    y_.inner = descriptor.dst_desc();
    accumulate_ = accumulate;
    return true;
  } catch (const dnnl::error& e) {
    if (e.status == dnnl_out_of_memory) throw;
    return false;
  }
}

void OnednnConvolution::create_forward(const ConvProblem& problem, const memory::desc& x, const memory::desc& w,
                                       const memory::desc& y) {
  if (bias_) bias_desc_ = memory::desc({g_.k}, memory::data_type::f32, memory::format_tag::x);
  // The residual as an operand saves a copy of it into y, but some implementations do not take it, and oneDNN then
  // silently chooses a slower one.
  const bool operand = residual_ && try_forward(x, w, y, problem.activation, false);
  const std::string with_operand = name_;
  if (try_forward(x, w, y, problem.activation, residual_)) {
    if (operand && name_ == with_operand) try_forward(x, w, y, problem.activation, false);
    return;
  }
  if (operand) {
    try_forward(x, w, y, problem.activation, false);
    return;
  }
  // Some describe an epilogue that they then fail to build (bf16 with groups and a sigmoid).
  late_activation_ = problem.activation;
  if (late_activation_ != DLFS_ACT_NONE && try_forward(x, w, y, DLFS_ACT_NONE, residual_)) return;
  throw dnnl::error(dnnl_unimplemented, "no implementation");
}

void OnednnConvolution::create_backward_data(const memory::desc& x, const memory::desc& w, const memory::desc& y) {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const dnnl::convolution_forward::primitive_desc hint(
      {dnnl::prop_kind::forward_training, dnnl::algorithm::convolution_direct, x, w, y, strides_, dilation_, padding_,
       padding_},
      cpu_engine());
  const dnnl::convolution_backward_data::primitive_desc descriptor(
      {dnnl::algorithm::convolution_direct, x, w, y, strides_, dilation_, padding_, padding_}, attributes, cpu_engine(),
      hint);
  x_.inner = descriptor.diff_src_desc();
  w_.inner = descriptor.weights_desc();
  y_.inner = descriptor.diff_dst_desc();
  adopt<dnnl::convolution_backward_data>(descriptor);
}

void OnednnConvolution::create_backward_weights(const memory::desc& x, const memory::desc& w, const memory::desc& y) {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  // The forward pass that the gradient belongs to has weights of the activations' type.
  const memory::desc forward_w(w.dims(), x.data_type(), memory::format_tag::any);
  const dnnl::convolution_forward::primitive_desc hint(
      {dnnl::prop_kind::forward_training, dnnl::algorithm::convolution_direct, x, forward_w, y, strides_, dilation_,
       padding_, padding_},
      cpu_engine());
  const dnnl::convolution_backward_weights::primitive_desc descriptor(
      {dnnl::algorithm::convolution_direct, x, w, y, strides_, dilation_, padding_, padding_}, attributes, cpu_engine(),
      hint);
  x_.inner = descriptor.src_desc();
  w_.inner = descriptor.diff_weights_desc();
  y_.inner = descriptor.diff_dst_desc();
  adopt<dnnl::convolution_backward_weights>(descriptor);
}

void OnednnConvolution::activate_output(void* address) const {
  dispatch_float(dtype_, [&](auto type) {
    using T = typename decltype(type)::type;
    T* y = static_cast<T*>(address);
    dispatch_activation(late_activation_, [&](auto tag) {
      parallel_for(g_.y_elements(), 16384, [=](int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) y[i] = from_float<T>(activate<decltype(tag)::value>(to_float(y[i])));
      });
    });
  });
}

void OnednnConvolution::run(const ConvBuffers& b) const {
  try {
    dnnl::stream& stream = cpu_stream();
    const dnnl::engine& engine = cpu_engine();
    char* const workspace = static_cast<char*>(b.workspace);
    const auto user = [&](const Operand& operand, const void* address) {
      return memory(operand.user, engine, const_cast<void*>(address));
    };
    // The memory that the primitive reads or writes.
    const auto inner = [&](const Operand& operand, const memory& outside) {
      return operand.reordered() ? memory(operand.inner, engine, workspace + operand.offset) : outside;
    };
    const memory user_x = user(x_, b.x), user_w = user(w_, b.w), user_y = user(y_, b.y);
    const memory x = inner(x_, user_x), w = inner(w_, user_w), y = inner(y_, user_y);
    const auto reorder = [&](const Operand& operand, const memory& from, const memory& to) {
      if (operand.reordered()) operand.reorder.execute(stream, const_cast<memory&>(from), const_cast<memory&>(to));
    };
    const bool forward = direction_ == DLFS_CONV_FORWARD, data = direction_ == DLFS_CONV_BACKWARD_DATA;
    if (!data) reorder(x_, user_x, x);
    if (forward || data) reorder(w_, user_w, w);
    if (!forward) reorder(y_, user_y, y);

    std::unordered_map<int, memory> arguments;
    arguments.emplace(data ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, x);
    arguments.emplace(forward || data ? DNNL_ARG_WEIGHTS : DNNL_ARG_DIFF_WEIGHTS, w);
    arguments.emplace(forward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, y);
    arguments.emplace(DNNL_ARG_SCRATCHPAD, memory(scratchpad_, engine, workspace + scratchpad_offset_));
    if (bias_) arguments.emplace(DNNL_ARG_BIAS, memory(bias_desc_, engine, const_cast<float*>(b.bias)));
    if (residual_) {
      const memory given = user(r_, b.residual);
      if (accumulate_) {
        if (r_.reordered() || b.residual != b.y)
          r_.reorder.execute(stream, const_cast<memory&>(given), const_cast<memory&>(y));
      } else {
        const memory residual = inner(r_, given);
        reorder(r_, given, residual);
        arguments.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, residual);
      }
    }
    primitive_.execute(stream, arguments);

    if (forward) reorder(y_, y, user_y);
    if (data) reorder(x_, x, user_x);
    if (!forward && !data) reorder(w_, w, user_w);
    stream.wait();
    if (late_activation_ != DLFS_ACT_NONE) activate_output(b.y);
  } catch (const dnnl::error& e) {
    throw Error(e.status == dnnl_out_of_memory ? DLFS_ERROR_HOST_MEMORY : DLFS_ERROR_ONEDNN,
                format("convolution (%s): oneDNN: %s: %s", name_.c_str(), e.message, g_.text().c_str()));
  }
}

}  // namespace

std::shared_ptr<const ConvAlgorithm> onednn_convolution(const ConvProblem& problem, bool blocked) {
  if (empty_windows(problem.g)) return nullptr;
  try {
    return with_threads(problem.threads, [&]() -> std::shared_ptr<const ConvAlgorithm> {
      auto algorithm = std::make_shared<const OnednnConvolution>(problem, blocked);
      if (blocked && !algorithm->blocked()) return nullptr;
      return algorithm;
    });
  } catch (const dnnl::error& e) {
    if (e.status == dnnl_unimplemented) return nullptr;
    throw Error(e.status == dnnl_out_of_memory ? DLFS_ERROR_HOST_MEMORY : DLFS_ERROR_ONEDNN,
                format("oneDNN: %s: %s", e.message, problem.g.text().c_str()));
  }
}

}  // namespace dlfs::cpu
