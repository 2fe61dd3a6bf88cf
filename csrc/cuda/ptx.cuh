// Every PTX instruction that the kernels use, behind a named function, with its emulated twin beside it.
//
// On a GPU a function here is one instruction (or one fixed sequence) of the PTX manual, whose section is named.
// With DBLR_EMULATED it calls its twin in csrc/emulator, which follows the manual's definition. Kernels hold no
// asm of their own, so what the emulator runs is what a GPU runs.
#pragma once

#include "element.cuh"

#ifdef DBLR_EMULATED
#include "../emulator/instructions.h"
#else
#include <cuda.h>
#endif

namespace dblr {

// Address in the shared window of the block (or, with map_shared, of another block of the cluster).
using SharedAddress = std::uint32_t;

#ifdef DBLR_EMULATED
using TensorMap = emulated::TensorMap;
#define DBLR_PTX(device_code, emulated_code) emulated_code
#else
using TensorMap = CUtensorMap;
#define DBLR_PTX(device_code, emulated_code) device_code
#endif

template <class E> constexpr bool kIsF16 = false;
template <> constexpr bool kIsF16<F16> = true;

// ---- shared memory ----

// The block's dynamic shared memory, aligned to 1024 bytes (launches ask for what they need, at most 227 KiB).
__device__ __forceinline__ unsigned char* dynamic_shared() {
#ifdef DBLR_EMULATED
  return emulated::dynamic_shared();
#else
  extern __shared__ __align__(1024) unsigned char memory[];
  return memory;
#endif
}

__device__ __forceinline__ SharedAddress shared_address(const void* p) {
  return DBLR_PTX(static_cast<SharedAddress>(__cvta_generic_to_shared(p)), emulated::shared_address(p));
}

// ---- threads of a block (9.7.13 of the PTX manual) ----

__device__ __forceinline__ void sync_threads() { DBLR_PTX(__syncthreads(), emulated::sync_threads()); }

// Barrier `id` (1 to 15) among `threads` threads, a multiple of 32.
__device__ __forceinline__ void sync_some(int id, int threads) {
  DBLR_PTX(asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"), emulated::sync_some(id, threads));
}

__device__ __forceinline__ void sync_warp() { DBLR_PTX(__syncwarp(), emulated::sync_warp()); }

__device__ __forceinline__ float shuffle_xor(float v, int mask) {
  return DBLR_PTX(__shfl_xor_sync(0xffffffffu, v, mask),
                  emulated::float_of(emulated::shuffle_xor(emulated::bits_of(v), mask)));
}

__device__ __forceinline__ double shuffle_xor(double v, int mask) {  // two instructions, a half each
  return DBLR_PTX(__shfl_xor_sync(0xffffffffu, v, mask), emulated::shuffle_xor(v, mask));
}

__device__ __forceinline__ std::uint32_t shuffle(std::uint32_t v, int lane) {
  return DBLR_PTX(__shfl_sync(0xffffffffu, v, lane), emulated::shuffle(v, lane));
}

// ---- cp.async (9.7.9.25): global to shared without registers ----

// Sixteen bytes; zeros where `valid` is false (nothing is read then). Both addresses are multiples of 16.
__device__ __forceinline__ void copy_async(SharedAddress to, const void* from, bool valid) {
  DBLR_PTX(asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                        "r"(valid ? 16 : 0) : "memory"),
           emulated::copy_async(to, from, valid));
}

__device__ __forceinline__ void copy_async_commit() {
  DBLR_PTX(asm volatile("cp.async.commit_group;" ::: "memory"), emulated::copy_async_commit());
}

// Waits until at most `pending` of this thread's groups are under way; others see them after a barrier.
template <int pending> __device__ __forceinline__ void copy_async_wait() {
  DBLR_PTX(asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory"), emulated::copy_async_wait(pending));
}

// ---- shared memory that the copy engine writes: loads that the emulator sees ----

// Sixteen bytes at a multiple of 16.
__device__ __forceinline__ void load_vector(std::uint32_t (&v)[4], SharedAddress from) {
  DBLR_PTX(asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                        : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(from) : "memory"),
           emulated::load_vector(v, from));
}

// ---- ldmatrix, stmatrix (9.7.14.5): four 8x8 matrices of 16-bit elements; lane l names row l % 8 of matrix l / 8 ----

__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], SharedAddress row) {
  DBLR_PTX(asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory"),
           emulated::load_matrices(r, row, false));
}

__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&r)[4], SharedAddress row) {
  DBLR_PTX(asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory"),
           emulated::load_matrices(r, row, true));
}

// sm_90 and later.
__device__ __forceinline__ void store_matrices_transposed(SharedAddress row, const std::uint32_t (&r)[4]) {
  DBLR_PTX(asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r[0]),
                        "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory"),
           emulated::store_matrices(row, r, true));
}

// ---- mma.sync (9.7.14.5): d += a b, float32 sums ----
// Lane l, g = l / 4, t = l % 4. a[0]: row g, columns 2t, 2t+1; a[1]: row g+8; a[2], a[3]: the same, columns + 8.
// b[0]: rows 2t, 2t+1 of column g; b[1]: rows + 8. d[0], d[1]: row g, columns 2t, 2t+1; d[2], d[3]: row g+8.

template <class E>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                            std::uint32_t b1) {
#ifdef DBLR_EMULATED
  emulated::mma_16x8x16<E>(d, a, b0, b1);
#else
#define DBLR_MMA(type)                                                                            \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                               \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                               \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                     \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
  if constexpr (kIsF16<E>) {
    DBLR_MMA("f16");
  } else {
    DBLR_MMA("bf16");
  }
#undef DBLR_MMA
#endif
}

// TF32. a[0]: row g, column t; a[1]: row g+8; a[2], a[3]: the same, column t+4. b0: row t of column g; b1: row t+4.
__device__ __forceinline__ void mma_16x8x8_tf32(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                                std::uint32_t b1) {
  DBLR_PTX(asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)),
           emulated::mma_16x8x8_tf32(d, a, b0, b1));
}

// A float rounded to TF32, to nearest with ties away from zero.
__device__ __forceinline__ std::uint32_t to_tf32(std::uint32_t v) {
#ifdef DBLR_EMULATED
  return emulated::to_tf32(v);
#else
  std::uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(__uint_as_float(v)));
  return r;
#endif
}

// ---- mbarrier (9.7.13.15), sm_90 ----

__device__ __forceinline__ void barrier_init(SharedAddress barrier, int arrivals) {
  DBLR_PTX(asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory"),
           emulated::barrier_init(barrier, arrivals));
}

// After barrier_init, before any thread or the copy engine uses the barriers (a block or cluster barrier follows).
__device__ __forceinline__ void fence_barrier_init() {
  DBLR_PTX(asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"), emulated::fence_barrier_init());
}

__device__ __forceinline__ void barrier_arrive(SharedAddress barrier) {
  DBLR_PTX(asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory"),
           emulated::barrier_arrive(barrier));
}

// Arrives at the same barrier of block `block` of the cluster.
__device__ __forceinline__ void barrier_arrive_in(SharedAddress barrier, int block) {
  DBLR_PTX(asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
                        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}" ::"r"(barrier), "r"(block)
                        : "memory"),
           emulated::barrier_arrive_in(barrier, block));
}

// Arrives, and tells the barrier to await `bytes` more from the copy engine.
__device__ __forceinline__ void barrier_arrive_expect(SharedAddress barrier, int bytes) {
  DBLR_PTX(asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory"),
           emulated::barrier_arrive_expect(barrier, bytes));
}

// Waits until the barrier's phase of this parity is complete: 0 for its first, then 1, 0, ... It acquires what the copy
// engine and the block's own threads wrote; a wider scope would empty the L1 cache at every wait.
__device__ __forceinline__ void barrier_wait(SharedAddress barrier, int parity) {
  DBLR_PTX(asm volatile("{\n.reg .pred done;\nagain:\n"
                        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                        "@!done bra again;\n}" ::"r"(barrier), "r"(parity) : "memory"),
           emulated::barrier_wait(barrier, parity));
}

// Shared memory written by ordinary stores becomes visible to wgmma and the copy engine (then a barrier).
__device__ __forceinline__ void fence_proxy_async() {
  DBLR_PTX(asm volatile("fence.proxy.async.shared::cta;" ::: "memory"), emulated::fence_proxy_async());
}

// ---- clusters, sm_90 ----

__device__ __forceinline__ int cluster_rank() {
#ifdef DBLR_EMULATED
  return emulated::cluster_rank();
#else
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#endif
}

__device__ __forceinline__ void sync_cluster() {
  DBLR_PTX(asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory"),
           emulated::sync_cluster());
}

// ---- tensor copies (9.7.9.27), sm_90: one thread moves a box of a 4-D tensor, innermost coordinate first ----

__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
  DBLR_PTX(asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"), emulated::prefetch_map(map));
}

// What lies outside the tensor arrives as zeros and counts as bytes all the same.
__device__ __forceinline__ void load_box(SharedAddress to, const TensorMap& map, int c, int x, int y, int n,
                                         SharedAddress barrier) {
  DBLR_PTX(asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                        "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to), "l"(&map), "r"(c), "r"(x), "r"(y), "r"(n),
                        "r"(barrier) : "memory"),
           emulated::load_box(to, map, c, x, y, n, barrier, 0));
}

// The same into every block of the cluster whose bit is set in `blocks`, completing at each one's own barrier.
__device__ __forceinline__ void load_box_multicast(SharedAddress to, const TensorMap& map, int c, int x, int y, int n,
                                                   SharedAddress barrier, std::uint16_t blocks) {
  DBLR_PTX(asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                        ".multicast::cluster [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(to), "l"(&map), "r"(c),
                        "r"(x), "r"(y), "r"(n), "r"(barrier), "h"(blocks) : "memory"),
           emulated::load_box(to, map, c, x, y, n, barrier, blocks));
}

// What lies outside the tensor is not written.
__device__ __forceinline__ void store_box(const TensorMap& map, int c, int x, int y, int n, SharedAddress from) {
  DBLR_PTX(asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(
                            &map), "r"(c), "r"(x), "r"(y), "r"(n), "r"(from) : "memory"),
           emulated::store_box(map, c, x, y, n, from));
}

__device__ __forceinline__ void store_commit() {
  DBLR_PTX(asm volatile("cp.async.bulk.commit_group;" ::: "memory"), emulated::store_commit());
}

// Waits until at most `pending` groups still read their shared memory (it may be written again then).
template <int pending> __device__ __forceinline__ void store_wait_read() {
  DBLR_PTX(asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory"),
           emulated::store_wait(pending, true));
}

// Waits until at most `pending` groups are not yet written.
template <int pending> __device__ __forceinline__ void store_wait() {
  DBLR_PTX(asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory"),
           emulated::store_wait(pending, false));
}

// ---- registers of a warpgroup, sm_90a (wgmma itself is in ptx_wgmma.cuh) ----

template <int count> __device__ __forceinline__ void registers_up() {
  DBLR_PTX(asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count)), emulated::set_registers(count));
}
template <int count> __device__ __forceinline__ void registers_down() {
  DBLR_PTX(asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count)), emulated::set_registers(count));
}

}  // namespace dblr
