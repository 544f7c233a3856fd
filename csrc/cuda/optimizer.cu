// SGD with momentum over a list of tensors in one launch, the norm of their gradients, and the learning-rate schedule
// that runs inside a captured step.
#include <algorithm>
#include <memory>
#include <vector>

#include "common/arguments.hpp"
#include "common/sgd.hpp"
#include "cuda/numeric.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

constexpr int block_threads = 256;
// Elements of one block's piece: large enough to hide the reading of the table, small enough that a list of small and
// large tensors spreads evenly.
constexpr int64_t piece_elements = 8192;

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

// What one block updates: piece_elements values of a tensor, from `first` on.
struct SgdPiece {
  int64_t first;
  int32_t tensor;
  int32_t unused;
};

struct Sgd {
  std::shared_ptr<Context> context;
  DeviceBuffer tensors;  // SgdTensor[]
  DeviceBuffer pieces;   // SgdPiece[]
  unsigned blocks = 0;
  dlfs_dtype cast_dtype = DLFS_F32;
};

using SgdTable = HandleTable<Sgd, HandleKind::sgd>;

SgdTable& sgds() {
  static auto* const table = new SgdTable();
  return *table;
}

// ---- kernels ------------------------------------------------------------------------------------------------------

// Calls body(Width<V>, i) for the elements of this block's piece.
template <class Body>
__device__ __forceinline__ void for_piece(const SgdTensor& tensor, const SgdPiece& piece, Body&& body) {
  const int64_t end = min(piece.first + piece_elements, tensor.elements);
  int64_t rest = piece.first;
  if (tensor.vector) {
    rest = end - (end - piece.first) % 4;
    for (int64_t i = piece.first + 4 * static_cast<int64_t>(threadIdx.x); i < rest; i += 4 * block_threads) {
      body(Width<4>{}, i);
    }
  }
  for (int64_t i = rest + threadIdx.x; i < end; i += block_threads) body(Width<1>{}, i);
}

// partial[block] = the sum of squares of a piece's gradients. In fp64, so that no square overflows or is lost; the
// reading takes longer than the arithmetic.
__global__ void __launch_bounds__(block_threads)
    squares_kernel(double* partial, const SgdTensor* tensors, const SgdPiece* pieces) {
  const SgdPiece piece = pieces[blockIdx.x];
  const SgdTensor tensor = tensors[piece.tensor];
  double sum = 0;
  for_piece(tensor, piece, [&](auto width, int64_t i) {
    constexpr int V = decltype(width)::value;
    float g[V];
    load(g, tensor.gradient + i);
#pragma unroll
    for (int j = 0; j < V; ++j) sum += static_cast<double>(g[j]) * static_cast<double>(g[j]);
  });
  sum = block_sum<block_threads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(block_threads) norm_kernel(float* norm, const double* partial, unsigned count) {
  double sum = 0;
  for (unsigned i = threadIdx.x; i < count; i += block_threads) sum += partial[i];
  sum = block_sum<block_threads>(sum);
  if (threadIdx.x == 0) *norm = static_cast<float>(sqrt(sum));
}

// Cast: the type of the low-precision copies.
template <class Cast>
__global__ void __launch_bounds__(block_threads, 4)
    sgd_step_kernel(const SgdTensor* tensors, const SgdPiece* pieces, const float* lr, const int32_t* skip,
                    const float* grad_norm, float momentum, bool nesterov, float grad_factor, float max_norm) {
  if (skip && *skip != 0) return;
  if (grad_norm) grad_factor *= clip_coefficient(*grad_norm, grad_factor, max_norm);
  const SgdPiece piece = pieces[blockIdx.x];
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
      g[j] = g[j] * grad_factor + tensor.weight_decay * p[j];
      v[j] = momentum * v[j] + g[j];
      p[j] -= rate * (nesterov ? g[j] + momentum * v[j] : v[j]);
    }
    store(tensor.parameter + i, p);
    store(tensor.momentum + i, v);
    if (tensor.cast) store(static_cast<Cast*>(tensor.cast) + i, p);
  });
}

template <class Cast>
__global__ void __launch_bounds__(block_threads, 4) refresh_kernel(const SgdTensor* tensors, const SgdPiece* pieces) {
  const SgdPiece piece = pieces[blockIdx.x];
  const SgdTensor tensor = tensors[piece.tensor];
  if (!tensor.cast) return;
  for_piece(tensor, piece, [&](auto width, int64_t i) {
    float p[decltype(width)::value];
    load(p, tensor.parameter + i);
    store(static_cast<Cast*>(tensor.cast) + i, p);
  });
}

__global__ void schedule_kernel(float* lr, int32_t* step, const float* table, int64_t length) {
  const int32_t now = *step;
  *lr = table[min(static_cast<int64_t>(max(now, 0)), length - 1)];
  if (now < INT32_MAX) *step = now + 1;
}

// ---- host ---------------------------------------------------------------------------------------------------------

// Copies host memory to a new device buffer without touching any other stream.
template <class T>
DeviceBuffer upload(Context& context, const std::vector<T>& values, const char* what) {
  DeviceBuffer buffer(context, static_cast<int64_t>(values.size() * sizeof(T)), what);
  cudaStream_t stream = nullptr;
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  cudaError_t status =
      cudaMemcpyAsync(buffer.data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice, stream);
  if (status == cudaSuccess) status = cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
  if (status != cudaSuccess) throw_cuda(status, "cudaMemcpyAsync");
  return buffer;
}

template <class T>
T* address(int64_t value, const char* name, int32_t i) {
  DLFS_CHECK(value > 0, DLFS_ERROR_ARGUMENT, "%s of tensor %d is NULL", name, i);
  DLFS_CHECK(value % static_cast<int64_t>(sizeof(T)) == 0, DLFS_ERROR_ARGUMENT,
             "%s of tensor %d: expected a multiple of %zu bytes, got %lld", name, i, sizeof(T),
             static_cast<long long>(value));
  return reinterpret_cast<T*>(static_cast<uintptr_t>(value));
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
    std::vector<SgdPiece> pieces;
    for (int32_t i = 0; i < count; ++i) {
      check_size(elements[i], "elements");
      check_number(weight_decays[i], "weight_decays");
      check_number(lr_factors[i], "lr_factors");
      SgdTensor& t = tensors[static_cast<size_t>(i)];
      t = SgdTensor{};
      t.elements = elements[i];
      t.parameter = address<float>(parameters[i], "parameter", i);
      t.gradient = address<float>(gradients[i], "gradient", i);
      t.momentum = address<float>(momenta[i], "momentum", i);
      if (casts[i] != 0) {
        DLFS_CHECK(casts[i] > 0 && casts[i] % cast_size == 0, DLFS_ERROR_ARGUMENT,
                   "cast of tensor %d: expected a multiple of %lld bytes, got %lld", i,
                   static_cast<long long>(cast_size), static_cast<long long>(casts[i]));
        t.cast = reinterpret_cast<void*>(static_cast<uintptr_t>(casts[i]));
      }
      t.weight_decay = weight_decays[i];
      t.lr_factor = lr_factors[i];
      t.vector = aligned16({t.parameter, t.gradient, t.momentum}) && casts[i] % (4 * cast_size) == 0;
      for (int64_t first = 0; first < t.elements; first += piece_elements) pieces.push_back({first, i, 0});
    }
    DLFS_CHECK(pieces.size() <= INT32_MAX, DLFS_ERROR_SHAPE, "more than %d pieces of %lld values", INT32_MAX,
               static_cast<long long>(piece_elements));
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

dlfs_status dlfs_sgd_grad_norm(dlfs_stream stream, dlfs_sgd sgd, float* norm, void* workspace) {
  return stream_call("dlfs_sgd_grad_norm", stream, [&](Stream& s) {
    const std::shared_ptr<Sgd> object = sgds().find(sgd);
    DLFS_CHECK(object->context == s.context, DLFS_ERROR_ARGUMENT, "the optimizer belongs to another context");
    check_pointer(norm, "norm");
    check_workspace(workspace, static_cast<int64_t>(object->blocks * sizeof(double)));
    s.retain(object);
    double* const partial = static_cast<double*>(workspace);
    launch(s, object->blocks, block_threads, 0, squares_kernel, partial, object->tensors.as<SgdTensor>(),
           object->pieces.as<SgdPiece>());
    launch(s, 1, block_threads, 0, norm_kernel, norm, partial, object->blocks);
  });
}

dlfs_status dlfs_sgd_step(dlfs_stream stream, dlfs_sgd sgd, const float* lr, const int32_t* skip,
                          const float* grad_norm, double momentum, int32_t nesterov, double grad_factor,
                          double max_norm) {
  return stream_call("dlfs_sgd_step", stream, [&](Stream& s) {
    const std::shared_ptr<Sgd> object = sgds().find(sgd);
    DLFS_CHECK(object->context == s.context, DLFS_ERROR_ARGUMENT, "the optimizer belongs to another context");
    check_pointer(lr, "lr");
    check_step_numbers(momentum, grad_factor, max_norm);
    s.retain(object);
    dispatch_float(object->cast_dtype, [&](auto tag) {
      launch(s, object->blocks, block_threads, 0, sgd_step_kernel<typename decltype(tag)::type>,
             object->tensors.as<SgdTensor>(), object->pieces.as<SgdPiece>(), lr, skip, grad_norm,
             static_cast<float>(momentum), nesterov != 0, static_cast<float>(grad_factor),
             static_cast<float>(max_norm));
    });
  });
}

dlfs_status dlfs_sgd_refresh_casts(dlfs_stream stream, dlfs_sgd sgd) {
  return stream_call("dlfs_sgd_refresh_casts", stream, [&](Stream& s) {
    const std::shared_ptr<Sgd> object = sgds().find(sgd);
    DLFS_CHECK(object->context == s.context, DLFS_ERROR_ARGUMENT, "the optimizer belongs to another context");
    s.retain(object);
    dispatch_float(object->cast_dtype, [&](auto tag) {
      launch(s, object->blocks, block_threads, 0, refresh_kernel<typename decltype(tag)::type>,
             object->tensors.as<SgdTensor>(), object->pieces.as<SgdPiece>());
    });
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
