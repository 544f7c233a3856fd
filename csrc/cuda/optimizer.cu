// SGD with momentum over a list of tensors in one launch, the norm of their gradients, and the learning-rate schedule
// that runs inside a captured step.
#include <algorithm>
#include <memory>
#include <vector>

#include "common/arguments.hpp"
#include "common/sgd.hpp"
#include "cuda/pieces.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

struct SgdTensor {
  float* parameter;
  const float* gradient;
  float* momentum;
  void* cast;  // a copy in the low precision, or null
  int64_t elements;
  float weight_decay;
  float lr_factor;
  int32_t vector;  // 1 where all addresses allow accesses of four values
  int32_t unused;
};

struct Sgd {
  std::shared_ptr<Context> context;
  DeviceBuffer tensors;  // SgdTensor[]
  DeviceBuffer pieces;   // Piece[]
  unsigned blocks = 0;
  dlfs_dtype cast_dtype = DLFS_F32;
};

using SgdTable = HandleTable<Sgd, HandleKind::sgd>;

SgdTable& sgds() {
  static auto* const table = new SgdTable();
  return *table;
}

// ---- kernels ------------------------------------------------------------------------------------------------------

// partial[block] = the sum of squares of a piece's gradients. In fp64, so that no square overflows or is lost; the
// reading takes longer than the arithmetic.
__global__ void __launch_bounds__(piece_threads)
    squares_kernel(double* partial, const SgdTensor* tensors, const Piece* pieces) {
  const Piece piece = pieces[blockIdx.x];
  const SgdTensor tensor = tensors[piece.tensor];
  double sum = 0;
  for_piece(tensor, piece, [&](auto width, int64_t i) {
    constexpr int V = decltype(width)::value;
    float g[V];
    load(g, tensor.gradient + i);
#pragma unroll
    for (int j = 0; j < V; ++j) sum += static_cast<double>(g[j]) * static_cast<double>(g[j]);
  });
  sum = block_sum<piece_threads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(piece_threads) norm_kernel(float* norm, const double* partial,
                                                             const float* grad_scale, unsigned count) {
  double sum = 0;
  for (unsigned i = threadIdx.x; i < count; i += piece_threads) sum += partial[i];
  sum = block_sum<piece_threads>(sum);
  if (threadIdx.x != 0) return;
  const double scale = grad_scale ? static_cast<double>(*grad_scale) : 1.0;
  *norm = static_cast<float>(sqrt(sum) / scale);
}

// Cast: the type of the low-precision copies.
template <class Cast>
__global__ void __launch_bounds__(piece_threads, 4)
    sgd_step_kernel(const SgdTensor* tensors, const Piece* pieces, const float* lr, const int32_t* skip,
                    const float* grad_norm, const float* grad_scale, float momentum, bool nesterov, float grad_factor,
                    float max_norm, float max_value) {
  if (skip && *skip != 0) return;
  const float given = grad_factor;
  grad_factor = unscaled_factor(given, grad_scale);
  if (grad_norm) grad_factor *= clip_coefficient(*grad_norm, given, max_norm);
  const Piece piece = pieces[blockIdx.x];
  const SgdTensor tensor = tensors[piece.tensor];
  const float rate = *lr * tensor.lr_factor;
  for_piece(tensor, piece, [&](auto width, int64_t i) {
    constexpr int V = decltype(width)::value;
    float p[V], g[V], v[V];
    load(p, tensor.parameter + i);
    load(g, tensor.gradient + i);
    load(v, tensor.momentum + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      g[j] = clip_value(g[j] * grad_factor, max_value) + tensor.weight_decay * p[j];
      v[j] = momentum * v[j] + g[j];
      p[j] -= rate * (nesterov ? g[j] + momentum * v[j] : v[j]);
    }
    store(tensor.parameter + i, p);
    store(tensor.momentum + i, v);
    if (tensor.cast) store(static_cast<Cast*>(tensor.cast) + i, p);
  });
}

template <class Cast>
__global__ void __launch_bounds__(piece_threads, 4) refresh_kernel(const SgdTensor* tensors, const Piece* pieces) {
  const Piece piece = pieces[blockIdx.x];
  const SgdTensor tensor = tensors[piece.tensor];
  if (!tensor.cast) return;
  for_piece(tensor, piece, [&](auto width, int64_t i) {
    float p[decltype(width)::value];
    load(p, tensor.parameter + i);
    store(static_cast<Cast*>(tensor.cast) + i, p);
  });
}

__global__ void loss_scale_kernel(float* scale, int32_t* counters, int32_t* failed, const int32_t* overflow,
                                  LossScaleRule rule) {
  update_loss_scale(scale, counters, failed, *overflow != 0, rule);
}

__global__ void schedule_kernel(float* lr, int32_t* step, const float* table, int64_t length) {
  const int32_t now = *step;
  *lr = table[min(static_cast<int64_t>(max(now, 0)), length - 1)];
  if (now < INT32_MAX) *step = now + 1;
}

// Adds a piece's part to its parameter's checksum; whole numbers, so that the order does not matter.
__global__ void __launch_bounds__(piece_threads)
    checksum_kernel(unsigned long long* sums, const SgdTensor* tensors, const Piece* pieces) {
  const Piece piece = pieces[blockIdx.x];
  const SgdTensor tensor = tensors[piece.tensor];
  const int64_t end = min(piece.first + piece_elements, tensor.elements);
  unsigned long long sum = 0;
  for (int64_t i = piece.first + threadIdx.x; i < end; i += piece_threads) {
    sum += checksum_term(__float_as_uint(tensor.parameter[i]), i);
  }
  for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
  if (threadIdx.x % 32 == 0) atomicAdd(sums + piece.tensor, sum);
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_sgd_create(dlfs_context ctx, dlfs_sgd* out, const int64_t* parameters, const int64_t* gradients,
                            const int64_t* momenta, const int64_t* casts, const int64_t* elements,
                            const float* weight_decays, const float* lr_factors, int32_t count, dlfs_dtype cast_dtype) {
  return context_call("dlfs_sgd_create", ctx, [&](Context& context) {
    check_pointer(out, "out");
    check_range(count, 1, INT32_MAX, "count");
    check_pointer(parameters, "parameters");
    check_pointer(gradients, "gradients");
    check_pointer(momenta, "momenta");
    check_pointer(casts, "casts");
    check_pointer(elements, "elements");
    check_pointer(weight_decays, "weight_decays");
    check_pointer(lr_factors, "lr_factors");
    const bool has_casts = std::any_of(casts, casts + count, [](int64_t cast) { return cast != 0; });
    if (has_casts) check_dtype(cast_dtype, {DLFS_BF16, DLFS_F16}, "cast_dtype");
    const int64_t cast_size = has_casts ? dtype_size(cast_dtype) : 1;
    std::vector<SgdTensor> tensors(static_cast<size_t>(count));
    std::vector<Piece> pieces;
    for (int32_t i = 0; i < count; ++i) {
      check_size(elements[i], "elements");
      check_number(weight_decays[i], "weight_decays");
      check_number(lr_factors[i], "lr_factors");
      SgdTensor& t = tensors[static_cast<size_t>(i)];
      t = SgdTensor{};
      t.elements = elements[i];
      t.parameter = piece_address<float>(parameters[i], "parameter", i);
      t.gradient = piece_address<float>(gradients[i], "gradient", i);
      t.momentum = piece_address<float>(momenta[i], "momentum", i);
      if (casts[i] != 0) {
        DLFS_CHECK(casts[i] > 0 && casts[i] % cast_size == 0, DLFS_ERROR_ARGUMENT,
                   "cast of tensor %d: expected a multiple of %lld bytes, got %lld", i,
                   static_cast<long long>(cast_size), static_cast<long long>(casts[i]));
        t.cast = reinterpret_cast<void*>(static_cast<uintptr_t>(casts[i]));
      }
      t.weight_decay = weight_decays[i];
      t.lr_factor = lr_factors[i];
      t.vector = aligned16({t.parameter, t.gradient, t.momentum}) && casts[i] % (4 * cast_size) == 0;
      add_pieces(pieces, t.elements, i);
    }
    auto sgd = std::make_shared<Sgd>();
    sgd->context = context.shared_from_this();
    sgd->tensors = upload(context, tensors, "the optimizer's tensor list");
    sgd->pieces = upload(context, pieces, "the optimizer's tensor list");
    sgd->blocks = static_cast<unsigned>(pieces.size());
    sgd->cast_dtype = has_casts ? cast_dtype : DLFS_F32;
    *out = adopt(sgds(), context, std::move(sgd));
  });
}

dlfs_status dlfs_sgd_destroy(dlfs_sgd sgd) {
  return guard("dlfs_sgd_destroy", [&] {
    std::shared_ptr<Sgd> object = disown(sgds(), sgd);
    const std::shared_ptr<Context> context = object->context;
    context->release(std::move(object));
  });
}

dlfs_status dlfs_sgd_grad_norm_workspace(dlfs_sgd sgd, int64_t* out) {
  return guard("dlfs_sgd_grad_norm_workspace", [&] {
    check_pointer(out, "out");
    *out = static_cast<int64_t>(sgds().find(sgd)->blocks * sizeof(double));
  });
}

dlfs_status dlfs_sgd_grad_norm(dlfs_stream stream, dlfs_sgd sgd, float* norm, const float* grad_scale,
                               void* workspace) {
  return stream_call("dlfs_sgd_grad_norm", stream, [&](Stream& s) {
    const std::shared_ptr<Sgd> object = sgds().find(sgd);
    DLFS_CHECK(object->context == s.context, DLFS_ERROR_ARGUMENT, "the optimizer belongs to another context");
    check_pointer(norm, "norm");
    check_workspace(workspace, static_cast<int64_t>(object->blocks * sizeof(double)));
    s.retain(object);
    double* const partial = static_cast<double*>(workspace);
    launch(s, object->blocks, piece_threads, 0, squares_kernel, partial, object->tensors.as<SgdTensor>(),
           object->pieces.as<Piece>());
    launch(s, 1, piece_threads, 0, norm_kernel, norm, partial, grad_scale, object->blocks);
  });
}

dlfs_status dlfs_sgd_step(dlfs_stream stream, dlfs_sgd sgd, const float* lr, const int32_t* skip,
                          const float* grad_norm, const float* grad_scale, double momentum, int32_t nesterov,
                          double grad_factor, double max_norm, double max_value) {
  return stream_call("dlfs_sgd_step", stream, [&](Stream& s) {
    const std::shared_ptr<Sgd> object = sgds().find(sgd);
    DLFS_CHECK(object->context == s.context, DLFS_ERROR_ARGUMENT, "the optimizer belongs to another context");
    check_pointer(lr, "lr");
    check_step_numbers(momentum, grad_factor, max_norm, max_value);
    s.retain(object);
    dispatch_float(object->cast_dtype, [&](auto tag) {
      launch(s, object->blocks, piece_threads, 0, sgd_step_kernel<typename decltype(tag)::type>,
             object->tensors.as<SgdTensor>(), object->pieces.as<Piece>(), lr, skip, grad_norm, grad_scale,
             static_cast<float>(momentum), nesterov != 0, static_cast<float>(grad_factor),
             static_cast<float>(max_norm), static_cast<float>(max_value));
    });
  });
}

dlfs_status dlfs_sgd_refresh_casts(dlfs_stream stream, dlfs_sgd sgd) {
  return stream_call("dlfs_sgd_refresh_casts", stream, [&](Stream& s) {
    const std::shared_ptr<Sgd> object = sgds().find(sgd);
    DLFS_CHECK(object->context == s.context, DLFS_ERROR_ARGUMENT, "the optimizer belongs to another context");
    s.retain(object);
    dispatch_float(object->cast_dtype, [&](auto tag) {
      launch(s, object->blocks, piece_threads, 0, refresh_kernel<typename decltype(tag)::type>,
             object->tensors.as<SgdTensor>(), object->pieces.as<Piece>());
    });
  });
}

dlfs_status dlfs_sgd_checksums(dlfs_stream stream, dlfs_sgd sgd, int64_t* sums) {
  return stream_call("dlfs_sgd_checksums", stream, [&](Stream& s) {
    const std::shared_ptr<Sgd> object = sgds().find(sgd);
    DLFS_CHECK(object->context == s.context, DLFS_ERROR_ARGUMENT, "the optimizer belongs to another context");
    check_pointer(sums, "sums");
    s.retain(object);
    const size_t count = static_cast<size_t>(object->tensors.bytes()) / sizeof(SgdTensor);
    CUDA_CHECK(cudaMemsetAsync(sums, 0, count * sizeof(int64_t), s.stream));
    launch(s, object->blocks, piece_threads, 0, checksum_kernel, reinterpret_cast<unsigned long long*>(sums),
           object->tensors.as<SgdTensor>(), object->pieces.as<Piece>());
  });
}

dlfs_status dlfs_loss_scale_step(dlfs_stream stream, float* scale, int32_t* counters, int32_t* failed,
                                 const int32_t* overflow, double growth, double backoff, int32_t interval, double least,
                                 int32_t patience) {
  return stream_call("dlfs_loss_scale_step", stream, [&](Stream& s) {
    check_loss_scale_pointers(scale, counters, failed, overflow);
    const LossScaleRule rule = check_loss_scale_rule(growth, backoff, interval, least, patience);
    launch(s, 1, 1, 0, loss_scale_kernel, scale, counters, failed, overflow, rule);
  });
}

dlfs_status dlfs_schedule_step(dlfs_stream stream, float* lr, int32_t* step, const float* table, int64_t length) {
  return stream_call("dlfs_schedule_step", stream, [&](Stream& s) {
    check_pointer(lr, "lr");
    check_pointer(step, "step");
    check_pointer(table, "table");
    check_size(length, "length");
    launch(s, 1, 1, 0, schedule_kernel, lr, step, table, length);
  });
}

}  // extern "C"
