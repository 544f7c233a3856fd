// Hopper's asynchronous instructions (compute capability 9.0, sm_90a) as inline functions: barriers in shared memory,
// tensor memory accesses (TMA) and matrix products of a warpgroup (wgmma). PTX ISA 8, chapters 9.7.9 and 9.7.15.
#pragma once

#include <cuda.h>

#include "cuda/quantized.cuh"

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

// Arrives at such a barrier without waiting.
__device__ __forceinline__ void barrier_arrive_named(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
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

__device__ __forceinline__ void load_box(void* to, const CUtensorMap* map, uint64_t* barrier, int32_t x, int32_t y,
                                         int32_t z, int32_t u, int32_t v) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(u), "r"(v)
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

// Describes a tile of rows of 128 bytes, in groups of eight rows, swizzled by 128 bytes.
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

// sums (64, N) = a (64, D) b (N, D)^T + sums, or without the sums where accumulate is 0, of rows of D values in 32 bytes: one
// instruction of a whole warpgroup. Sums are fp32, of Int8 int32; those of E4m3 keep about 14 bits. A thread of warp w and
// lane l holds, for each group j of eight columns, the rows 16 w + l / 4 (values 4 j and 4 j + 1) and 8 further down (4 j + 2
// and 4 j + 3), in columns 8 j + 2 (l % 4) and the next.
template <class T, int N>
struct Product;

#define DLFS_SUM8(kind, i)                                                                                     \
  kind(sums[i]), kind(sums[i + 1]), kind(sums[i + 2]), kind(sums[i + 3]), kind(sums[i + 4]), kind(sums[i + 5]), \
      kind(sums[i + 6]), kind(sums[i + 7])
#define DLFS_SUM16(kind, i) DLFS_SUM8(kind, i), DLFS_SUM8(kind, i + 8)
#define DLFS_SUM32(kind, i) DLFS_SUM16(kind, i), DLFS_SUM16(kind, i + 16)
#define DLFS_SUMS_64(kind) DLFS_SUM32(kind, 0)
#define DLFS_SUMS_128(kind) DLFS_SUM32(kind, 0), DLFS_SUM32(kind, 32)
#define DLFS_SUMS_208(kind) DLFS_SUM32(kind, 0), DLFS_SUM32(kind, 32), DLFS_SUM32(kind, 64), DLFS_SUM8(kind, 96)
#define DLFS_SUMS_256(kind) DLFS_SUM32(kind, 0), DLFS_SUM32(kind, 32), DLFS_SUM32(kind, 64), DLFS_SUM32(kind, 96)

// a_text, b_text, accumulate_text: these operands' numbers, after the sums'; tail: what follows them in the instruction.
#define DLFS_PRODUCT(T, N, kind, types, registers, a_text, b_text, accumulate_text, tail)                          \
  template <>                                                                                                     \
  struct Product<T, N> {                                                                                          \
    static __device__ __forceinline__ void add(SumOf<T> (&sums)[N / 2], uint64_t a, uint64_t b, int32_t accumulate) { \
      asm volatile(                                                                                               \
          "{\n.reg .pred p;\nsetp.ne.b32 p, " accumulate_text ", 0;\n"                                            \
          "wgmma.mma_async.sync.aligned.m64n" #N types " {" registers "}, " a_text ", " b_text ", p" tail ";\n}\n" \
          : DLFS_SUMS_##N(kind)                                                                                   \
          : "l"(a), "l"(b), "r"(accumulate));                                                                     \
    }                                                                                                             \
  };
#define DLFS_PRODUCTS(N, registers, a, b, accumulate)                                                       \
  DLFS_PRODUCT(bf16, N, "+f", "k16.f32.bf16.bf16", registers, a, b, accumulate, ", 1, 1, 0, 0")             \
  DLFS_PRODUCT(f16, N, "+f", "k16.f32.f16.f16", registers, a, b, accumulate, ", 1, 1, 0, 0")                \
  DLFS_PRODUCT(E4m3, N, "+f", "k32.f32.e4m3.e4m3", registers, a, b, accumulate, ", 1, 1")                   \
  DLFS_PRODUCT(Int8, N, "+r", "k32.s32.s8.s8", registers, a, b, accumulate, "")

#define DLFS_REGISTERS_64 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
  "%27,%28,%29,%30,%31"
#define DLFS_REGISTERS_128 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
  "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50," \
  "%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define DLFS_REGISTERS_208 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
  "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50," \
  "%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74," \
  "%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98," \
  "%99,%100,%101,%102,%103"
#define DLFS_REGISTERS_256 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
  "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50," \
  "%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74," \
  "%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98," \
  "%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118," \
  "%119,%120,%121,%122,%123,%124,%125,%126,%127"

DLFS_PRODUCTS(64, DLFS_REGISTERS_64, "%32", "%33", "%34")
DLFS_PRODUCTS(128, DLFS_REGISTERS_128, "%64", "%65", "%66")
DLFS_PRODUCTS(208, DLFS_REGISTERS_208, "%104", "%105", "%106")
DLFS_PRODUCTS(256, DLFS_REGISTERS_256, "%128", "%129", "%130")

#undef DLFS_PRODUCTS
#undef DLFS_PRODUCT
#undef DLFS_REGISTERS_64
#undef DLFS_REGISTERS_128
#undef DLFS_REGISTERS_208
#undef DLFS_REGISTERS_256
#undef DLFS_SUMS_64
#undef DLFS_SUMS_128
#undef DLFS_SUMS_208
#undef DLFS_SUMS_256
#undef DLFS_SUM8
#undef DLFS_SUM16
#undef DLFS_SUM32

#endif

}  // namespace sm90
}  // namespace dlfs
