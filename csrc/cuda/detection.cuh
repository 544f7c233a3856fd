// What the detection kernels share: arrays within a workspace, boxes in device memory, running sums over a block. Box and loss
// maths come from common/boxes.hpp; the files that use it are compiled with -fmad=false so that they give the CPU's
// bits.
#pragma once

#include "common/arguments.hpp"
#include "common/boxes.hpp"
#include "cuda/numeric.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {

constexpr unsigned full_warp = 0xffffffffu;
constexpr int32_t max_images = 65535;  // images are a grid's second or third dimension

// Divides a workspace into 256-byte aligned arrays; built without one, it only adds up the bytes.
class WorkspaceLayout {
 public:
  explicit WorkspaceLayout(void* workspace = nullptr) : base_(static_cast<char*>(workspace)) {}

  template <class T>
  T* take(int64_t count) {
    T* const array = base_ ? reinterpret_cast<T*>(base_ + bytes_) : nullptr;
    bytes_ += ceil_div<int64_t>(count * static_cast<int64_t>(sizeof(T)), 256) * 256;
    return array;
  }

  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

// The sum of the values of the lanes up to this one, of a full warp.
__device__ __forceinline__ uint32_t warp_prefix(uint32_t value) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint32_t other = __shfl_up_sync(full_warp, value, offset);
    if (lane >= offset) value += other;
  }
  return value;
}

// The sum of the values of the threads before this one, and of all. For all threads of a block; ends with a barrier.
template <int threads>
__device__ uint32_t block_prefix(uint32_t value, uint32_t& total) {
  __shared__ uint32_t warp_sums[threads / 32];
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const uint32_t inclusive = warp_prefix(value);
  if (lane == 31) warp_sums[warp] = inclusive;
  __syncthreads();
  uint32_t before = inclusive - value;
  total = 0;
  for (int i = 0; i < threads / 32; ++i) {
    if (i < warp) before += warp_sums[i];
    total += warp_sums[i];
  }
  __syncthreads();
  return before;
}

// Box i of an array (..., 4), in one access where the array is 16-byte aligned.
__device__ __forceinline__ Box read_box(const float* boxes, int64_t i, bool aligned) {
  if (!aligned) return load_box(boxes + 4 * i);
  const float4 v = reinterpret_cast<const float4*>(boxes)[i];
  return {v.x, v.y, v.z, v.w};
}

__device__ __forceinline__ void write_box(float* boxes, int64_t i, const Box& b, bool aligned) {
  if (aligned) {
    reinterpret_cast<float4*>(boxes)[i] = make_float4(b.x1, b.y1, b.x2, b.y2);
  } else {
    store_box(boxes + 4 * i, b);
  }
}

// Whether the intersection of two boxes has an area, without a branch.
__device__ __forceinline__ bool boxes_meet(const Box& a, const Box& b) {
  const bool across = fminf(a.x2, b.x2) > fmaxf(a.x1, b.x1);
  const bool down = fminf(a.y2, b.y2) > fmaxf(a.y1, b.y1);
  return across & down;
}

// box_iou, without its division for boxes that do not meet (most of them).
__device__ __forceinline__ float fast_iou(const Box& a, float area_a, const Box& b, float area_b) {
  return boxes_meet(a, b) ? box_iou(a, area_a, b, area_b) : 0.0f;
}

}  // namespace dlfs
