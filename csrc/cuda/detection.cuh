// What the detection kernels share: arrays within a workspace, boxes in device memory, sums over a block. Box and loss
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

// box_iou, without its division for boxes that do not meet (most of them).
__device__ __forceinline__ float fast_iou(const Box& a, float area_a, const Box& b, float area_b) {
  const bool meet = fminf(a.x2, b.x2) > fmaxf(a.x1, b.x1) && fminf(a.y2, b.y2) > fmaxf(a.y1, b.y1);
  return meet ? box_iou(a, area_a, b, area_b) : 0.0f;
}

}  // namespace dlfs
