// Hopper's asynchronous instructions (compute capability 9.0, sm_90a) as inline functions: barriers in shared memory,
// tensor memory accesses (TMA) and matrix products of a warpgroup (wgmma). PTX ISA 8, chapters 9.7.9 and 9.7.15.
#pragma once

#include <cuda.h>

#include "cuda/numeric.cuh"

// Defined where a kernel may use these instructions; elsewhere its body must be empty.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DLFS_SM90 1
#endif

namespace dlfs {
namespace sm90 {

#ifdef DLFS_SM90

// ---- barriers: a phase ends when all arrivals and all announced bytes are there; waiting is for a phase's parity ----

__device__ __forceinline__ void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Makes initialised barriers known to the asynchronous units.
__device__ __forceinline__ void barrier_init_done() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives and announces bytes that copies will bring.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Waits until `threads` threads of the block are at barrier `id` (1 to 15).
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- tensor memory accesses: boxes of a described tensor to and from shared memory ----------------------------------

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(map)) : "memory");
}

__device__ __forceinline__ void load_box(void* to, const CUtensorMap* map, uint64_t* barrier, int32_t x, int32_t y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(to)),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(shared_address(barrier)), "r"(x), "r"(y)
      : "memory");
}

__device__ __forceinline__ void load_box(void* to, const CUtensorMap* map, uint64_t* barrier, int32_t x, int32_t y,
                                         int32_t z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
          "r"(shared_address(to)),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// Channels c... of consecutive pixels of a (N, H, W, C) tensor, from the bounding box's pixel (n, h, w) on, each moved by
// (offset_h, offset_w).
__device__ __forceinline__ void load_pixels(void* to, const CUtensorMap* map, uint64_t* barrier, int32_t c, int32_t w,
                                            int32_t h, int32_t n, uint16_t offset_w, uint16_t offset_h) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(shared_address(to)),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(shared_address(barrier)), "r"(c), "r"(w), "r"(h), "r"(n),
      "h"(offset_w), "h"(offset_h)
      : "memory");
}

__device__ __forceinline__ void store_box(const CUtensorMap* map, const void* from, int32_t x, int32_t y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(
                   reinterpret_cast<uint64_t>(map)),
               "r"(shared_address(from)), "r"(x), "r"(y)
               : "memory");
}

__device__ __forceinline__ void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until at most `pending` groups of stores still read shared memory.
template <int pending>
__device__ __forceinline__ void wait_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}

// Makes the block's writes to shared memory visible to the asynchronous units.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- matrices between registers and shared memory -------------------------------------------------------------------

__device__ __forceinline__ void store_matrices(uint32_t address, const uint32_t (&m)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(m[0]), "r"(m[1]),
               "r"(m[2]), "r"(m[3])
               : "memory");
}

__device__ __forceinline__ void load_matrices(uint32_t (&m)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}

// ---- matrix products ------------------------------------------------------------------------------------------------

// Describes a tile of rows of 64 16-bit values (128 bytes), in groups of eight rows, swizzled by 128 bytes.
__device__ __forceinline__ uint64_t tile_descriptor(const void* tile) {
  const uint64_t address = (shared_address(tile) & 0x3ffff) >> 4;
  return address | (uint64_t{1} << 16) | (uint64_t{1024 >> 4} << 32) | (uint64_t{1} << 62);
}

__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int pending>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

template <int registers>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

// sums (64, N) = a (64, 16) b (N, 16)^T + sums, or without the sums where accumulate is 0: one instruction of a whole
// warpgroup. A thread of warp w and lane l holds, for each group j of eight columns, the rows 16 w + l / 4 (values 4 j and
// 4 j + 1) and 8 further down (4 j + 2 and 4 j + 3), in columns 8 j + 2 (l % 4) and the next.
template <class T, int N>
struct Product;

#define DLFS_SUM8(i)                                                                                            \
  "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), "+f"(sums[i + 5]), \
      "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define DLFS_SUM16(i) DLFS_SUM8(i), DLFS_SUM8(i + 8)
#define DLFS_SUM32(i) DLFS_SUM16(i), DLFS_SUM16(i + 16)

#define DLFS_PRODUCT_64(T, name)                                                           \
  template <>                                                                                     \
  struct Product<T, 64> {                                                                        \
    static __device__ __forceinline__ void add(float (&sums)[32], uint64_t a, uint64_t b, int32_t accumulate) { \
      asm volatile( \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n" \
          "wgmma.mma_async.sync.aligned.m64n64k16.f32." name "." name " {" \
          "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25," \
          "%26,%27,%28,%29,%30,%31" \
          "}, %32, %33, p, 1, 1, 0, 0;\n}\n" \
          : DLFS_SUM32(0) \
          : "l"(a), "l"(b), "r"(accumulate)); \
    } \
  };
DLFS_PRODUCT_64(bf16, "bf16")
DLFS_PRODUCT_64(f16, "f16")
#undef DLFS_PRODUCT_64

#define DLFS_PRODUCT_128(T, name)                                                           \
  template <>                                                                                     \
  struct Product<T, 128> {                                                                        \
    static __device__ __forceinline__ void add(float (&sums)[64], uint64_t a, uint64_t b, int32_t accumulate) { \
      asm volatile( \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n" \
          "wgmma.mma_async.sync.aligned.m64n128k16.f32." name "." name " {" \
          "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25," \
          "%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49," \
          "%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63" \
          "}, %64, %65, p, 1, 1, 0, 0;\n}\n" \
          : DLFS_SUM32(0), DLFS_SUM32(32) \
          : "l"(a), "l"(b), "r"(accumulate)); \
    } \
  };
DLFS_PRODUCT_128(bf16, "bf16")
DLFS_PRODUCT_128(f16, "f16")
#undef DLFS_PRODUCT_128

#define DLFS_PRODUCT_208(T, name)                                                           \
  template <>                                                                                     \
  struct Product<T, 208> {                                                                        \
    static __device__ __forceinline__ void add(float (&sums)[104], uint64_t a, uint64_t b, int32_t accumulate) { \
      asm volatile( \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %106, 0;\n" \
          "wgmma.mma_async.sync.aligned.m64n208k16.f32." name "." name " {" \
          "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25," \
          "%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49," \
          "%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73," \
          "%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97," \
          "%98,%99,%100,%101,%102,%103" \
          "}, %104, %105, p, 1, 1, 0, 0;\n}\n" \
          : DLFS_SUM32(0), DLFS_SUM32(32), DLFS_SUM32(64), DLFS_SUM8(96) \
          : "l"(a), "l"(b), "r"(accumulate)); \
    } \
  };
DLFS_PRODUCT_208(bf16, "bf16")
DLFS_PRODUCT_208(f16, "f16")
#undef DLFS_PRODUCT_208

#define DLFS_PRODUCT_256(T, name)                                                           \
  template <>                                                                                     \
  struct Product<T, 256> {                                                                        \
    static __device__ __forceinline__ void add(float (&sums)[128], uint64_t a, uint64_t b, int32_t accumulate) { \
      asm volatile( \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n" \
          "wgmma.mma_async.sync.aligned.m64n256k16.f32." name "." name " {" \
          "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25," \
          "%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49," \
          "%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73," \
          "%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97," \
          "%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116," \
          "%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127" \
          "}, %128, %129, p, 1, 1, 0, 0;\n}\n" \
          : DLFS_SUM32(0), DLFS_SUM32(32), DLFS_SUM32(64), DLFS_SUM32(96) \
          : "l"(a), "l"(b), "r"(accumulate)); \
    } \
  };
DLFS_PRODUCT_256(bf16, "bf16")
DLFS_PRODUCT_256(f16, "f16")
#undef DLFS_PRODUCT_256

#undef DLFS_SUM8
#undef DLFS_SUM16
#undef DLFS_SUM32

#endif

}  // namespace sm90
}  // namespace dlfs
