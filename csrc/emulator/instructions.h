// What csrc/cuda/ptx.cuh calls under emulation: each function is one PTX instruction, by the PTX manual's definition.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda_language.h"

namespace dblr {
struct F16;
struct BF16;
}  // namespace dblr

// In a namespace of its own: or a kernel's call of an instruction with a map would find both twins.
namespace emulated_types {

// What cuTensorMapEncodeTiled describes: a dense tensor, innermost dimension first, the 128-byte swizzle.
struct TensorMap {
  void* data;
  std::ptrdiff_t dims[4];
  int box[4];
  int element;  // bytes
};

}  // namespace emulated_types

namespace emulated {

using SharedAddress = std::uint32_t;

using emulated_types::TensorMap;

unsigned char* dynamic_shared();
SharedAddress shared_address(const void* p);

void sync_threads();
void sync_some(int id, int threads);
void sync_warp();
std::uint32_t shuffle_xor(std::uint32_t v, int mask);
double shuffle_xor(double v, int mask);
std::uint32_t shuffle(std::uint32_t v, int lane);

void copy_async(SharedAddress to, const void* from, bool valid);
void copy_async_commit();
void copy_async_wait(int pending);

void load_vector(std::uint32_t (&v)[4], SharedAddress from);
void load_matrices(std::uint32_t (&r)[4], SharedAddress row, bool transposed);
void store_matrices(SharedAddress row, const std::uint32_t (&r)[4], bool transposed);

void mma_16x8x16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1, bool f16);
void mma_16x8x8_tf32(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);

template <class E> constexpr bool kF16 = false;
template <> constexpr bool kF16<dblr::F16> = true;

template <class E>
void mma_16x8x16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  mma_16x8x16(d, a, b0, b1, kF16<E>);
}

void barrier_init(SharedAddress barrier, int arrivals);
void fence_barrier_init();
void barrier_arrive(SharedAddress barrier);
void barrier_arrive_in(SharedAddress barrier, int block);
void barrier_arrive_expect(SharedAddress barrier, int bytes);
void barrier_wait(SharedAddress barrier, int parity);
void fence_proxy_async();

int cluster_rank();
void sync_cluster();

void prefetch_map(const TensorMap& map);
void load_box(SharedAddress to, const TensorMap& map, int c, int x, int y, int n, SharedAddress barrier,
              std::uint16_t blocks);  // 0: into the own block
void store_box(const TensorMap& map, int c, int x, int y, int n, SharedAddress from);
void store_commit();
void store_wait(int pending, bool read_only);

void set_registers(int count);

void products_fence();
void products_commit();
void products_wait(int pending);
void products(float* d, const std::uint32_t* a, std::uint64_t b, int columns, bool f16);
void products(float* d, std::uint64_t a, std::uint64_t b, int columns, bool f16);  // both transposed

template <class E, int sums>
void products(float (&d)[sums], const std::uint32_t (&a)[4], std::uint64_t b, int columns) {
  static_assert(sums == 64 || sums == 128);
  products(&d[0], &a[0], b, columns, kF16<E>);
}

template <class E> void products(float* d, std::uint64_t a, std::uint64_t b, int columns) {
  products(d, a, b, columns, kF16<E>);
}

}  // namespace emulated
