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

// ---- partial sums, merged in double: a block has 8 channels and 32 threads for each ----

constexpr int kMergeChannels = 8, kMergeSlots = kNormThreads / kMergeChannels;

// The sum of the 32 threads' values of a channel, in their order; all of them receive it.
__device__ __forceinline__ double sum_slots(double v) {
  double* const memory = reinterpret_cast<double*>(dynamic_shared());
  memory[threadIdx.x] = v;
  sync_threads();
  double sum = 0.0;
  for (int slot = 0; slot < kMergeSlots; slot++) sum += memory[slot * kMergeChannels + threadIdx.x % kMergeChannels];
  sync_threads();
  return sum;
}

}  // namespace dblr
