// Sums of the weight gradient: products of one tile of pixels, from shared memory into registers.
#pragma once

#include "kernels.h"
#include "ptx.cuh"

namespace dblr {

constexpr int kGradientThreads = 256;
constexpr int kGradientColumns = kTileColumns, kGradientHaloColumns = kGradientColumns + 2;  // 16, 18
constexpr int kGradientSums = 9 * kChunk * kChunk;  // of a block: [tap][64 out][64 in]

// Tiles of the two operands in shared memory: [row][column][64 channels], 16-byte slots permuted by the column so
// that eight pixels side by side (16 bits; ldmatrix reads a slot of each) or four (32 bits; a product reads eight
// channels of each) lie in different banks, whatever the first of them.
template <class E> struct GradientTiles {
  static constexpr int kRows = sizeof(E) == 2 ? 8 : 4;
  static constexpr int kSlots = kChunk / kPerVector<E>;  // 8 or 16
  static constexpr int kRowBytes = kSlots * 16;          // of a pixel
  static constexpr int kHaloPixels = (kRows + 2) * kGradientHaloColumns, kPixels = kRows * kGradientColumns;
  static constexpr int kHaloBytes = kHaloPixels * kRowBytes, kBufferBytes = kHaloBytes + kPixels * kRowBytes;
  static constexpr int kShared = 2 * kBufferBytes;

  __device__ __forceinline__ static int swizzle(int column) { return sizeof(E) == 2 ? column & 7 : (column & 3) << 1; }
  __device__ __forceinline__ static int source_offset(int row, int column, int slot) {
    return (row * kGradientHaloColumns + column) * kRowBytes + ((slot ^ swizzle(column)) << 4);
  }
  __device__ __forceinline__ static int dy_offset(int row, int column, int slot) {
    return kHaloBytes + (row * kGradientColumns + column) * kRowBytes + ((slot ^ swizzle(column)) << 4);
  }
  // Of one float (32 bits).
  __device__ __forceinline__ static int within(int channel) { return (channel & 3) << 2; }
};

// With tensor cores. M: out channels, N: in channels, K: pixels of a row (16 of them, or 8 as TF32). A warp holds
// 32 out x 16 in for all taps; it goes down the rows of the halo tile, and what it has loaded of a row serves the
// three rows of dy that have it as a neighbour.
template <class E> struct TensorGradient {
  using T = GradientTiles<E>;
  static constexpr int kSteps = sizeof(E) == 2 ? 1 : 2;  // of K in a row
  float d[9][2][2][4] = {};                              // [tap][16 out][8 in][as the product gives them]

  __device__ __forceinline__ void add(const unsigned char* buffer) {
#pragma unroll 1  // two steps at once would spill
    for (int step = 0; step < kSteps; step++) {
      std::uint32_t a[3][2][4];  // rows of dy, a ring
#pragma unroll
      for (int r = 0; r < T::kRows + 2; r++) {
        if (r < T::kRows) load_a(buffer, r, step, a[r % 3]);
#pragma unroll
        for (int kx = 0; kx < 3; kx++) {
          std::uint32_t b[2][2];
          load_b(buffer, r, kx, step, b);
#pragma unroll
          for (int ky = 0; ky < 3; ky++) {
            const int row = r - ky;  // of dy; row + ky is the source's
            if (row < 0 || row >= T::kRows) continue;
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
              for (int j = 0; j < 2; j++) {
                float(&sums)[4] = d[ky * 3 + kx][i][j];
                if constexpr (sizeof(E) == 2) {
                  mma_16x8x16<E>(sums, a[(row + 3) % 3][i], b[j][0], b[j][1]);
                } else {
                  mma_16x8x8_tf32(sums, a[(row + 3) % 3][i], b[j][0], b[j][1]);
                }
              }
            }
          }
        }
      }
    }
  }

  // to: [tap][64 out][64 in].
  __device__ __forceinline__ void store(float* to) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int tap = 0; tap < 9; tap++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const int o = first_out() + i * 16 + lane / 4, in = first_in() + j * 8 + lane % 4 * 2;
          float2_at(to + (tap * kChunk + o) * kChunk + in, d[tap][i][j][0], d[tap][i][j][1]);
          float2_at(to + (tap * kChunk + o + 8) * kChunk + in, d[tap][i][j][2], d[tap][i][j][3]);
        }
      }
    }
  }

 private:
  struct alignas(8) Two {
    float first, second;
  };
  __device__ __forceinline__ static void float2_at(float* to, float first, float second) {
    *reinterpret_cast<Two*>(to) = {first, second};
  }
  __device__ __forceinline__ static int first_out() { return static_cast<int>(threadIdx.x) / 32 % 2 * 32; }
  __device__ __forceinline__ static int first_in() { return static_cast<int>(threadIdx.x) / 64 * 16; }
  __device__ __forceinline__ static std::uint32_t operand(const unsigned char* at) {
    return to_tf32(*reinterpret_cast<const std::uint32_t*>(at));
  }

  // dy of one row: 32 out x K pixels. In 16 bits matrices 0 and 1 are out channels 0 to 7 and 8 to 15 of pixels 0 to
  // 7, matrices 2 and 3 those of pixels 8 to 15.
  __device__ __forceinline__ static void load_a(const unsigned char* buffer, int row, int step,
                                                std::uint32_t (&a)[2][4]) {
    const int lane = threadIdx.x % 32;
    if constexpr (sizeof(E) == 2) {
      const int column = lane % 8 + lane / 16 * 8, slot = first_out() / 8 + lane / 8 % 2;
#pragma unroll
      for (int i = 0; i < 2; i++) {
        load_matrices_transposed(a[i], shared_address(buffer + T::dy_offset(row, column, slot + 2 * i)));
      }
    } else {
#pragma unroll
      for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
          const int column = step * 8 + lane % 4 + k / 2 * 4, out = first_out() + i * 16 + lane / 4 + k % 2 * 8;
          a[i][k] = operand(buffer + T::dy_offset(row, column, out / 4) + T::within(out));
        }
      }
    }
  }

  // The source of one row, shifted by kx: K pixels x 16 in. In 16 bits matrices 0 and 1 are pixels 0 to 7 and 8 to 15
  // of in channels 0 to 7, matrices 2 and 3 those of channels 8 to 15.
  __device__ __forceinline__ static void load_b(const unsigned char* buffer, int row, int kx, int step,
                                                std::uint32_t (&b)[2][2]) {
    const int lane = threadIdx.x % 32;
    if constexpr (sizeof(E) == 2) {
      const int column = lane % 16 + kx, slot = first_in() / 8 + lane / 16;
      std::uint32_t r[4];
      load_matrices_transposed(r, shared_address(buffer + T::source_offset(row, column, slot)));
      b[0][0] = r[0];
      b[0][1] = r[1];
      b[1][0] = r[2];
      b[1][1] = r[3];
    } else {
#pragma unroll
      for (int j = 0; j < 2; j++) {
#pragma unroll
        for (int k = 0; k < 2; k++) {
          const int column = step * 8 + lane % 4 + k * 4 + kx, in = first_in() + j * 8 + lane / 4;
          b[j][k] = operand(buffer + T::source_offset(row, column, in / 4) + T::within(in));
        }
      }
    }
  }
};

// Float32 exactly: a thread holds 4 out x 4 in for all taps, and takes four pixels at a time: 22 loads of 16 bytes
// for 576 multiply-adds.
struct ExactGradient {
  using T = GradientTiles<float>;
  float d[9][4][4] = {};

  __device__ __forceinline__ void add(const unsigned char* buffer) {
    const int in = threadIdx.x % 16, out = threadIdx.x / 16;  // slots
#pragma unroll 1
    for (int four = 0; four < T::kRows * 4; four++) {
      const int row = four / 4, x0 = four % 4 * 4;
      float g[4][4];
#pragma unroll
      for (int x = 0; x < 4; x++) load(buffer + T::dy_offset(row, x0 + x, out), g[x]);
#pragma unroll
      for (int ky = 0; ky < 3; ky++) {
        float s[6][4];
#pragma unroll
        for (int x = 0; x < 6; x++) load(buffer + T::source_offset(row + ky, x0 + x, in), s[x]);
#pragma unroll
        for (int kx = 0; kx < 3; kx++) {
#pragma unroll
          for (int x = 0; x < 4; x++) {
#pragma unroll
            for (int o = 0; o < 4; o++) {
#pragma unroll
              for (int i = 0; i < 4; i++) d[ky * 3 + kx][o][i] = fmaf(g[x][o], s[x + kx][i], d[ky * 3 + kx][o][i]);
            }
          }
        }
      }
    }
  }

  __device__ __forceinline__ void store(float* to) const {
    const int in = threadIdx.x % 16 * 4, out = threadIdx.x / 16 * 4;
#pragma unroll
    for (int tap = 0; tap < 9; tap++) {
#pragma unroll
      for (int o = 0; o < 4; o++) {
        *reinterpret_cast<Vector16*>(to + (tap * kChunk + out + o) * kChunk + in) = narrow<float>(d[tap][o]);
      }
    }
  }

 private:
  __device__ __forceinline__ static void load(const unsigned char* from, float (&v)[4]) {
    widen<float>(*reinterpret_cast<const Vector16*>(from), v);
  }
};

}  // namespace dblr
