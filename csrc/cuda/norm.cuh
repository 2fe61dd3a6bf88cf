// Batch norm around the convolution, and copies between layouts: work by the pixel, bound by memory.
//
// Floors (bytes a pixel and channel of 16 bits): norm_apply 4 (6 with an addition), norm_backward_sums 4,
// norm_backward_apply 6, copy_map from float32 6. Predicted 85 % of bandwidth or more: 16 bytes a thread and access,
// neighbours side by side, nothing else to do.
#pragma once

#include "by_pixel.cuh"

namespace dblr {

struct NormApplyParams {
  const void* z;
  const float *scale, *shift;
  bool relu;
  const void* add;
  void* y;
  Index pixels, c;
};

// registers: 80, spills: 0 (sm_80)
template <class E>
__global__ void __launch_bounds__(kNormThreads) norm_apply_kernel(const __grid_constant__ NormApplyParams p) {
  constexpr int V = kPerVector<E>;
  const Share<E> share(p.c);
  float scale[V], shift[V];
  share.load(p.scale, scale);
  share.load(p.shift, shift);
  if (!share.works) return;
  const Index first = static_cast<Index>(blockIdx.x) * kBlockPixels;
  const Index left = p.pixels - first, end = left < kBlockPixels ? left : kBlockPixels;
#pragma unroll 1
  for (int i = share.lane; i < end; i += kBatch * share.lanes) {
    Vector16 z[kBatch], add[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; b++) {
      const int pixel = i + b * share.lanes;
      const Index at = (first + pixel) * p.c + share.channel;
      if (pixel >= end) continue;
      z[b] = vector_at<E>(p.z, at);
      if (p.add) add[b] = vector_at<E>(p.add, at);
    }
#pragma unroll
    for (int b = 0; b < kBatch; b++) {
      const int pixel = i + b * share.lanes;
      if (pixel >= end) continue;
      float v[V], other[V] = {};
      widen<E>(z[b], v);
      if (p.add) widen<E>(add[b], other);
#pragma unroll
      for (int k = 0; k < V; k++) {
        v[k] = fmaf(v[k], scale[k], shift[k]);
        if (p.relu) v[k] = rectify(v[k]);
        if (p.add) v[k] += other[k];
      }
      store_vector<E>(p.y, (first + pixel) * p.c + share.channel, v);
    }
  }
}

struct NormBackwardParams {
  const void *grad, *z;
  const float *scale, *shift, *invstd, *offset, *dbeta, *dgamma;
  bool relu, training;
  float* partial;
  void* dz;
  Index n, h, w, c;
  int tiles_x, tiles_y;
};

// Block x: a tile of 8 x 16 pixels, as in the convolution. Shared: two arrays [lane][channel of the slab].
// registers: 112, spills: 0 (sm_80)
template <class E>
__global__ void __launch_bounds__(kNormThreads)
    norm_backward_sums_kernel(const __grid_constant__ NormBackwardParams p) {
  constexpr int V = kPerVector<E>;
  const Share<E> share(p.c);
  float* const sums = reinterpret_cast<float*>(dynamic_shared());
  float* const products = sums + kNormThreads * V;
  float scale[V], shift[V], invstd[V], offset[V], sum[V] = {}, product[V] = {};
  share.load(p.scale, scale);
  share.load(p.shift, shift);
  share.load(p.invstd, invstd);
  share.load(p.offset, offset);
  const unsigned tile = blockIdx.x, row = tile / p.tiles_x;
  const Index n = row / p.tiles_y, y0 = static_cast<Index>(row % p.tiles_y) * kTileRows,
              x0 = static_cast<Index>(tile % p.tiles_x) * kTileColumns;
  const int width = share.vectors * V;
  if (share.works) {
    const auto inside = [&](int i) {
      return i < kTileRows * kTileColumns && y0 + i / kTileColumns < p.h && x0 + i % kTileColumns < p.w;
    };
#pragma unroll 1
    for (int i = share.lane; i < kTileRows * kTileColumns; i += kBatch * share.lanes) {
      Vector16 grads[kBatch], maps[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; b++) {
        const int pixel = i + b * share.lanes;
        if (!inside(pixel)) continue;
        const Index row = n * p.h + y0 + pixel / kTileColumns;
        const Index at = (row * p.w + x0 + pixel % kTileColumns) * p.c + share.channel;
        grads[b] = vector_at<E>(p.grad, at);
        maps[b] = vector_at<E>(p.z, at);
      }
#pragma unroll
      for (int b = 0; b < kBatch; b++) {
        if (!inside(i + b * share.lanes)) continue;
        float g[V], z[V];
        widen<E>(grads[b], g);
        widen<E>(maps[b], z);
#pragma unroll
        for (int k = 0; k < V; k++) {
          if (p.relu && !(fmaf(z[k], scale[k], shift[k]) > 0.0f)) g[k] = 0.0f;
          sum[k] += g[k];
          product[k] = fmaf(g[k], fmaf(z[k], invstd[k], offset[k]), product[k]);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < V; k++) {
      sums[share.lane * width + share.local + k] = sum[k];
      products[share.lane * width + share.local + k] = product[k];
    }
  }
  sync_threads();
  const int column = threadIdx.x;
  if (column >= width) return;
  float s = 0.0f, t = 0.0f;
  for (int lane = 0; lane < share.lanes; lane++) {
    s += sums[lane * width + column];
    t += products[lane * width + column];
  }
  float* const to = p.partial + static_cast<Index>(tile) * 2 * p.c + static_cast<Index>(blockIdx.y) * kSlabVectors * V;
  to[column] = s;
  to[p.c + column] = t;
}

// registers: 120, spills: 0 (sm_80)
template <class E>
__global__ void __launch_bounds__(kNormThreads)
    norm_backward_apply_kernel(const __grid_constant__ NormBackwardParams p) {
  constexpr int V = kPerVector<E>;
  const Share<E> share(p.c);
  float scale[V], shift[V], invstd[V] = {}, offset[V] = {}, dbeta[V] = {}, dgamma[V] = {};
  share.load(p.scale, scale);
  share.load(p.shift, shift);
  const Index pixels = p.n * p.h * p.w;
  if (p.training) {
    share.load(p.invstd, invstd);
    share.load(p.offset, offset);
    share.load(p.dbeta, dbeta);
    share.load(p.dgamma, dgamma);
#pragma unroll
    for (int k = 0; k < V; k++) {
      dbeta[k] /= static_cast<float>(pixels);
      dgamma[k] /= static_cast<float>(pixels);
    }
  }
  if (!share.works) return;
  const Index first = static_cast<Index>(blockIdx.x) * kBlockPixels;
  const Index left = pixels - first, end = left < kBlockPixels ? left : kBlockPixels;
#pragma unroll 1
  for (int i = share.lane; i < end; i += kBatch * share.lanes) {
    Vector16 grads[kBatch], maps[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; b++) {
      const int pixel = i + b * share.lanes;
      const Index at = (first + pixel) * p.c + share.channel;
      if (pixel >= end) continue;
      grads[b] = vector_at<E>(p.grad, at);
      if (p.relu || p.training) maps[b] = vector_at<E>(p.z, at);
    }
#pragma unroll
    for (int b = 0; b < kBatch; b++) {
      const int pixel = i + b * share.lanes;
      if (pixel >= end) continue;
      float g[V], z[V] = {};
      widen<E>(grads[b], g);
      if (p.relu || p.training) widen<E>(maps[b], z);
#pragma unroll
      for (int k = 0; k < V; k++) {
        if (p.relu && !(fmaf(z[k], scale[k], shift[k]) > 0.0f)) g[k] = 0.0f;
        if (p.training) g[k] -= fmaf(fmaf(z[k], invstd[k], offset[k]), dgamma[k], dbeta[k]);
        g[k] *= scale[k];
      }
      store_vector<E>(p.dz, (first + pixel) * p.c + share.channel, g);
    }
  }
}

// ---- partial sums of tiles, merged in double: a block has 8 channels and 32 threads for each ----

struct MergeParams {
  const float* partial;  // [tile][2][c]
  Index n, h, w, c;      // merge_statistics: of the pictures
  Index tiles;
  int tiles_x, tiles_y;
  Tiling tiling;
  float *first, *second;
};

// Chan's merge of all tiles at once: mean = sum n_t mean_t / N, var = sum (M2_t + n_t (mean_t - mean)^2) / N.
// Floor: tiles * 8 bytes a channel: launch time.
// registers: 48, spills: 0 (sm_80)
__global__ void __launch_bounds__(kNormThreads) merge_statistics_kernel(const __grid_constant__ MergeParams p) {
  const Index channel = static_cast<Index>(blockIdx.x) * kMergeChannels + threadIdx.x % kMergeChannels;
  const int slot = threadIdx.x / kMergeChannels;
  const Index end = channel < p.c ? p.tiles : 0;
  const auto pixels_of = [&](Index tile) {
    const unsigned t = static_cast<unsigned>(tile);
    const int rows = p.tiling.rows, columns = p.tiling.columns;
    const Index y = p.h - static_cast<Index>(t / p.tiles_x % p.tiles_y) * rows;
    const Index x = p.w - static_cast<Index>(t % p.tiles_x) * columns;
    return static_cast<double>((y < rows ? y : rows) * (x < columns ? x : columns));
  };
  const double count = static_cast<double>(p.n) * static_cast<double>(p.h) * static_cast<double>(p.w);
  double sum = 0.0, apart = 0.0;
#pragma unroll 8
  for (Index t = slot; t < end; t += kMergeSlots) sum += pixels_of(t) * p.partial[t * 2 * p.c + channel];
  const double mean = sum_slots(sum) / count;
#pragma unroll 8
  for (Index t = slot; t < end; t += kMergeSlots) {
    const double d = p.partial[t * 2 * p.c + channel] - mean;
    apart += p.partial[(t * 2 + 1) * p.c + channel] + pixels_of(t) * d * d;
  }
  const double var = sum_slots(apart) / count;
  if (slot == 0 && channel < p.c) {
    p.first[channel] = static_cast<float>(mean);
    p.second[channel] = static_cast<float>(var);
  }
}

// registers: 40, spills: 0 (sm_80)
__global__ void __launch_bounds__(kNormThreads) merge_sums_kernel(const __grid_constant__ MergeParams p) {
  const Index channel = static_cast<Index>(blockIdx.x) * kMergeChannels + threadIdx.x % kMergeChannels;
  const int slot = threadIdx.x / kMergeChannels;
  const Index end = channel < p.c ? p.tiles : 0;
#pragma unroll 1
  for (int row = 0; row < 2; row++) {
    float* const to = row == 0 ? p.first : p.second;
    if (!to) continue;  // the same for all threads
    double sum = 0.0;
#pragma unroll 8
    for (Index t = slot; t < end; t += kMergeSlots) sum += p.partial[(t * 2 + row) * p.c + channel];
    const double total = sum_slots(sum);
    if (slot == 0 && channel < p.c) to[channel] = static_cast<float>(total);
  }
}

struct NormCoefficientsParams {
  NormVectors norm;
  Index c;
  float *scale, *shift, *invstd, *offset;
};

// In double, for the vectors are short and everything hangs on them.
// registers: 24, spills: 0 (sm_80)
__global__ void __launch_bounds__(kNormThreads)
    norm_coefficients_kernel(const __grid_constant__ NormCoefficientsParams p) {
  const Index i = static_cast<Index>(blockIdx.x) * kNormThreads + threadIdx.x;
  if (i >= p.c) return;
  const NormVectors& v = p.norm;
  const double invstd = 1.0 / sqrt(static_cast<double>(v.var[i]) + static_cast<double>(v.eps));
  const double bias = v.training || !v.bias ? 0.0 : static_cast<double>(v.bias[i]);
  const double away = bias - static_cast<double>(v.mean[i]), scale = v.gamma[i] * invstd;
  p.scale[i] = static_cast<float>(scale);
  p.shift[i] = static_cast<float>(v.beta[i] + away * scale);
  if (p.invstd) p.invstd[i] = static_cast<float>(invstd);
  if (p.offset) p.offset[i] = static_cast<float>(away * invstd);
}

struct CopyMapParams {
  Strided from;
  void* to;
  Index c;             // of `to`
  Index vectors;       // of a pixel of `to`
  bool pixels_first;   // neighbouring threads take neighbouring pixels (planes are read), or channels
};

// One thread writes 16 bytes.
// registers: 28, spills: 0 (sm_80)
template <class E>
__global__ void __launch_bounds__(kNormThreads) copy_map_kernel(const __grid_constant__ CopyMapParams p) {
  const Index pixels = p.from.n * p.from.h * p.from.w;
  const Index index = static_cast<Index>(blockIdx.x) * kNormThreads + threadIdx.x;
  if (index >= pixels * p.vectors) return;
  const Index fast = p.pixels_first ? pixels : p.vectors, slow = quotient(index, fast), rest = index - slow * fast;
  const Index pixel = p.pixels_first ? rest : slow, channel = (p.pixels_first ? slow : rest) * kPerVector<E>;
  const Index row = quotient(pixel, p.from.w), x = pixel - row * p.from.w;
  const Index n = quotient(row, p.from.h), y = row - n * p.from.h;
  const Index from = n * p.from.sn + y * p.from.sh + x * p.from.sw;
  float v[kPerVector<E>];
#pragma unroll
  for (int k = 0; k < kPerVector<E>; k++) {
    const Index c = channel + k;
    v[k] = c < p.from.c ? load_element(p.from.data, p.from.kind, from + c * p.from.sc) : 0.0f;
  }
  store_vector<E>(p.to, pixel * p.c + channel, v);
}

}  // namespace dblr
