// What the Hopper convolutions share: the order of weights, the walk over a picture, the ring of pixel rows that the
// copy engine fills, and the way of a row of results to memory.
#pragma once

#include "pack.cuh"
#include "ptx_wgmma.cuh"

namespace dblr {
namespace sm90 {

constexpr int kColumns = 128;                      // pixels of a row that a block computes
constexpr int kPixel = 128;                        // bytes of a pixel's 64 channels: the width of the swizzle
constexpr int kRowPitch = 17 * 1024;               // a row with its edges, up to the next atom of the swizzle
constexpr int kRing = 8;                           // rows of the ring
constexpr int kTileBytes = kColumns * kPixel;      // a row of results
constexpr int kWarps = 8;                          // of a convolution's two warpgroups that multiply

// ---- weights: fragments of A (64 out x 16 in) in the order of use, a vector of 16 bytes for each thread ----
// Vector (((chunk of out * chunks of in + chunk of in) * 9 + tap) * 4 + k) * 128 + thread holds for channels
// 64 chunk + 16 warp + g (+ 8) and 64 chunk + 16 k + 2 t (+ 1, + 8, + 9) what mma_16x8x16 wants in a[0] to a[3].

struct PackParams90 {
  const void* from;  // (out, in, 3, 3), with adjoint (in, out, 3, 3)
  Kind kind;         // of its elements
  Vector16* to;
  unsigned vectors;
  Index out, in;
  bool adjoint;
};

// Floor: weights read and written once, 0.2-3 MB: the time of a launch.
// registers: 28, spills: 0 (sm_90a)
template <class E>
__global__ void __launch_bounds__(128) pack_weights_sm90_kernel(const __grid_constant__ PackParams90 p) {
  const unsigned vector = blockIdx.x * 128 + threadIdx.x;
  if (vector >= p.vectors) return;
  const int thread = threadIdx.x, k = static_cast<int>(vector / 128 % 4), tap = static_cast<int>(vector / 512 % 9);
  const unsigned chunks_in = static_cast<unsigned>(p.in) / 64, chunk = vector / 4608;
  const Index row = chunk / chunks_in * 64 + thread / 32 * 16 + thread % 32 / 4;
  const Index column = chunk % chunks_in * 64 + k * 16 + thread % 4 * 2;
  Vector16 v;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const Index o = row + i % 2 * 8, c = column + i / 2 * 8;
    const Index at = p.adjoint ? (c * p.out + o) * 9 + 8 - tap : (o * p.in + c) * 9 + tap;
    const Index next = at + (p.adjoint ? p.out * 9 : 9);
    v.word[i] = pack<E>(load_element(p.from, p.kind, at), load_element(p.from, p.kind, next));
  }
  p.to[vector] = v;
}

// ---- the walk: units (rows, or groups of rows) of all strips of all pictures in one line, cut into equal shares ----

struct Walk {
  int next, last;         // units
  int height, strips;     // units of a strip, strips of a picture
  int n = 0, x = 0;       // of the run: picture, first column
  int first = 0, count = 0;  // of the run: first unit of the strip, units

  // Moves on to the next run of units in one strip; false at the end of the share.
  __device__ __forceinline__ bool advance() {
    if (next == last) return false;
    const int strip = next / height;
    n = strip / strips;
    x = (strip - n * strips) * kColumns;
    first = next - strip * height;
    count = height - first < last - next ? height - first : last - next;
    next += count;
    return true;
  }
};

__device__ __forceinline__ Walk share_of(int units, int height, int strips, int block, int blocks) {
  const int least = units / blocks, more = units % blocks;
  const int next = least * block + (block < more ? block : more);
  return {next, next + least + (block < more ? 1 : 0), height, strips};
}

// ---- the ring: row s (counted from the block's first) lies in slot s % slots, full and empty by turns ----
// A row has `halo` pixels beside the block's columns on either side, and is free once `warps` warps have released it.
// In a cluster every block holds the same rows: block s % cluster fetches row s for all of them, once all are done with
// what was in its slot. The copy engine's zeros outside the picture are the convolution's padding.

template <int cluster, int warps = kWarps, int slots = kRing, int halo = 1> struct Ring {
  static constexpr int kBytes = (kColumns + 2 * halo) * kPixel;  // of a row, as the copy engine counts it
  static constexpr int kPitch = (kBytes + 1023) / 1024 * 1024;   // the same up to the next atom of the swizzle
  SharedAddress rows, full, empty;                               // `slots` slots, barriers, barriers

  __device__ __forceinline__ void init() const {
    for (int i = 0; i < slots; i++) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, warps * cluster);
    }
  }

  // Pixels x - halo to x + 127 + halo of row y, channels from c. By one thread, s rising.
  __device__ __forceinline__ void load(int s, const TensorMap& map, int c, int x, int y, int n, int rank) const {
    const int slot = s % slots, round = s / slots;
    const SharedAddress to = rows + slot * kPitch, ready = full + 8 * slot;
    if constexpr (cluster == 1) {
      if (round > 0) barrier_wait(empty + 8 * slot, (round - 1) & 1);
      barrier_arrive_expect(ready, kBytes);
      load_box(to, map, c, x - halo, y, n, ready);
    } else {
      // Each block tells its own barrier what to await; another's copy may complete there before it is told.
      if (round > 0) barrier_wait(ready, (round - 1) & 1);
      barrier_arrive_expect(ready, kBytes);
      if (s % cluster == rank) {
        if (round > 0) barrier_wait(empty + 8 * slot, (round - 1) & 1);
        load_box_multicast(to, map, c, x - halo, y, n, ready, (1 << cluster) - 1);
      }
    }
  }

  __device__ __forceinline__ void wait(int s) const { barrier_wait(full + 8 * (s % slots), s / slots & 1); }

  __device__ __forceinline__ SharedAddress row(int s) const { return rows + s % slots * kPitch; }

  // By every warp for every row, used or not, once all its lanes are done. The wait keeps it from counting twice in
  // one round.
  __device__ __forceinline__ void release(int s, int lane) const {
    if (lane != 0) return;
    wait(s);
    if constexpr (cluster == 1) {
      barrier_arrive(empty + 8 * (s % slots));
    } else {
      barrier_arrive_in(empty + 8 * (s % slots), s % cluster);
    }
  }
};

// All threads of the block, or of the cluster's blocks.
template <int cluster> __device__ __forceinline__ void sync_blocks() {
  if constexpr (cluster == 1) {
    sync_threads();
  } else {
    sync_warp();  // cluster barriers want whole warps
    sync_cluster();
  }
}

// ---- results: channels 16 warp + g (+ 8) of pixels 8 j + 2 t (+ 1) lie in sums[4 j + 0, 1] (+ 2, 3) ----

// y = act(sum * scale + shift) of a thread's two channels.
struct Affine {
  float scale0 = 1, shift0 = 0, scale1 = 1, shift1 = 0;
  bool relu;

  __device__ __forceinline__ Affine(const float* scale, const float* shift, bool relu_, int channel) : relu(relu_) {
    if (scale) scale0 = scale[channel], scale1 = scale[channel + 8];
    if (shift) shift0 = shift[channel], shift1 = shift[channel + 8];
  }
  __device__ __forceinline__ float first(float v) const {
    v = fmaf(v, scale0, shift0);
    return relu ? rectify(v) : v;
  }
  __device__ __forceinline__ float second(float v) const {
    v = fmaf(v, scale1, shift1);
    return relu ? rectify(v) : v;
  }
};

// Where this lane's row of four 8x8 matrices lies in a staging tile (128 pixels x 64 channels, swizzled): channels
// 16 warp to + 15 of pixels 0 to 15; pixels 8 j to 8 j + 15 lie 1024 j further. One matrix touches all 32 banks once.
__device__ __forceinline__ SharedAddress staged(SharedAddress tile, int warp, int lane) {
  const int pixel = lane / 16 * 8 + lane % 8, vector = 2 * warp + lane / 8 % 2;
  return tile + pixel * kPixel + (vector ^ lane % 8) * 16;
}

// The staged map's values at pixels 8 j to 8 j + 15.
template <class E> __device__ __forceinline__ void read_staged(float (&v)[8], SharedAddress at) {
  std::uint32_t r[4];
  load_matrices_transposed(r, at);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    v[2 * i] = widen(E{static_cast<std::uint16_t>(r[i] & 0xffff)});
    v[2 * i + 1] = widen(E{static_cast<std::uint16_t>(r[i] >> 16)});
  }
}

template <class E> __device__ __forceinline__ void add_staged(float (&v)[8], SharedAddress at) {
  float other[8];
  read_staged<E>(other, at);
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] += other[i];
}

template <class E> __device__ __forceinline__ void stage(const float (&v)[8], SharedAddress at) {
  const std::uint32_t r[4] = {pack<E>(v[0], v[1]), pack<E>(v[2], v[3]), pack<E>(v[4], v[5]), pack<E>(v[6], v[7])};
  store_matrices_transposed(at, r);
}

}  // namespace sm90
}  // namespace dblr
