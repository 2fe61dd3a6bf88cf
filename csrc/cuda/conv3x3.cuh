// The portable 3x3 convolution (sm_80 and later): mma.sync, ldmatrix, cp.async, 46.5 KiB of shared memory.
//
// A block of 128 threads computes a tile of 8 x 16 pixels x 64 output channels. The halo tile of 10 x 18 pixels x 128
// bytes of channels is brought to shared memory once for each 128 bytes of input channels; weights stream through two
// buffers in steps of three taps (one kx) x 64 bytes of input channels. Three blocks share an SM of an A100 (of 164
// KiB), two one of 100 KiB; while one waits for its pixels, or writes its tile, the others multiply.
//
// Counted for 64 -> 64 in 16 bits, a pixel of the output:
//   L2 bytes        weights 9 * 8192 / 128 = 576, halo tile 180 * 128 / 128 = 180, y 128 (+ 128 for a residual): 884
//   shared clocks   ldmatrix 12 * 4 clocks * 4 warps * 12 half steps / 128 = 18, filling 5.9, staging the sums and
//                   reading them 2 + 4: 30
//   mma clocks      36864 / 1024 multiply-adds a clock and SM = 36 (A100; 72 on sm_86 and sm_89 or more)
// A100: mma is the bound, 36 clocks a pixel; 884 bytes in 36 clocks are 24.6 bytes a clock and SM of the 47 that L2
// gives. What is lost is the start of each block and its epilogue where fewer than three blocks overlap, ~10 %, and
// barriers, ~5 %: predicted 80 to 85 % of peak. On an H100 mma.sync itself reaches about 62 % of wgmma's rate.
#pragma once

#include "conv3x3_epilogue.cuh"

namespace dblr {

constexpr int kConvShared = kHaloBytes + 2 * kStepBytes;  // 47616 bytes; the epilogue reuses them
static_assert(kEpilogueFloats * 4 <= kConvShared);

// A chunk's pixels with one pixel around the tile: by the copy engine of the SM when they are taken as they are.
template <class E>
__device__ __forceinline__ void load_halo(const ConvParams& p, const ConvTile& tile, int chunk, unsigned char* halo) {
  const Source& source = p.source;
  const int slot = threadIdx.x % 8;
  const Index channel = (chunk * 8 + slot) * kPerVector<E>;
  const bool inside = channel < source.x.c;
  const E* const picture = static_cast<const E*>(source.x.data) + tile.n * source.x.h * source.x.w * source.x.c;
  // Whether pixel q of the halo tile is in the picture, and where.
  const auto find = [&](int q, const E*& from) {
    const Index y = tile.y0 - 1 + q / kHaloColumns, x = tile.x0 - 1 + q % kHaloColumns;
    const bool valid = inside && y >= 0 && y < source.x.h && x >= 0 && x < source.x.w;
    from = valid ? picture + (y * source.x.w + x) * source.x.c + channel : static_cast<const E*>(source.x.data);
    return valid;
  };
  constexpr int kStride = kConvThreads / 8;  // pixels at a time
  if (!source.scale) {
#pragma unroll 4
    for (int q = threadIdx.x / 8; q < kHaloPixels; q += kStride) {
      const E* from;
      const bool valid = find(q, from);
      copy_async(shared_address(halo) + pixel_offset(q, slot), from, valid);
    }
    return;
  }
  constexpr int V = kPerVector<E>, kBatch = 4;
  float scale[V], shift[V];
#pragma unroll
  for (int k = 0; k < V; k++) {
    scale[k] = inside ? source.scale[channel + k] : 0.0f;
    shift[k] = inside ? source.shift[channel + k] : 0.0f;
  }
#pragma unroll 1
  for (int first = threadIdx.x / 8; first < kHaloPixels; first += kBatch * kStride) {
    Vector16 v[kBatch];
    bool valid[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; b++) {
      const E* from;
      valid[b] = first + b * kStride < kHaloPixels && find(first + b * kStride, from);
      if (valid[b]) v[b] = *reinterpret_cast<const Vector16*>(from);
    }
#pragma unroll
    for (int b = 0; b < kBatch; b++) {
      const int q = first + b * kStride;
      if (q >= kHaloPixels) continue;
      Vector16 normalised{};
      if (valid[b]) {
        float x[V];
        widen<E>(v[b], x);
#pragma unroll
        for (int k = 0; k < V; k++) {
          x[k] = fmaf(x[k], scale[k], shift[k]);
          if (source.relu) x[k] = rectify(x[k]);
        }
        normalised = narrow<E>(x);
      }
      *reinterpret_cast<Vector16*>(halo + pixel_offset(q, slot)) = normalised;
    }
  }
}

// The weights of a step: rows [ky][out] of 64 bytes. step = half * 3 + kx.
template <class E>
__device__ __forceinline__ void load_weights(const ConvParams& p, const ConvTile& tile, int step, unsigned char* to) {
  constexpr int kRowBytes = kChunk * static_cast<int>(sizeof(E)), kHalves = kRowBytes / 64;  // of a packed row
  const int half = step / 3, kx = step % 3;
  const int slot = threadIdx.x % 4, first = threadIdx.x / 4;
  const Index chunk = tile.chunk * p.in_chunks + half / kHalves;
  const unsigned char* const from = static_cast<const unsigned char*>(p.weights) +
                                    (chunk * 9 + kx) * (kChunk * kRowBytes) + half % kHalves * 64 + slot * 16;
#pragma unroll
  for (int i = 0; i < 3 * kChunk; i += kConvThreads / 4) {
    const int ky = i / kChunk, row = first + i % kChunk;
    copy_async(shared_address(to) + ky * kTapBytes + weight_offset(row, slot),
               from + (ky * 3 * kChunk + row) * kRowBytes, true);
  }
}

// E: elements of maps and weights. Products: TensorSums<E>, or ExactSums with float.
// registers: 168, spills: 0 (sm_80)
template <class E, class SumsOfTile>
__global__ void __launch_bounds__(kConvThreads, 3) conv3x3_kernel(const __grid_constant__ ConvParams p) {
  const ConvTile tile(p);
  unsigned char* const halo = dynamic_shared();
  unsigned char* const ring = halo + kHaloBytes;
  const int steps = p.halves * 3;
  SumsOfTile sums;

  load_weights<E>(p, tile, 0, ring);
  copy_async_commit();
#pragma unroll 1
  for (int half = 0; half < p.halves; half++) {
    if (half % 2 == 0) {
      if (half > 0) sync_threads();  // everyone has read the pixels before
      load_halo<E>(p, tile, half / 2, halo);
      copy_async_commit();
    }
#pragma unroll
    for (int kx = 0; kx < 3; kx++) {
      const int step = half * 3 + kx;
      copy_async_wait<0>();
      sync_threads();  // this step's weights are everyone's; everyone has read those of the step before
      if (step + 1 < steps) load_weights<E>(p, tile, step + 1, ring + (step + 1) % 2 * kStepBytes);
      copy_async_commit();
      sums.add(halo, ring + step % 2 * kStepBytes, kx, half % 2);
    }
  }

  sync_threads();  // everyone has read pixels and weights; their memory is free
  float* const staged = reinterpret_cast<float*>(halo);
  sums.stage(staged);
  sync_threads();
  const ConvEpilogue<E> epilogue(p, tile, staged);
  if (p.epilogue.sums == Sums::statistics) epilogue.statistics();
  epilogue.values();
  if (p.epilogue.taps) epilogue.tap_planes();
}

}  // namespace dblr
