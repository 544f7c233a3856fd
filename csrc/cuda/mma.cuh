// Tensor cores and asynchronous copies as functions, for kernels of compute capability 8.0 and later: thin covers of
// PTX instructions. A warp's lane l is called (row l / 4, column l % 4) below.
#pragma once

#include "cuda/numeric.cuh"

namespace dlfs {

// d (16, 8) += a (16, 16) b (16, 8), fp32 sums of exact products of 16-bit values. Registers of lane (i, j), each with
// two values, the lower first: a = rows i and i + 8 of columns 2j, 2j + 1, then the same rows of columns 2j + 8, 2j + 9;
// b = rows 2j, 2j + 1, then 2j + 8, 2j + 9, of column i; d = columns 2j, 2j + 1 of row i, then of row i + 8.
template <class T>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void multiply_add<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ __forceinline__ void multiply_add<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two values as a register of the above, rounded to nearest even.
template <class T>
__device__ __forceinline__ uint32_t pack(float lower, float upper);

template <>
__device__ __forceinline__ uint32_t pack<bf16>(float lower, float upper) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(lower, upper);
  return *reinterpret_cast<const uint32_t*>(&both);
}

template <>
__device__ __forceinline__ uint32_t pack<f16>(float lower, float upper) {
  const __half2 both = __floats2half2_rn(lower, upper);
  return *reinterpret_cast<const uint32_t*>(&both);
}

// Four 8x8 matrices of 16-bit values, transposed: lane 8m + i gives the address of matrix m's row i (16 bytes in shared
// memory, aligned); out[m] of lane (i, j) is rows 2j, 2j + 1 of column i.
__device__ __forceinline__ void load_transposed(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// Starts copying `bytes` (0 to size) from global memory to shared memory, followed by zeros up to `size`, which is 4 or
// 16; both addresses are multiples of it. commit_copies() closes a group, wait_copies<n>() waits until all but the
// thread's latest n groups have arrived.
template <int size>
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
  static_assert(size == 4 || size == 16, "sizes in use");
  if constexpr (size == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
  }
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int latest>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(latest) : "memory");
}

}  // namespace dlfs
