// L1 (sm_80 and later): the planes of a window in, a map out, y = ReLU(conv3x3(x) + bias). L2 is a convolution like any
// other: computing both in one kernel saves this map's way through memory, but costs more than the convolution alone.
//
// A block makes 16 x 32 pixels of all channels. It brings 18 x 34 pixels of all planes to shared memory as words of 32
// bits (two frames of 16 bits, or one of 32) in the order [word][pixel]. A warp takes 16 pixels of a row (M) and 32
// channels (N) at a time, and walks down the rows; the words of K come in the order tap, word, straight from the
// planes. Weights of the first four steps of K, in 16 bits all of those of six frames, stay in its registers.
//
// Channels are permuted so that a thread's sums of neighbouring n-tiles are one vector of 16 bytes of a pixel: with V
// channels a vector, column 2t + e of n-tile j of V / 2 stands for channel V t + 2j + e of 4V. Nothing is staged.
//
// Counted for 5 float32 planes -> 64 channels of 16 bits, a pixel of the output:
//   DRAM bytes      planes 20, y 128: 148 (116 with a map of the 48 channels that there are)
//   L2 bytes        planes 20 * 612 / 512 = 24, y 128, weights at most 8192 / 512 = 16: 168
//   shared clocks   pixels 2 warps * 22 / 16 = 2.8, weights 4 * 4096 / 512 / 128 = 0.25, bias 0.25, planes 0.3, y 1:
//                   4.6
//   mma clocks      4 steps * 8 * 2048 / 16 / 1024 = 4 (A100; ~3.2 on an H100)
//   issue clocks    2 warps * 98 instructions / 16 / 4 = 3.1, loading planes 430 * 4 / 512 / 4 = 0.8: 3.9
// DRAM is the bound: on an H200 148 bytes take 8 clocks of an SM, 33 us of a frame of 1280 x 720; on an A100 14 clocks.
// A block does not load and multiply at once, so five share an SM: predicted 80 % of that, 41 us on an H200.
#pragma once

#include "pack.cuh"

namespace dblr {

constexpr int kStemThreads = 128;
constexpr int kStemRows = 16, kStemColumns = 32;               // of a tile
constexpr int kPlaneColumns = kStemColumns + 2;                // 34
constexpr int kPlanePixels = (kStemRows + 2) * kPlaneColumns;  // 612
constexpr int kPlanePitch = kPlanePixels + 6;  // 10 banks on: three words of eight pixels lie in different banks
constexpr int kHeldSteps = 4;                  // whose weights stay in registers

// Words of 32 bits of one pixel of the planes, and steps of eight of them that make up K, 9 taps (the rest is zero).
template <class E> __host__ __device__ constexpr int words_per_pixel(Index frames) {
  return static_cast<int>(sizeof(E) == 2 ? (frames + 1) / 2 : frames);
}
__host__ __device__ constexpr int steps_of(int words) {
  const int steps = (9 * words + 7) / 8;
  return steps < kHeldSteps ? kHeldSteps : steps;
}

struct StemParams {
  Strided x;
  const Vector16* weights;  // [chunk of 64 channels][step][pair of n-tiles][lane]: both words of B of either n-tile
  const float* bias;
  void* y;
  int channels;  // of y
  Index pitch;   // elements of a row of y
  int words, steps, chunks;
  int tiles_x, tiles_y;
};

struct StemTile {
  Index n, y0, x0;    // picture, first pixel
  int rows, columns;  // of the tile inside the picture

  __device__ __forceinline__ explicit StemTile(const StemParams& p) {
    const unsigned row = blockIdx.x / p.tiles_x;
    n = row / p.tiles_y;
    y0 = static_cast<Index>(row % p.tiles_y) * kStemRows;
    x0 = static_cast<Index>(blockIdx.x % p.tiles_x) * kStemColumns;
    const Index down = p.x.h - y0, right = p.x.w - x0;
    rows = static_cast<int>(down < kStemRows ? down : kStemRows);
    columns = static_cast<int>(right < kStemColumns ? right : kStemColumns);
  }
};

// Planes of S into shared memory, three words of every pixel at once: 30 loads of a thread are under way. What lies
// outside the picture is loaded from its edge and made zero; what lies beyond the last frame meets weights of zero.
template <class E, class S>
__device__ __forceinline__ void load_planes(const StemParams& p, const StemTile& tile, std::uint32_t* planes) {
  constexpr int kShare = (kPlanePixels + kStemThreads - 1) / kStemThreads;  // pixels of a thread
  constexpr int kWords = 3, kFrames = sizeof(E) == 2 ? 2 : 1;               // frames of a word
  const S* at[kShare];
  bool inside[kShare];
#pragma unroll
  for (int i = 0; i < kShare; i++) {
    const int q = threadIdx.x + i * kStemThreads;
    Index y = tile.y0 - 1 + q / kPlaneColumns, x = tile.x0 - 1 + q % kPlaneColumns;
    inside[i] = y >= 0 && y < p.x.h && x >= 0 && x < p.x.w;
    y = y < 0 ? 0 : y < p.x.h ? y : p.x.h - 1;
    x = x < 0 ? 0 : x < p.x.w ? x : p.x.w - 1;
    at[i] = static_cast<const S*>(p.x.data) + tile.n * p.x.sn + y * p.x.sh + x * p.x.sw;
  }
  int frame = 0;
#pragma unroll 1
  for (int first = 0; first < p.words; first += kWords) {
    S v[kWords][kFrames][kShare];
#pragma unroll
    for (int k = 0; k < kWords * kFrames; k++) {
      frame++;
      const Index next = frame < p.x.c ? p.x.sc : 0;
#pragma unroll
      for (int i = 0; i < kShare; i++) {
        v[k / kFrames][k % kFrames][i] = *at[i];
        at[i] += next;
      }
    }
#pragma unroll
    for (int i = 0; i < kShare; i++) {
      const int q = threadIdx.x + i * kStemThreads;
      if (q >= kPlanePixels) continue;
#pragma unroll
      for (int word = 0; word < kWords; word++) {
        std::uint32_t packed;
        if constexpr (sizeof(E) == 2) {
          packed = pack<E>(widen(v[word][0][i]), widen(v[word][1][i]));
        } else {
          packed = bits_of(widen(v[word][0][i]));
        }
        if (first + word < p.words) planes[(first + word) * kPlanePitch + q] = inside[i] ? packed : 0;
      }
    }
  }
}

// The sums of 16 pixels and 32 channels, as products give them: pixels g and g + 8 of lane 4g + t.
template <class E> struct StemSums {
  static constexpr int V = kPerVector<E>;
  float d[4][4];  // [n-tile][pixel, column]

  // They start with the bias (of these channels, in shared memory).
  __device__ __forceinline__ void start(const float* bias, int t) {
#pragma unroll
    for (int first = 0; first < 4; first += V / 2) {
#pragma unroll
      for (int i = 0; i < V; i += 4) {
        float b[4];
        widen<float>(*reinterpret_cast<const Vector16*>(bias + first * 8 + V * t + i), b);
#pragma unroll
        for (int k = 0; k < 4; k++) {
          d[first + (i + k) / 2][k % 2] = d[first + (i + k) / 2][k % 2 + 2] = b[k];
        }
      }
    }
  }

  // One step of K with tensor cores. low, high: pixel g's words t and t + 4 of the step; weights(pair): those of a pair
  // of n-tiles.
  template <class Weights>
  __device__ __forceinline__ void add(const std::uint32_t* low, const std::uint32_t* high, const Weights& weights) {
    const std::uint32_t a[4] = {operand(low[0]), operand(low[8]), operand(high[0]), operand(high[8])};
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
      const Vector16 b = weights(pair);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        if constexpr (sizeof(E) == 2) {
          mma_16x8x16<E>(d[pair * 2 + i], a, b.word[i * 2], b.word[i * 2 + 1]);
        } else {
          mma_16x8x8_tf32(d[pair * 2 + i], a, b.word[i * 2], b.word[i * 2 + 1]);
        }
      }
    }
  }

  // One step of K exactly, of float: two of its words at a time, eight lanes' weights of them. near: pixel g.
  __device__ __forceinline__ void add_exactly(const std::uint32_t* near, const int* places, const Vector16* weights,
                                              int t) {
#pragma unroll 1
    for (int k = 0; k < 4; k++) {
      const std::uint32_t *const low = near + places[k], *const high = near + places[k + 4];
      const float x[2][2] = {{float_of(low[0]), float_of(high[0])}, {float_of(low[8]), float_of(high[8])}};
#pragma unroll
      for (int column = 0; column < 2; column++) {
#pragma unroll
        for (int pair = 0; pair < 2; pair++) {
          float w[4];
          widen<float>(weights[pair * 32 + (2 * t + column) * 4 + k], w);
#pragma unroll
          for (int i = 0; i < 4; i++) {
            float(&sums)[4] = d[pair * 2 + i / 2];
            sums[column] = fmaf(x[0][i % 2], w[i], sums[column]);
            sums[column + 2] = fmaf(x[1][i % 2], w[i], sums[column + 2]);
          }
        }
      }
    }
  }

  // Pixel g (0) or g + 8 (1), to these channels of a pixel of y, of which there are `left`.
  __device__ __forceinline__ void store(E* to, int pixel, int t, int left) const {
#pragma unroll
    for (int first = 0; first < 4; first += V / 2) {
      Vector16 v;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if constexpr (sizeof(E) == 2) {
          v.word[i] = pack_rectified<E>(d[first + i][pixel * 2], d[first + i][pixel * 2 + 1]);
        } else {
          v.word[i] = bits_of(rectify(d[first + i / 2][pixel * 2 + i % 2]));
        }
      }
      const int channel = first * 8 + V * t;
      if (channel < left) *reinterpret_cast<Vector16*>(to + channel) = v;
    }
  }

  __device__ __forceinline__ static std::uint32_t operand(std::uint32_t v) {
    if constexpr (sizeof(E) == 4) return to_tf32(v);
    return v;
  }
};

template <class E> __device__ __forceinline__ Vector16 load_operands(const Vector16* from) {
  Vector16 b = *from;
#pragma unroll
  for (int i = 0; i < 4; i++) b.word[i] = StemSums<E>::operand(b.word[i]);
  return b;
}

// The bias of all chunks, places, the planes.
inline std::size_t stem_shared(int words, int chunks) {
  return (chunks * kChunk + steps_of(words) * 8 + kPlanePitch * words) * sizeof(std::uint32_t);
}

// exact: on the ordinary units (float alone), else with tensor cores.
// registers: 95, spills: 0 (sm_80)
template <class E, bool exact>
__global__ void __launch_bounds__(kStemThreads, 5) stem_kernel(const __grid_constant__ StemParams p) {
  const StemTile tile(p);
  float* const bias = reinterpret_cast<float*>(dynamic_shared());
  int* const places = reinterpret_cast<int*>(bias + p.chunks * kChunk);  // of the words of K, from a pixel's first one
  std::uint32_t* const planes = reinterpret_cast<std::uint32_t*>(places + p.steps * 8);

  if (p.x.kind == Kind::f32) {
    load_planes<E, float>(p, tile, planes);
  } else if (p.x.kind == Kind::f16) {
    load_planes<E, F16>(p, tile, planes);
  } else {
    load_planes<E, BF16>(p, tile, planes);
  }
  for (int i = threadIdx.x; i < p.chunks * kChunk; i += kStemThreads) bias[i] = i < p.channels ? p.bias[i] : 0.0f;
  for (int i = threadIdx.x; i < p.steps * 8; i += kStemThreads) {
    const int tap = i / p.words, word = i - tap * p.words;
    places[i] = tap < 9 ? word * kPlanePitch + tap / 3 * kPlaneColumns + tap % 3 : 0;  // weights are zero beyond
  }
  sync_threads();

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, t = lane % 4;
  const int half = warp / 2, column = warp % 2 * 16 + lane / 4;  // a warp takes half of a chunk's channels
  if (warp % 2 * 16 >= tile.columns) return;                     // the same for all lanes
  const bool near_inside = column < tile.columns, far_inside = column + 8 < tile.columns;
  int low[kHeldSteps], high[kHeldSteps];
#pragma unroll
  for (int s = 0; s < kHeldSteps; s++) {
    low[s] = places[s * 8 + t];
    high[s] = places[s * 8 + t + 4];
  }
#pragma unroll 1
  for (int first = half * 32; first < p.channels; first += kChunk) {
    const Vector16* const weights = p.weights + (first / kChunk * p.steps * 4 + half * 2) * 32;
    Vector16 held[kHeldSteps][2];
    if constexpr (!exact) {
#pragma unroll
      for (int s = 0; s < kHeldSteps; s++) {
#pragma unroll
        for (int pair = 0; pair < 2; pair++) {
          held[s][pair] = load_operands<E>(weights + (s * 4 + pair) * 32 + lane);
        }
      }
    }
    const int left = p.channels - first;
    E* to = static_cast<E*>(p.y) + (tile.n * p.x.h + tile.y0) * p.pitch + (tile.x0 + column) * p.channels + first;
    const std::uint32_t* near = planes + column;
#pragma unroll 1
    for (int row = 0; row < tile.rows; row++) {
      StemSums<E> sums;
      sums.start(bias + first, t);
      if constexpr (exact) {
#pragma unroll 1
        for (int s = 0; s < p.steps; s++) sums.add_exactly(near, places + s * 8, weights + s * 128, t);
      } else {
#pragma unroll
        for (int s = 0; s < kHeldSteps; s++) {
          sums.add(near + low[s], near + high[s], [&](int pair) { return held[s][pair]; });
        }
#pragma unroll 1
        for (int s = kHeldSteps; s < p.steps; s++) {
          const Vector16* const from = weights + s * 128 + lane;
          sums.add(near + places[s * 8 + t], near + places[s * 8 + t + 4],
                   [&](int pair) { return load_operands<E>(from + pair * 32); });
        }
      }
      if (near_inside) sums.store(to, 0, t, left);
      if (far_inside) sums.store(to + 8 * p.channels, 1, t, left);
      near += kPlaneColumns;
      to += p.pitch;
    }
  }
}

struct PackStemParams {
  const void* from;  // (channels, in, 3, 3)
  Kind from_kind;
  Index in, frames, channels, total;  // total: words
  int words, steps;
  std::uint32_t* to;
};

// Weights as the kernel reads them (StemParams.weights), one word a thread: a word is (tap, frames) of a channel.
// Floor: 8 KB: launch time.
// registers: 24, spills: 0 (sm_80)
template <class E> __global__ void __launch_bounds__(128) pack_stem_kernel(const __grid_constant__ PackStemParams p) {
  constexpr int V = kPerVector<E>;
  const Index index = static_cast<Index>(blockIdx.x) * 128 + threadIdx.x;
  if (index >= p.total) return;
  const int half = static_cast<int>(index % 2), lane = static_cast<int>(index / 4 % 32), column = lane / 4;
  const int tile = static_cast<int>(index / 128 % 4 * 2 + index / 2 % 2);  // of eight channels
  const Index step = index / 512, chunk = step / p.steps;
  const Index channel = chunk * kChunk + tile / (V / 2) * 4 * V + column / 2 * V + tile % (V / 2) * 2 + column % 2;
  const int k = static_cast<int>(step - chunk * p.steps) * 8 + half * 4 + lane % 4, tap = k / p.words;
  const auto weight = [&](Index frame) {
    const Index from = (channel * p.in + frame) * 9 + tap;
    return tap < 9 && frame < p.frames && channel < p.channels ? load_element(p.from, p.from_kind, from) : 0.0f;
  };
  const Index part = k - tap * p.words;
  if constexpr (sizeof(E) == 2) {
    p.to[index] = pack<E>(weight(2 * part), weight(2 * part + 1));
  } else {
    p.to[index] = bits_of(weight(part));
  }
}

}  // namespace dblr
