// How kernels that work by the pixel share maps among threads, and how partial sums are merged.
#pragma once

#include "pack.cuh"

namespace dblr {

constexpr int kNormThreads = 256;
constexpr int kSlabVectors = 32;   // vectors of channels that a block takes (grid y)
constexpr int kBlockPixels = 128;  // pixels that a block takes (grid x)

// A thread's share of a block's work: one vector of channels, and every lanes-th pixel from `lane` on.
template <class E> struct Share {
  static constexpr int V = kPerVector<E>;
  int vectors, lanes, lane, local;  // local: first channel within the slab
  Index channel;
  bool works;

  __device__ __forceinline__ explicit Share(Index c) {
    const Index first = static_cast<Index>(blockIdx.y) * kSlabVectors, left = c / V - first;
    const int thread = threadIdx.x;
    vectors = left < kSlabVectors ? static_cast<int>(left) : kSlabVectors;
    lanes = kNormThreads / vectors;
    lane = thread / vectors;
    local = thread % vectors * V;
    channel = first * V + local;
    works = lane < lanes;
  }

  // This thread's channels of a vector that is aligned to 16 bytes.
  __device__ __forceinline__ void load(const float* from, float (&v)[V]) const {
#pragma unroll
    for (int k = 0; k < V; k += 4) {
      float four[4] = {};
      if (works) widen<float>(*reinterpret_cast<const Vector16*>(from + channel + k), four);
#pragma unroll
      for (int i = 0; i < 4; i++) v[k + i] = four[i];
    }
  }
};

constexpr int kBatch = 4;  // pixels whose vectors a thread fetches before it works on the first

template <class E> __device__ __forceinline__ const Vector16& vector_at(const void* map, Index at) {
  return *reinterpret_cast<const Vector16*>(static_cast<const E*>(map) + at);
}

template <class E> __device__ __forceinline__ void load_vector(const void* map, Index at, float (&v)[kPerVector<E>]) {
  widen<E>(vector_at<E>(map, at), v);
}

template <class E>
__device__ __forceinline__ void store_vector(void* map, Index at, const float (&v)[kPerVector<E>]) {
  *reinterpret_cast<Vector16*>(static_cast<E*>(map) + at) = narrow<E>(v);
}

__device__ __forceinline__ Index quotient(Index a, Index b) {  // the long division is slow, and rarely needed
  if ((a | b) >> 32) return a / b;
  return static_cast<std::uint32_t>(a) / static_cast<std::uint32_t>(b);
}

// ---- partial sums, merged in double: a block has 4 columns (channels) and 128 threads for each ----

// These merges are all latency: so many threads that 512 rows are one batch of loads for each of them, few columns a
// block so that several multiprocessors share the work, and few instructions, for they come cold.
constexpr int kMergeThreads = 512, kMergeChannels = 4, kMergeSlots = kMergeThreads / kMergeChannels;
constexpr int kMergeBatch = 4;  // rows that a thread fetches before it adds the first

// The same order of additions in all lanes, so that they get the same bits.
__device__ __forceinline__ double sum_lanes(double v) {
#pragma unroll
  for (int mask = kMergeChannels; mask < 32; mask *= 2) v += shuffle_xor(v, mask);
  return v;
}

// The sums of the 128 threads' values of a column, in a fixed order: within warps, then of the warps' sums. Threads of
// the first warp receive those of their column. Shared: count doubles for each warp and column. Once in a kernel.
template <int count> __device__ __forceinline__ void sum_slots(double (&v)[count]) {
  constexpr int kSums = kMergeThreads / 32 * kMergeChannels;
  double* const memory = reinterpret_cast<double*>(dynamic_shared());
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < count; i++) {
    v[i] = sum_lanes(v[i]);
    if (lane < kMergeChannels) memory[i * kSums + warp * kMergeChannels + lane] = v[i];
  }
  sync_threads();
  if (warp > 0) return;
#pragma unroll
  for (int i = 0; i < count; i++) {
    v[i] = 0.0;
#pragma unroll
    for (int k = 0; k < kSums; k += 32) v[i] += memory[i * kSums + k + lane];
    v[i] = sum_lanes(v[i]);
  }
}
constexpr int merge_shared(int count) { return kMergeThreads / 32 * kMergeChannels * count * 8; }

// each(row, first, second) for this thread's rows of partial[row][2][c]; what is not there or not wanted is 0.
template <class Each>
__device__ __forceinline__ void for_rows(const float* partial, Index rows, Index c, bool both, const Each& each) {
  const Index channel = static_cast<Index>(blockIdx.x) * kMergeChannels + threadIdx.x % kMergeChannels;
  const unsigned end = channel < c ? static_cast<unsigned>(rows) : 0;  // less than 2^31
#pragma unroll 1
  for (unsigned row = threadIdx.x / kMergeChannels; row < end; row += kMergeBatch * kMergeSlots) {
    float first[kMergeBatch] = {}, second[kMergeBatch] = {};
#pragma unroll
    for (unsigned b = 0; b < kMergeBatch; b++) {
      const unsigned r = row + b * kMergeSlots;
      if (r >= end) continue;
      const float* const from = partial + static_cast<Index>(r) * 2 * c + channel;
      first[b] = from[0];
      if (both) second[b] = from[c];
    }
#pragma unroll
    for (unsigned b = 0; b < kMergeBatch; b++) each(row + b * kMergeSlots, first[b], second[b]);
  }
}

}  // namespace dblr
