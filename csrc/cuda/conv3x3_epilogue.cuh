// What the portable convolution does with the sums of a tile, once they lie in shared memory as float
// staged[pixel][channel]: scale, ReLU, additions, mask, store, sums over pixels, tap planes.
#pragma once

#include "conv3x3_multiply.cuh"

namespace dblr {

struct ConvParams {
  Source source;
  const void* weights;  // PackedWeights
  Epilogue epilogue;
  Index out, in_chunks, out_chunks;
  int halves;  // steps of the main loop / 3: how many times 64 bytes of input channels there are
  int tiles_x, tiles_y;
};

// The tile of pixels and the chunk of output channels of a block. Blocks of one tile are neighbours: they read the
// same pixels at about the same time.
struct ConvTile {
  Index index;   // of the tile, in the order n, y, x
  Index n;       // picture
  Index y0, x0;  // first pixel
  int rows, columns;  // of the tile inside the picture
  Index chunk;   // of output channels

  __device__ __forceinline__ explicit ConvTile(const ConvParams& p) {
    const unsigned chunks = static_cast<unsigned>(p.out_chunks);
    const unsigned tile = blockIdx.x / chunks;
    chunk = blockIdx.x % chunks;
    const unsigned row = tile / p.tiles_x;
    index = tile;
    n = row / p.tiles_y;
    y0 = static_cast<Index>(row % p.tiles_y) * kTileRows;
    x0 = static_cast<Index>(tile % p.tiles_x) * kTileColumns;
    rows = static_cast<int>(min_of(kTileRows, p.source.x.h - y0));
    columns = static_cast<int>(min_of(kTileColumns, p.source.x.w - x0));
  }

 private:
  __device__ __forceinline__ static Index min_of(Index a, Index b) { return a < b ? a : b; }
};

// Shared memory of the epilogue, floats: the staged tile, partial sums of the threads' groups, their sums, tap weights.
constexpr int kStagedFloats = kTilePixels * kStagedPitch;
constexpr int kGroupFloats = 16 * kChunk;
constexpr int kEpilogueFloats = kStagedFloats + kGroupFloats + kChunk + 9 * kChunk;

// Threads read the staged tile by vectors of 16 bytes of the map: a thread has one vector of channels, and every
// kGroups-th pixel. Eight lanes (sixteen of float) cover the 64 channels of a pixel, 128 (256) bytes of the map.
template <class E> struct ConvEpilogue {
  static constexpr int V = kPerVector<E>;
  static constexpr int kVectors = kChunk / V;               // of a pixel: 8 or 16
  static constexpr int kGroups = kConvThreads / kVectors;   // 16 or 8
  static constexpr int kPasses = kTilePixels / kGroups;     // 8 or 16
  static constexpr int kBatch = 4;                          // pixels whose vectors are fetched together

  const ConvParams& p;
  const ConvTile& tile;
  float* const staged;
  float* const group_sums = staged + kStagedFloats;
  float* const column_sums = group_sums + kGroupFloats;
  float* const tap_weights = column_sums + kChunk;
  const int local = static_cast<int>(threadIdx.x) % kVectors * V;  // channel within the chunk
  const int group = static_cast<int>(threadIdx.x) / kVectors;
  const Index channel = tile.chunk * kChunk + local;
  const bool inside = channel < p.out;

  __device__ __forceinline__ ConvEpilogue(const ConvParams& p, const ConvTile& tile, float* staged)
      : p(p), tile(tile), staged(staged) {}

  __device__ __forceinline__ bool in_picture(int pixel) const {
    return pixel / kTileColumns < tile.rows && pixel % kTileColumns < tile.columns;
  }
  __device__ __forceinline__ Index place(int pixel) const {  // of the pixel in a map
    return (tile.n * p.source.x.h + tile.y0 + pixel / kTileColumns) * p.source.x.w + tile.x0 + pixel % kTileColumns;
  }
  __device__ __forceinline__ float* partial(int row) const {
    return p.epilogue.partial + (tile.index * 2 + row) * p.out;
  }

  __device__ __forceinline__ void load_channels(const float* from, float missing, float (&v)[V]) const {
#pragma unroll
    for (int k = 0; k < V; k++) v[k] = from && inside ? from[channel + k] : missing;
  }

  // column_sums[channel] = sum of `part` over the groups of threads, in their order. All threads call; at the end
  // all see the sums. The next call may follow at once: its first barrier stands between the readers of these sums
  // and their being written again.
  __device__ __forceinline__ void sum_groups(const float (&part)[V]) const {
#pragma unroll
    for (int k = 0; k < V; k++) group_sums[group * kChunk + local + k] = part[k];
    sync_threads();
    if (threadIdx.x < kChunk) {
      float sum = 0.0f;
#pragma unroll
      for (int g = 0; g < kGroups; g++) sum += group_sums[g * kChunk + threadIdx.x];
      column_sums[threadIdx.x] = sum;
    }
    sync_threads();
  }

  __device__ __forceinline__ void store_sums(int row) const {
    const Index c = tile.chunk * kChunk + threadIdx.x;
    if (threadIdx.x < kChunk && c < p.out) partial(row)[c] = column_sums[threadIdx.x];
  }

  // Mean and sum of squared deviations over the tile's pixels, in two passes over the staged sums.
  __device__ __forceinline__ void statistics() const {
    float part[V] = {};
#pragma unroll
    for (int i = 0; i < kPasses; i++) {
      const int pixel = group + i * kGroups;
#pragma unroll
      for (int k = 0; k < V; k++) part[k] += in_picture(pixel) ? staged[pixel * kStagedPitch + local + k] : 0.0f;
    }
    sum_groups(part);
    const float count = static_cast<float>(tile.rows * tile.columns);
    float mean[V];
#pragma unroll
    for (int k = 0; k < V; k++) {
      mean[k] = column_sums[local + k] / count;
      part[k] = 0.0f;
    }
    if (group == 0 && inside) {
#pragma unroll
      for (int k = 0; k < V; k++) partial(0)[channel + k] = mean[k];
    }
#pragma unroll
    for (int i = 0; i < kPasses; i++) {
      const int pixel = group + i * kGroups;
#pragma unroll
      for (int k = 0; k < V; k++) {
        const float apart = in_picture(pixel) ? staged[pixel * kStagedPitch + local + k] - mean[k] : 0.0f;
        part[k] = fmaf(apart, apart, part[k]);
      }
    }
    sum_groups(part);
    store_sums(1);
  }

  __device__ __forceinline__ static void fetch(const Map& map, Index at, bool wanted, Vector16& v) {
    if (map.data && wanted) v = *reinterpret_cast<const Vector16*>(static_cast<const E*>(map.data) + at);
  }

  __device__ __forceinline__ static void add(const Map& map, const Vector16& v, float (&y)[V]) {
    if (!map.data) return;
    float other[V];
    widen<E>(v, other);
#pragma unroll
    for (int k = 0; k < V; k++) y[k] += other[k];
  }

  // Every pixel's y, stored; the sums of what was stored.
  __device__ __forceinline__ void values() const {
    const Epilogue& e = p.epilogue;
    float scale[V], shift[V], mask_scale[V], mask_shift[V], norm_scale[V], norm_shift[V];
    load_channels(e.scale, 1.0f, scale);
    load_channels(e.shift, 0.0f, shift);
    load_channels(e.mask_scale, 1.0f, mask_scale);
    load_channels(e.mask_shift, 0.0f, mask_shift);
    load_channels(e.norm_scale, 1.0f, norm_scale);
    load_channels(e.norm_shift, 0.0f, norm_shift);
    const bool summed = e.sums == Sums::total || e.sums == Sums::normalised;
    float sum[V] = {}, product[V] = {};
#pragma unroll 1
    for (int first = 0; first < kPasses; first += kBatch) {
      Vector16 add0[kBatch], add1[kBatch], mask[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; b++) {
        const int pixel = group + (first + b) * kGroups;
        const Index at = place(pixel) * p.out + channel;
        const bool wanted = inside && in_picture(pixel);
        fetch(e.add0, at, wanted, add0[b]);
        fetch(e.add1, at, wanted, add1[b]);
        fetch(e.mask, at, wanted, mask[b]);
      }
#pragma unroll
      for (int b = 0; b < kBatch; b++) {
        const int pixel = group + (first + b) * kGroups;
        if (!inside || !in_picture(pixel)) continue;
        float* const row = staged + pixel * kStagedPitch + local;
        float y[V];
#pragma unroll
        for (int k = 0; k < V; k++) {
          y[k] = fmaf(row[k], scale[k], shift[k]);
          if (e.relu) y[k] = rectify(y[k]);
        }
        add(e.add0, add0[b], y);
        add(e.add1, add1[b], y);
        if (e.mask.data) {
          float m[V];
          widen<E>(mask[b], m);
#pragma unroll
          for (int k = 0; k < V; k++) y[k] = fmaf(m[k], mask_scale[k], mask_shift[k]) > 0.0f ? y[k] : 0.0f;
        }
        if (e.taps) {
#pragma unroll
          for (int k = 0; k < V; k++) row[k] = y[k];
        }
        const Vector16 stored = narrow<E>(y);
        if (e.y.data) {
          *reinterpret_cast<Vector16*>(static_cast<E*>(e.y.data) + place(pixel) * p.out + channel) = stored;
        }
        if (summed) {
          float z[V] = {};
          widen<E>(stored, y);
          if (e.sums == Sums::normalised) {  // often the mask's map: then L1 has it
            Vector16 v{};
            fetch(e.norm_z, place(pixel) * p.out + channel, true, v);
            widen<E>(v, z);
          }
#pragma unroll
          for (int k = 0; k < V; k++) {
            sum[k] += y[k];
            product[k] = fmaf(y[k], fmaf(z[k], norm_scale[k], norm_shift[k]), product[k]);
          }
        }
      }
    }
    if (!summed) return;
    sum_groups(sum);
    store_sums(0);
    if (e.sums == Sums::normalised) {
      sum_groups(product);
      store_sums(1);
    }
  }

  // One pixel a thread: its 64 values times nine taps' weights, which all lanes read at the same address. The barrier
  // is also the one after which every thread's values are final.
  __device__ __forceinline__ void tap_planes() const {
    for (int i = threadIdx.x; i < 9 * kChunk; i += kConvThreads) {
      const Index c = tile.chunk * kChunk + i % kChunk;
      tap_weights[i] = c < p.out ? p.epilogue.tap_weights[i / kChunk * p.out + c] : 0.0f;
    }
    sync_threads();
    const int pixel = threadIdx.x;
    if (!in_picture(pixel)) return;
    float sum[9] = {};
#pragma unroll 2
    for (int c = 0; c < kChunk; c += 4) {
      float y[4], w[4];
      widen<float>(*reinterpret_cast<const Vector16*>(staged + pixel * kStagedPitch + c), y);
#pragma unroll
      for (int tap = 0; tap < 9; tap++) {
        widen<float>(*reinterpret_cast<const Vector16*>(tap_weights + tap * kChunk + c), w);
#pragma unroll
        for (int k = 0; k < 4; k++) sum[tap] = fmaf(y[k], w[k], sum[tap]);
      }
    }
    const Index plane = p.source.x.n * p.source.x.h * p.source.x.w;
#pragma unroll
    for (int tap = 0; tap < 9; tap++) p.epilogue.taps[(tile.chunk * 9 + tap) * plane + place(pixel)] = sum[tap];
  }
};

}  // namespace dblr
