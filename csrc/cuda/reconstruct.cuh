// The edges of L35, the convolution to one channel whose nine taps were contracted in L34's epilogue, and two small
// works by the pixel of its backward pass. All are bound by memory.
//
// Floors, bytes a pixel: sum_taps of four chunks 144 + 2; taps_backward 2 * 512 + 2 (256 channels of 16 bits);
// taps_gradient 512 + 2; channel_sums 2 a channel of 16 bits, relu_backward 6. Predicted 80 % of bandwidth or more,
// but for taps_backward and taps_gradient where 9 multiply-adds a channel and pixel, with conversions ~30
// instructions for each 16 bytes * 9, make 60 % likely.
#pragma once

#include "by_pixel.cuh"

namespace dblr {

struct SumTapsParams {
  const float* taps;  // [chunk][tap][n][h][w]
  Index chunks, n, h, w;
  const float* bias;
  void* y;
};

// One pixel a thread: nine reads a chunk, all independent.
// registers: 64, spills: 0 (sm_80)
template <class E>
__global__ void __launch_bounds__(kNormThreads) sum_taps_kernel(const __grid_constant__ SumTapsParams p) {
  const Index pixels = p.n * p.h * p.w;
  const Index pixel = static_cast<Index>(blockIdx.x) * kNormThreads + threadIdx.x;
  if (pixel >= pixels) return;
  const Index row = quotient(pixel, p.w), x = pixel - row * p.w, y = row - quotient(row, p.h) * p.h;
  bool inside[9];
#pragma unroll
  for (int tap = 0; tap < 9; tap++) {
    const Index v = y + tap / 3 - 1, u = x + tap % 3 - 1;
    inside[tap] = v >= 0 && v < p.h && u >= 0 && u < p.w;
  }
  float sum = 0.0f;
  for (Index chunk = 0; chunk < p.chunks; chunk++) {
    float v[9];
#pragma unroll
    for (int tap = 0; tap < 9; tap++) {
      const Index at = (chunk * 9 + tap) * pixels + pixel + (tap / 3 - 1) * p.w + tap % 3 - 1;
      v[tap] = inside[tap] ? p.taps[at] : 0.0f;
    }
    sum += ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])) + v[8];
  }
  static_cast<E*>(p.y)[pixel] = narrow<E>(sum + p.bias[0]);
}

struct TapsParams {
  const void* grad;  // (n, h, w)
  Kind grad_kind;
  const float* w3;  // (9, c)
  const void* map;  // h
  void* dh;
  float* partial;  // [block][9 c + 1]
  Index n, h, w, c;
};

// grad[p - tap] for all taps of a pixel, zero outside the picture.
__device__ __forceinline__ void load_around(const TapsParams& p, Index pixel, float (&g)[9]) {
  const Index row = quotient(pixel, p.w), x = pixel - row * p.w, y = row - quotient(row, p.h) * p.h;
#pragma unroll
  for (int tap = 0; tap < 9; tap++) {
    const Index v = y - (tap / 3 - 1), u = x - (tap % 3 - 1);
    const bool inside = v >= 0 && v < p.h && u >= 0 && u < p.w;
    g[tap] = inside ? load_element(p.grad, p.grad_kind, pixel - (tap / 3 - 1) * p.w - (tap % 3 - 1)) : 0.0f;
  }
}

// A thread keeps the weights of its vector of channels.
// registers: 144, spills: 0 (sm_80)
template <class E>
__global__ void __launch_bounds__(kNormThreads) taps_backward_kernel(const __grid_constant__ TapsParams p) {
  constexpr int V = kPerVector<E>;
  const Share<E> share(p.c);
  if (!share.works) return;
  float w3[9][V];
#pragma unroll
  for (int tap = 0; tap < 9; tap++) share.load(p.w3 + tap * p.c, w3[tap]);
  const Index pixels = p.n * p.h * p.w, first = static_cast<Index>(blockIdx.x) * kBlockPixels;
#pragma unroll 1
  for (int i = share.lane; i < kBlockPixels && first + i < pixels; i += share.lanes) {
    const Index at = (first + i) * p.c + share.channel;
    float h[V], g[9];
    load_vector<E>(p.map, at, h);
    load_around(p, first + i, g);
#pragma unroll
    for (int k = 0; k < V; k++) {
      float sum = 0.0f;
#pragma unroll
      for (int tap = 0; tap < 9; tap++) sum = fmaf(g[tap], w3[tap][k], sum);
      h[k] = h[k] > 0.0f ? sum : 0.0f;
    }
    store_vector<E>(p.dh, at, h);
  }
}

// Blocks x share the pixels in runs of kBlockPixels. Shared: [lane][channel of the slab], and a float a thread.
// registers: 144, spills: 0 (sm_80)
template <class E>
__global__ void __launch_bounds__(kNormThreads) taps_gradient_kernel(const __grid_constant__ TapsParams p) {
  constexpr int V = kPerVector<E>;
  const Share<E> share(p.c);
  float* const memory = reinterpret_cast<float*>(dynamic_shared());
  float sums[9][V] = {}, total = 0.0f;
  const Index pixels = p.n * p.h * p.w;
  if (share.works) {
#pragma unroll 1
    for (Index first = static_cast<Index>(blockIdx.x) * kBlockPixels; first < pixels;
         first += static_cast<Index>(gridDim.x) * kBlockPixels) {
#pragma unroll 1
      for (int i = share.lane; i < kBlockPixels && first + i < pixels; i += share.lanes) {
        float h[V], g[9];
        load_vector<E>(p.map, (first + i) * p.c + share.channel, h);
        load_around(p, first + i, g);
        total += g[4];
#pragma unroll
        for (int tap = 0; tap < 9; tap++) {
#pragma unroll
          for (int k = 0; k < V; k++) sums[tap][k] = fmaf(g[tap], h[k], sums[tap][k]);
        }
      }
    }
  }
  const int width = share.vectors * V, column = threadIdx.x;
  float* const to = p.partial + static_cast<Index>(blockIdx.x) * (9 * p.c + 1);
#pragma unroll
  for (int tap = 0; tap < 9; tap++) {
    if (share.works) {
#pragma unroll
      for (int k = 0; k < V; k++) memory[share.lane * width + share.local + k] = sums[tap][k];
    }
    sync_threads();
    if (column < width) {
      float sum = 0.0f;
      for (int lane = 0; lane < share.lanes; lane++) sum += memory[lane * width + column];
      to[tap * p.c + static_cast<Index>(blockIdx.y) * kSlabVectors * V + column] = sum;
    }
    sync_threads();
  }
  if (blockIdx.y > 0) return;
  if (share.works && share.local == 0) memory[share.lane] = total;
  sync_threads();
  if (column > 0) return;
  float sum = 0.0f;
  for (int lane = 0; lane < share.lanes; lane++) sum += memory[lane];
  to[9 * p.c] = sum;
}

struct AddPartialsParams {
  const float* partial;  // [block][size]
  Index blocks, size;
  float *dw3, *db3;      // (size - 1,), (1,)
};

// registers: 34, spills: 0 (sm_89)
__global__ void __launch_bounds__(kMergeThreads) add_partials_kernel(const __grid_constant__ AddPartialsParams p) {
  const Index index = static_cast<Index>(blockIdx.x) * kMergeChannels + threadIdx.x % kMergeChannels;
  const int slot = threadIdx.x / kMergeChannels;
  double sum[1] = {};
  for (Index b = slot; index < p.size && b < p.blocks; b += kMergeSlots) sum[0] += p.partial[b * p.size + index];
  sum_slots(sum);
  if (slot > 0 || index >= p.size) return;
  *(index < p.size - 1 ? p.dw3 + index : p.db3) = static_cast<float>(sum[0]);
}

struct ChannelSumsParams {
  const void* map;
  float* partial;
  Index h, w, c;
  int tiles_x, tiles_y;
};

// Block x: a tile of 8 x 16 pixels. Shared: [lane][channel of the slab].
// registers: 64, spills: 0 (sm_80)
template <class E>
__global__ void __launch_bounds__(kNormThreads) channel_sums_kernel(const __grid_constant__ ChannelSumsParams p) {
  constexpr int V = kPerVector<E>;
  const Share<E> share(p.c);
  float* const memory = reinterpret_cast<float*>(dynamic_shared());
  const unsigned tile = blockIdx.x, row = tile / p.tiles_x;
  const Index n = row / p.tiles_y, y0 = static_cast<Index>(row % p.tiles_y) * kTileRows,
              x0 = static_cast<Index>(tile % p.tiles_x) * kTileColumns;
  const int width = share.vectors * V;
  if (share.works) {
    float sum[V] = {};
    for (int i = share.lane; i < kTileRows * kTileColumns; i += share.lanes) {
      const Index y = y0 + i / kTileColumns, x = x0 + i % kTileColumns;
      if (y >= p.h || x >= p.w) continue;
      float v[V];
      load_vector<E>(p.map, ((n * p.h + y) * p.w + x) * p.c + share.channel, v);
#pragma unroll
      for (int k = 0; k < V; k++) sum[k] += v[k];
    }
#pragma unroll
    for (int k = 0; k < V; k++) memory[share.lane * width + share.local + k] = sum[k];
  }
  sync_threads();
  const int column = threadIdx.x;
  if (column >= width) return;
  float sum = 0.0f;
  for (int lane = 0; lane < share.lanes; lane++) sum += memory[lane * width + column];
  p.partial[static_cast<Index>(tile) * 2 * p.c + static_cast<Index>(blockIdx.y) * kSlabVectors * V + column] = sum;
}

struct ReluBackwardParams {
  const void *grad, *y;
  void* out;
  Index vectors;
};

// One vector a thread.
// registers: 32, spills: 0 (sm_80)
template <class E>
__global__ void __launch_bounds__(kNormThreads) relu_backward_kernel(const __grid_constant__ ReluBackwardParams p) {
  const Index index = static_cast<Index>(blockIdx.x) * kNormThreads + threadIdx.x;
  if (index >= p.vectors) return;
  constexpr int V = kPerVector<E>;
  float g[V], y[V];
  load_vector<E>(p.grad, index * V, g);
  load_vector<E>(p.y, index * V, y);
#pragma unroll
  for (int k = 0; k < V; k++) g[k] = y[k] > 0.0f ? g[k] : 0.0f;
  store_vector<E>(p.out, index * V, g);
}

}  // namespace dblr
