// Weights (out, in, 3, 3) of any type into the order in which the portable convolution reads them.
#pragma once

#include "kernels.h"
#include "ptx.cuh"

namespace dblr {

// Element `i` of an array of `kind`.
__device__ __forceinline__ float load_element(const void* from, Kind kind, Index i) {
  if (kind == Kind::f32) return static_cast<const float*>(from)[i];
  if (kind == Kind::f16) return widen(static_cast<const F16*>(from)[i]);
  return widen(static_cast<const BF16*>(from)[i]);
}

struct PackParams {
  const void* from;
  Kind from_kind;
  Index from_in;     // second dimension of `from`
  Index out, in;     // of the packed filter
  bool adjoint;
  Index in_chunks;
  Index vectors;     // of the packed filter
  void* to;
};

// One thread writes 16 bytes: packed[chunk of out][chunk of in][tap][out % 64][in % 64 ...].
// Floor: weights read and written once, 0.3 MB for 64 -> 64 in float32: launch time.
// registers: 24, spills: 0 (sm_80)
template <class E> __global__ void __launch_bounds__(128) pack_weights_kernel(const __grid_constant__ PackParams p) {
  const Index index = static_cast<Index>(blockIdx.x) * 128 + threadIdx.x;
  if (index >= p.vectors) return;
  constexpr int kRow = kChunk / kPerVector<E>;  // vectors of a row
  const int i0 = static_cast<int>(index % kRow) * kPerVector<E>;
  const int o = static_cast<int>(index / kRow % kChunk);
  const int tap = static_cast<int>(index / (kRow * kChunk) % 9);
  const Index chunk = index / (kRow * kChunk * 9);
  const Index out = chunk / p.in_chunks * kChunk + o, in = chunk % p.in_chunks * kChunk + i0;
  float v[kPerVector<E>];
#pragma unroll
  for (int k = 0; k < kPerVector<E>; k++) {
    const Index from = p.adjoint ? ((in + k) * p.from_in + out) * 9 + 8 - tap : (out * p.from_in + in + k) * 9 + tap;
    v[k] = out < p.out && in + k < p.in ? load_element(p.from, p.from_kind, from) : 0.0f;
  }
  static_cast<Vector16*>(p.to)[index] = narrow<E>(v);
}

}  // namespace dblr
