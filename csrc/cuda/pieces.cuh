// Lists of tensors that one launch goes over, cut into pieces of a block each.
#pragma once

#include <vector>

#include "common/arguments.hpp"
#include "cuda/numeric.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {

constexpr int piece_threads = 256;
// Elements of one block's piece: large enough to hide the reading of the table, small enough that a list of small and
// large tensors spreads evenly.
constexpr int64_t piece_elements = 8192;

// What one block updates: piece_elements values of a tensor, from `first` on.
struct Piece {
  int64_t first;
  int32_t tensor;
  int32_t unused;
};

// Calls body(Width<V>, i) for the elements of this block's piece.
template <class Tensor, class Body>
__device__ __forceinline__ void for_piece(const Tensor& tensor, const Piece& piece, Body&& body) {
  const int64_t end = min(piece.first + piece_elements, tensor.elements);
  int64_t rest = piece.first;
  if (tensor.vector) {
    rest = end - (end - piece.first) % 4;
    for (int64_t i = piece.first + 4 * static_cast<int64_t>(threadIdx.x); i < rest; i += 4 * piece_threads) {
      body(Width<4>{}, i);
    }
  }
  for (int64_t i = rest + threadIdx.x; i < end; i += piece_threads) body(Width<1>{}, i);
}

// Adds the pieces of tensor i.
inline void add_pieces(std::vector<Piece>& pieces, int64_t elements, int32_t i) {
  for (int64_t first = 0; first < elements; first += piece_elements) pieces.push_back({first, i, 0});
  DLFS_CHECK(pieces.size() <= INT32_MAX, DLFS_ERROR_SHAPE, "more than %d pieces of %lld values", INT32_MAX,
             static_cast<long long>(piece_elements));
}

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
T* piece_address(int64_t value, const char* name, int32_t i) {
  DLFS_CHECK(value > 0, DLFS_ERROR_ARGUMENT, "%s of tensor %d is NULL", name, i);
  DLFS_CHECK(value % static_cast<int64_t>(sizeof(T)) == 0, DLFS_ERROR_ARGUMENT,
             "%s of tensor %d: expected a multiple of %zu bytes, got %lld", name, i, sizeof(T),
             static_cast<long long>(value));
  return reinterpret_cast<T*>(static_cast<uintptr_t>(value));
}

}  // namespace dlfs
