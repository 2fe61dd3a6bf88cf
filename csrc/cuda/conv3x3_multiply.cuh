// Products of the portable convolution: one step of its main loop, from shared memory into registers.
//
// A step is 64 bytes of input channels (32 of 16 bits, 16 of 32) and the three taps (ky, kx) of one kx. In shared
// memory a pixel of the halo tile is a row of 128 bytes whose 16-byte slots are permuted by slot ^ (pixel % 8); an
// output channel's weights of a step are a row of 64 bytes permuted by slot ^ (row / 2 % 4). Eight pixels side by
// side, or eight output channels, then lie in eight different groups of four banks: no conflicts.
#pragma once

#include "kernels.h"
#include "ptx.cuh"

namespace dblr {

constexpr int kConvThreads = 128;
constexpr int kTilePixels = kTileRows * kTileColumns;              // 128
constexpr int kHaloColumns = kTileColumns + 2;                     // 18
constexpr int kHaloPixels = (kTileRows + 2) * kHaloColumns;        // 180
constexpr int kHaloBytes = kHaloPixels * 128;                      // 64 channels of 16 bits, 32 of 32
constexpr int kTapBytes = kChunk * 64, kStepBytes = 3 * kTapBytes;  // weights: [ky][64 out][64 bytes]
constexpr int kStagedPitch = kChunk + 8;                           // floats of a pixel's row of sums, 8 of them unused

// Offset of 16-byte slot `slot` (0 to 7) of pixel `q` of the halo tile, and of slot 0 to 3 of a row of weights.
__device__ __forceinline__ int pixel_offset(int q, int slot) { return q * 128 + ((slot ^ (q & 7)) << 4); }
__device__ __forceinline__ int weight_offset(int row, int slot) { return row * 64 + ((slot ^ (row >> 1 & 3)) << 4); }

struct alignas(8) Pair {
  float first, second;
};

// With tensor cores: 16-bit elements, or float as TF32. A warp holds the sums of 4 rows of 16 pixels (M) x 32
// channels (N): warps 0 and 1 the upper four rows, 0 and 2 the lower 32 channels. For one kx and one slice of
// 32 bytes of channels it loads six rows of pixels once for all three ky: 12 loads of 512 bytes for 48 products
// (fetching pixels for every tap would take 18).
template <class E> struct TensorSums {
  float d[4][4][4] = {};  // [row][eight channels][as the product gives them]

  __device__ __forceinline__ void add(const unsigned char* halo, const unsigned char* weights, int kx, int half) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    SharedAddress pixel[6];
#pragma unroll
    for (int r = 0; r < 6; r++) {
      const int q = (warp / 2 * 4 + r) * kHaloColumns + lane % 16 + kx;
      pixel[r] = shared_address(halo) + (pixel_offset(q, lane / 16) ^ (half << 6));
    }
    const int row = warp % 2 * 32 + lane / 16 * 8 + lane % 8;
    const SharedAddress weight = shared_address(weights) + weight_offset(row, lane / 8 % 2);
#pragma unroll
    for (int k = 0; k < 2; k++) {
      std::uint32_t a[6][4];
#pragma unroll
      for (int r = 0; r < 6; r++) {
        load_matrices(a[r], pixel[r] ^ (k << 5));
        round_operand(a[r]);
      }
#pragma unroll
      for (int ky = 0; ky < 3; ky++) {
        std::uint32_t b[2][4];
#pragma unroll
        for (int j = 0; j < 2; j++) {
          load_matrices(b[j], (weight ^ (k << 5)) + ky * kTapBytes + j * 16 * 64);
          round_operand(b[j]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
          for (int j = 0; j < 4; j++) {
            const std::uint32_t b0 = b[j / 2][j % 2 * 2], b1 = b[j / 2][j % 2 * 2 + 1];
            if constexpr (sizeof(E) == 4) {
              mma_16x8x8_tf32(d[i][j], a[ky + i], b0, b1);
            } else {
              mma_16x8x16<E>(d[i][j], a[ky + i], b0, b1);
            }
          }
        }
      }
    }
  }

  // Writes the sums to staged[pixel][channel].
  __device__ __forceinline__ void stage(float* staged) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int pixel = (warp / 2 * 4 + i) * kTileColumns + lane / 4;
        float* const to = staged + pixel * kStagedPitch + warp % 2 * 32 + j * 8 + lane % 4 * 2;
        *reinterpret_cast<Pair*>(to) = {d[i][j][0], d[i][j][1]};
        *reinterpret_cast<Pair*>(to + 8 * kStagedPitch) = {d[i][j][2], d[i][j][3]};
      }
    }
  }

 private:
  __device__ __forceinline__ static void round_operand(std::uint32_t (&r)[4]) {
    if constexpr (sizeof(E) == 4) {
#pragma unroll
      for (int i = 0; i < 4; i++) r[i] = to_tf32(r[i]);
    }
  }
};

// Float32 exactly, on the ordinary units. A thread holds one column of 8 pixels x 8 channels (thread % 8 + 8 j). For
// one kx it loads ten pixels for all three ky: 34 loads of 8 bytes for 384 multiply-adds
// (two channels at a time; four would spill). Six products are summed before they join the long sum, so that it
// rounds a sixth as often (one instruction in seven more).
struct ExactSums {
  float d[8][8] = {};  // [row][channel]

  __device__ __forceinline__ void add(const unsigned char* halo, const unsigned char* weights, int kx, int half) {
    const int first = threadIdx.x % 8, column = threadIdx.x / 8;
#pragma unroll 1
    for (int pair = 0; pair < 8; pair++) {
      const int slot = pair / 2, within = pair % 2 * 8;
      Pair x[10];
#pragma unroll
      for (int r = 0; r < 10; r++) {
        x[r] = load(halo + pixel_offset(r * kHaloColumns + column + kx, half * 4 + slot) + within);
      }
#pragma unroll
      for (int j = 0; j < 8; j++) {
        Pair w[3];
#pragma unroll
        for (int ky = 0; ky < 3; ky++) {
          w[ky] = load(weights + ky * kTapBytes + weight_offset(first + 8 * j, slot) + within);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
          float six = x[i].first * w[0].first;
          six = fmaf(x[i].second, w[0].second, six);
#pragma unroll
          for (int ky = 1; ky < 3; ky++) {
            six = fmaf(x[i + ky].first, w[ky].first, six);
            six = fmaf(x[i + ky].second, w[ky].second, six);
          }
          d[i][j] += six;
        }
      }
    }
  }

  __device__ __forceinline__ void stage(float* staged) const {
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
      for (int j = 0; j < 8; j++) {
        staged[(i * kTileColumns + threadIdx.x / 8) * kStagedPitch + threadIdx.x % 8 + 8 * j] = d[i][j];
      }
    }
  }

 private:
  __device__ __forceinline__ static Pair load(const unsigned char* from) {
    return *reinterpret_cast<const Pair*>(from);
  }
};

}  // namespace dblr
