// The gradient of 3x3 weights (sm_80 and later): dw[o][i][tap] = sum over pixels p of dy[p][o] * source[p + tap][i].
//
// A block of 256 threads holds the sums of 64 out x 64 in x 9 taps in registers (144 a thread) and walks over its
// share of the tiles: a halo tile of the source and a tile of dy, each pixel a row of 64 channels in shared memory,
// double buffered (77 KiB in 16 bits with 8 x 16 pixels, 86 KiB in 32 bits with 4 x 16). Then it writes its partial
// sums, and a second kernel adds those of all blocks in double, in their order.
//
// Counted for 64 x 64 in 16 bits, a pixel:
//   L2 bytes        halo tile 180 * 128 / 128 = 180, dy 128: 308
//   shared clocks   ldmatrix (30 + 16) * 4 clocks * 8 warps / 128 = 11.5, filling 2.4: 14 (a prologue 2.8 more)
//   mma clocks      36864 / 1024 multiply-adds a clock and SM = 36 (A100), ~29 on an H100 (62 % of wgmma's rate)
// mma is the bound. Partial sums: 147 KB a block, written once and read once: at 4 x 128 x 128 15 MB of L2 each way,
// 3 + 3 us beside 5 tiles * 128 pixels * 36 clocks = 16 us of an A100 (10 us of an H100): predicted 24 and 17 us.
#pragma once

#include "weight_gradient_sums.cuh"

namespace dblr {

struct WeightGradientParams {
  Source source;
  const void* dy;
  Index out;
  int tiles_x, tiles_y;
  unsigned tiles;
  float* partial;  // [block x][chunk of out][chunk of in][tap][64][64]
};

// Brings tiles to shared memory. A thread has one slot of channels and every kStride-th pixel.
template <class E> struct GradientLoader {
  using T = GradientTiles<E>;
  static constexpr int kStride = kGradientThreads / T::kSlots;

  const WeightGradientParams& p;
  const int slot = static_cast<int>(threadIdx.x) % T::kSlots, first = static_cast<int>(threadIdx.x) / T::kSlots;
  Index n = 0, y0 = 0, x0 = 0;

  __device__ __forceinline__ explicit GradientLoader(const WeightGradientParams& p) : p(p) {}

  __device__ __forceinline__ void find_tile(unsigned tile) {
    const unsigned row = tile / p.tiles_x;
    n = row / p.tiles_y;
    y0 = static_cast<Index>(row % p.tiles_y) * T::kRows;
    x0 = static_cast<Index>(tile % p.tiles_x) * kGradientColumns;
  }
  __device__ __forceinline__ Index source_channel() const {
    return static_cast<Index>(blockIdx.z) * kChunk + slot * kPerVector<E>;
  }
  __device__ __forceinline__ bool in_picture(Index y, Index x) const {
    return y >= 0 && y < p.source.x.h && x >= 0 && x < p.source.x.w;
  }

  // Starts the copies of a tile; zeros where there is no pixel or no channel.
  __device__ __forceinline__ void start(unsigned tile, unsigned char* buffer) {
    find_tile(tile);
    copy(p.source.x.data, p.source.x.c, source_channel(), T::kHaloPixels, kGradientHaloColumns, -1, buffer);
    copy(p.dy, p.out, static_cast<Index>(blockIdx.y) * kChunk + slot * kPerVector<E>, T::kPixels, kGradientColumns, 0,
         buffer + T::kHaloBytes);
  }

  // The prologue, in place, over those vectors that this thread copied itself. (So the copies need not go through
  // registers, and run ahead by a tile as they do without a prologue.)
  __device__ __forceinline__ void normalise(unsigned tile, unsigned char* buffer) {
    constexpr int V = kPerVector<E>;
    const Index channel = source_channel();
    if (channel >= p.source.x.c) return;
    find_tile(tile);
    float scale[V], shift[V];
#pragma unroll
    for (int k = 0; k < V; k++) {
      scale[k] = p.source.scale[channel + k];
      shift[k] = p.source.shift[channel + k];
    }
#pragma unroll 1
    for (int q = first; q < T::kHaloPixels; q += kStride) {
      const int row = q / kGradientHaloColumns, column = q % kGradientHaloColumns;
      if (!in_picture(y0 - 1 + row, x0 - 1 + column)) continue;  // zero it stays
      Vector16* const at = reinterpret_cast<Vector16*>(buffer + T::source_offset(row, column, slot));
      float x[V];
      widen<E>(*at, x);
#pragma unroll
      for (int k = 0; k < V; k++) {
        x[k] = fmaf(x[k], scale[k], shift[k]);
        if (p.source.relu) x[k] = rectify(x[k]);
      }
      *at = narrow<E>(x);
    }
  }

 private:
  __device__ __forceinline__ void copy(const void* map, Index c, Index channel, int pixels, int columns, int border,
                                       unsigned char* to) const {
    const SharedAddress base = shared_address(to);
#pragma unroll 2
    for (int q = first; q < pixels; q += kStride) {
      const int row = q / columns, column = q % columns;
      const Index y = y0 + border + row, x = x0 + border + column;
      const bool valid = channel < c && in_picture(y, x);
      const E* const from = static_cast<const E*>(map) +
                            (valid ? ((n * p.source.x.h + y) * p.source.x.w + x) * c + channel : 0);
      copy_async(base + q * T::kRowBytes + ((slot ^ T::swizzle(column)) << 4), from, valid);
    }
  }
};

// Block (x, y, z): tiles x, x + gridDim.x, ...; chunk y of out channels, chunk z of in channels.
// registers: 240, spills: 0 (sm_80)
template <class E, class SumsOfBlock>
__global__ void __launch_bounds__(kGradientThreads, 1) weight_gradient_kernel(
    const __grid_constant__ WeightGradientParams p) {
  using T = GradientTiles<E>;
  unsigned char* const buffers = dynamic_shared();
  GradientLoader<E> loader(p);
  SumsOfBlock sums;
  loader.start(blockIdx.x, buffers);
  copy_async_commit();
  int current = 0;
#pragma unroll 1
  for (unsigned tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    unsigned char* const buffer = buffers + current * T::kBufferBytes;
    current ^= 1;
    if (gridDim.x < p.tiles - tile) loader.start(tile + gridDim.x, buffers + current * T::kBufferBytes);
    copy_async_commit();
    copy_async_wait<1>();  // this tile is here, the next under way
    if (p.source.scale) loader.normalise(tile, buffer);
    sync_threads();
    sums.add(buffer);
    sync_threads();  // everyone has read it; the tile after the next may come
  }
  const Index chunk = (static_cast<Index>(blockIdx.x) * gridDim.y + blockIdx.y) * gridDim.z + blockIdx.z;
  sums.store(p.partial + chunk * kGradientSums);
}

struct ReduceGradientParams {
  const float* partial;
  Index partials, out, in, in_chunks, stride;  // stride: floats from one block's sums to the next one's
  float* dw;
};

// Block (x, y): 64 in channels of one out channel and tap (x = tap * 64 + out within the chunk), chunks y. Four
// groups of 64 threads add a quarter of the partial sums each.
// Floor: reading the partial sums, 147 KB each.
// registers: 40, spills: 0 (sm_80)
__global__ void __launch_bounds__(kGradientThreads) reduce_gradient_kernel(
    const __grid_constant__ ReduceGradientParams p) {
  double* const memory = reinterpret_cast<double*>(dynamic_shared());
  const int local = threadIdx.x % kChunk, group = threadIdx.x / kChunk;
  const int tap = blockIdx.x / kChunk, o = blockIdx.x % kChunk;
  const Index out = blockIdx.y / p.in_chunks * kChunk + o, in = blockIdx.y % p.in_chunks * kChunk + local;
  if (out >= p.out) return;  // the whole block
  const float* const from = p.partial + blockIdx.y * static_cast<Index>(kGradientSums) + blockIdx.x * kChunk + local;
  double sum = 0.0;
#pragma unroll 8
  for (Index i = group; i < p.partials; i += 4) sum += from[i * p.stride];
  memory[threadIdx.x] = sum;
  sync_threads();
  if (group > 0 || in >= p.in) return;
  sum = (memory[local] + memory[kChunk + local]) + (memory[2 * kChunk + local] + memory[3 * kChunk + local]);
  p.dw[(out * p.in + in) * 9 + tap] = static_cast<float>(sum);
}

}  // namespace dblr
