// L1 and L2 in one kernel (sm_80 and later): planes in, 64 (or any number of) channels out, L1's output stays on chip.
//
// A block makes 8 x 16 pixels x 64 channels. It brings 12 x 20 pixels of all planes to shared memory, [pixel][frame],
// and computes L1 on the 10 x 18 pixels that L2 reads: as a product whose K are words of 32 bits (two frames of 16
// bits, or one of 32) in the order tap, frame, fetched straight from the planes. The result takes the place of the
// portable convolution's halo tile; L2 is that convolution's main loop and epilogue from there on.
//
// Counted for 5 -> 48 -> 64 in 16 bits, a pixel of the output:
//   L2 bytes        weights 576, planes 240 * 20 / 128 = 38 (float32), y 128: 742 (DRAM: 20 + 128)
//   shared clocks   L2 as in conv3x3.cuh 24; L1: 12 m16 tiles * 4 steps * 2 halves * 4 words / 128 = 3, writing 2
//   mma clocks      L2 9 * 64 * 64 / 1024 = 36 (48 channels are padded to 64), L1 192 * 48 * 64 / 128 / 1024 = 4.5
// mma is the bound on an A100 (41 clocks); L1 does not overlap L2 within a block, so three blocks an SM hide what they
// can: predicted 75 % of that. Of a frame of 1280 x 720 it is 0.11 ms of ~13 ms on an A100.
#pragma once

#include <type_traits>

#include "conv3x3.cuh"
#include "pack.cuh"

namespace dblr {

constexpr int kPlaneColumns = kTileColumns + 4;                   // 20
constexpr int kPlanePixels = (kTileRows + 4) * kPlaneColumns;     // 240
constexpr int kMiddleTiles = 12;                                  // of 16 pixels: 180 and 12 more that are dropped

// Words of 32 bits of one pixel of the planes, and of one row of w1: 9 taps of them, filled up to a multiple of 8.
template <class E> __host__ __device__ constexpr int words_per_pixel(Index frames) {
  return static_cast<int>(sizeof(E) == 2 ? (frames + 1) / 2 : frames);
}
__host__ __device__ constexpr int padded_words(int words) { return (9 * words + 7) / 8 * 8; }

struct StemParams {
  ConvParams conv;  // of L2; source.x is L1's output, whose data is null
  Strided x;
  const std::uint32_t* w1;  // [eight channels][word][channel]
  const float* b1;
  int words;  // of a pixel
  void* middle_out;
};

// Planes into shared memory, zero outside the picture, and where each word of K lies relative to a pixel's first tap.
template <class E>
__device__ __forceinline__ void load_planes(const StemParams& p, const ConvTile& tile, std::uint32_t* planes,
                                            int* places) {
  const int words = p.words;
  for (int i = threadIdx.x; i < padded_words(words); i += kConvThreads) {
    const int tap = i / words, word = i - tap * words;
    places[i] = tap < 9 ? (tap / 3 * kPlaneColumns + tap % 3) * words + word : 0;  // w1 is zero there
  }
  const auto load = [&](Index at, int frame) {
    return frame < p.x.c ? load_element(p.x.data, p.x.kind, at + frame * p.x.sc) : 0.0f;
  };
  for (int word = 0; word < words; word++) {
#pragma unroll 2
    for (int q = threadIdx.x; q < kPlanePixels; q += kConvThreads) {
      const Index y = tile.y0 - 2 + q / kPlaneColumns, x = tile.x0 - 2 + q % kPlaneColumns;
      std::uint32_t v = 0;
      if (y >= 0 && y < p.x.h && x >= 0 && x < p.x.w) {
        const Index at = tile.n * p.x.sn + y * p.x.sh + x * p.x.sw;
        if constexpr (sizeof(E) == 2) {
          v = pack<E>(load(at, 2 * word), load(at, 2 * word + 1));
        } else {
          v = bits_of(load(at, word));
        }
      }
      planes[q * words + word] = v;
    }
  }
}

// L1 for one chunk of its channels (128 bytes of them), written as the convolution's halo tile: zero outside the
// picture, for L2 pads with zeros, and where there is no channel.
template <class E> struct Middle {
  static constexpr int kChannels = 128 / static_cast<int>(sizeof(E));  // of a chunk: 64 or 32
  static constexpr int kPart = kChannels / 2;                          // of it at a time; more would spill
  const StemParams& p;
  const ConvTile& tile;
  const std::uint32_t* const planes;
  const int* const places;
  unsigned char* const halo;

  __device__ __forceinline__ bool in_picture(int q) const {
    const Index y = tile.y0 - 1 + q / kHaloColumns, x = tile.x0 - 1 + q % kHaloColumns;
    return y >= 0 && y < p.x.h && x >= 0 && x < p.x.w;
  }
  // Where the words of a pixel's first tap begin.
  __device__ __forceinline__ int start(int q) const {
    return (q / kHaloColumns * kPlaneColumns + q % kHaloColumns) * p.words;
  }
  __device__ __forceinline__ float finish(float sum, Index channel, bool inside) const {
    return inside && channel < p.conv.source.x.c ? rectify(sum + p.b1[channel]) : 0.0f;
  }

  // With tensor cores: a warp has 3 x 16 pixels (M), and half of the chunk's channels (N) at a time.
  __device__ __forceinline__ void multiply(int chunk) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int words = padded_words(p.words), channels = static_cast<int>(p.conv.source.x.c);
    int begin[3][2];
#pragma unroll
    for (int m = 0; m < 3; m++) {
#pragma unroll
      for (int up = 0; up < 2; up++) {
        const int q = (warp * 3 + m) * 16 + up * 8 + g;
        begin[m][up] = start(q < kHaloPixels ? q : 0);
      }
    }
#pragma unroll 1
    for (int part = 0; part < 2; part++) {
      const int first = chunk * kChannels + part * kPart;
      float d[3][kPart / 8][4] = {};
      const std::uint32_t* w1 = p.w1 + (first / 8 * words + t) * 8 + g;
#pragma unroll 1
      for (int k = 0; k < words; k += 8) {
        const int low = places[k + t], high = places[k + t + 4];
        std::uint32_t a[3][4];
#pragma unroll
        for (int m = 0; m < 3; m++) {
#pragma unroll
          for (int up = 0; up < 2; up++) {
            a[m][up] = operand(planes[begin[m][up] + low]);
            a[m][up + 2] = operand(planes[begin[m][up] + high]);
          }
        }
#pragma unroll
        for (int j = 0; j < kPart / 8; j++) {
          if (first + j * 8 >= channels) continue;  // the same for all threads
          const std::uint32_t* const from = w1 + (j * words + k) * 8;
          const std::uint32_t b0 = operand(from[0]), b1 = operand(from[32]);
#pragma unroll
          for (int m = 0; m < 3; m++) {
            if constexpr (sizeof(E) == 2) {
              mma_16x8x16<E>(d[m][j], a[m], b0, b1);
            } else {
              mma_16x8x8_tf32(d[m][j], a[m], b0, b1);
            }
          }
        }
      }
#pragma unroll
      for (int m = 0; m < 3; m++) {
#pragma unroll
        for (int up = 0; up < 2; up++) {
          const int q = (warp * 3 + m) * 16 + up * 8 + g;
          if (q >= kHaloPixels) continue;
          const bool inside = in_picture(q);
#pragma unroll
          for (int j = 0; j < kPart / 8; j++) {
            const int local = part * kPart + j * 8 + t * 2;  // channel of the chunk
            const Index channel = chunk * kChannels + local;
            store_two(q, local, finish(d[m][j][up * 2], channel, inside),
                      finish(d[m][j][up * 2 + 1], channel + 1, inside));
          }
        }
      }
    }
  }

  // Exactly, of float: a thread takes one pixel and eight channels at a time.
  __device__ __forceinline__ void multiply_exactly(int chunk) const {
    const int words = padded_words(p.words), channels = static_cast<int>(p.conv.source.x.c);
#pragma unroll 1
    for (int item = threadIdx.x; item < kHaloPixels * (kChannels / 8); item += kConvThreads) {
      const int q = item % kHaloPixels, local = item / kHaloPixels * 8, first = chunk * kChannels + local;
      float d[8] = {};
      if (first < channels) {
        const std::uint32_t* const w1 = p.w1 + first / 8 * words * 8;
        const int begin = start(q);
#pragma unroll 1
        for (int k = 0; k < 9 * p.words; k++) {
          const float x = float_of(planes[begin + places[k]]);
#pragma unroll
          for (int i = 0; i < 8; i++) d[i] = fmaf(x, float_of(w1[k * 8 + i]), d[i]);
        }
      }
      const bool inside = in_picture(q);
#pragma unroll
      for (int i = 0; i < 8; i += 2) {
        store_two(q, local + i, finish(d[i], first + i, inside), finish(d[i + 1], first + i + 1, inside));
      }
    }
  }

  // The chunk's channels of the tile's own pixels, from the halo tile to the map.
  __device__ __forceinline__ void copy_out(int chunk) const {
    const Index c = p.conv.source.x.c;
    const int slot = threadIdx.x % 8;
    const Index channel = chunk * kChannels + slot * kPerVector<E>;
    if (channel >= c) return;
#pragma unroll 1
    for (int pixel = threadIdx.x / 8; pixel < kTilePixels; pixel += kConvThreads / 8) {
      const int row = pixel / kTileColumns, column = pixel % kTileColumns;
      if (row >= tile.rows || column >= tile.columns) continue;
      const Index at = (tile.n * p.x.h + tile.y0 + row) * p.x.w + tile.x0 + column;
      const int q = (row + 1) * kHaloColumns + column + 1;
      *reinterpret_cast<Vector16*>(static_cast<E*>(p.middle_out) + at * c + channel) =
          *reinterpret_cast<const Vector16*>(halo + pixel_offset(q, slot));
    }
  }

 private:
  __device__ __forceinline__ static std::uint32_t operand(std::uint32_t v) {
    if constexpr (sizeof(E) == 4) return to_tf32(v);
    return v;
  }
  __device__ __forceinline__ void store_two(int q, int local, float first, float second) const {
    const int byte = local * static_cast<int>(sizeof(E));
    unsigned char* const to = halo + pixel_offset(q, byte / 16) + byte % 16;
    if constexpr (sizeof(E) == 2) {
      *reinterpret_cast<std::uint32_t*>(to) = pack<E>(first, second);
    } else {
      *reinterpret_cast<Pair*>(to) = {first, second};
    }
  }
};

inline std::size_t stem_shared(int words) {
  return kConvShared + (kPlanePixels * words + padded_words(words)) * sizeof(std::uint32_t);
}

// E, SumsOfTile: as in conv3x3_kernel. (As TF32 three blocks an SM would spill.)
// registers: 200, spills: 0 (sm_80)
template <class E, class SumsOfTile>
__global__ void __launch_bounds__(kConvThreads, sizeof(E) == 2 ? 3 : 2) stem_kernel(
    const __grid_constant__ StemParams p) {
  const ConvTile tile(p.conv);
  unsigned char* const halo = dynamic_shared();
  unsigned char* const ring = halo + kHaloBytes;
  std::uint32_t* const planes = reinterpret_cast<std::uint32_t*>(halo + kConvShared);
  int* const places = reinterpret_cast<int*>(planes + kPlanePixels * p.words);
  const Middle<E> middle{p, tile, planes, places, halo};
  const int steps = p.conv.halves * 3;
  SumsOfTile sums;

  load_weights<E>(p.conv, tile, 0, ring);
  copy_async_commit();
  load_planes<E>(p, tile, planes, places);
  sync_threads();
#pragma unroll 1
  for (int half = 0; half < p.conv.halves; half++) {
    if (half % 2 == 0) {
      if (half > 0) sync_threads();  // everyone has read the pixels before
      if constexpr (std::is_same_v<SumsOfTile, ExactSums>) {
        middle.multiply_exactly(half / 2);
      } else {
        middle.multiply(half / 2);
      }
      if (p.middle_out && tile.chunk == 0) {
        sync_threads();  // all of it is there
        middle.copy_out(half / 2);
      }
    }
#pragma unroll
    for (int kx = 0; kx < 3; kx++) {
      const int step = half * 3 + kx;
      copy_async_wait<0>();
      sync_threads();  // this step's weights and pixels are everyone's; everyone has read the weights before
      if (step + 1 < steps) load_weights<E>(p.conv, tile, step + 1, ring + (step + 1) % 2 * kStepBytes);
      copy_async_commit();
      sums.add(halo, ring + step % 2 * kStepBytes, kx, half % 2);
    }
  }

  sync_threads();  // everyone has read pixels and weights; their memory is free
  float* const staged = reinterpret_cast<float*>(halo);
  sums.stage(staged);
  sync_threads();
  ConvEpilogue<E>(p.conv, tile, staged).values();
}

struct PackStemParams {
  const void* from;  // (middle, frames, 3, 3)
  Kind from_kind;
  Index frames, total;  // total: words
  int words;
  std::uint32_t* to;
};

// w1 as the kernel reads it, one word a thread: to[eight channels][word][channel], a word is (tap, frames).
// Floor: 16 KB: launch time.
// registers: 32, spills: 0 (sm_80)
template <class E> __global__ void __launch_bounds__(128) pack_stem_kernel(const __grid_constant__ PackStemParams p) {
  const Index index = static_cast<Index>(blockIdx.x) * 128 + threadIdx.x;
  if (index >= p.total) return;
  const int row = padded_words(p.words);
  const Index channel = index / (8 * row) * 8 + index % 8;
  const int word = static_cast<int>(index / 8 % row), tap = word / p.words;
  const auto weight = [&](Index frame) {
    const Index from = (channel * p.frames + frame) * 9 + tap;
    return tap < 9 && frame < p.frames ? load_element(p.from, p.from_kind, from) : 0.0f;
  };
  const Index part = word - tap * p.words;
  if constexpr (sizeof(E) == 2) {
    p.to[index] = pack<E>(weight(2 * part), weight(2 * part + 1));
  } else {
    p.to[index] = bits_of(weight(part));
  }
}

}  // namespace dblr
