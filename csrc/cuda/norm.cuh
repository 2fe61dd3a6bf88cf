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

// ---- a layer's vectors ----

// Of one channel, from mean and var as they are kept, so that whoever computes them again gets the same bits (and the
// same side of a ReLU). In double, for the vectors are short and everything hangs on them. away: what is added to z
// before it is scaled.
__device__ __forceinline__ void coefficients_of(const NormCoefficients& to, Index channel, double away, float var,
                                                float gamma, float beta, float eps) {
  const double invstd = rsqrt(static_cast<double>(var) + static_cast<double>(eps)), scale = gamma * invstd;
  to.scale[channel] = static_cast<float>(scale);
  to.shift[channel] = static_cast<float>(fma(away, scale, static_cast<double>(beta)));
  if (to.invstd) to.invstd[channel] = static_cast<float>(invstd);
  if (to.offset) to.offset[channel] = static_cast<float>(away * invstd);
}

struct NormCoefficientsParams {
  NormVectors norm;
  Index c;
  NormCoefficients to;
};

// registers: 22, spills: 0 (sm_80, sm_90a)
__global__ void __launch_bounds__(kNormThreads)
    norm_coefficients_kernel(const __grid_constant__ NormCoefficientsParams p) {
  const Index i = static_cast<Index>(blockIdx.x) * kNormThreads + threadIdx.x;
  if (i >= p.c) return;
  const NormVectors& v = p.norm;
  const double bias = v.training || !v.bias ? 0.0 : static_cast<double>(v.bias[i]);
  coefficients_of(p.to, i, bias - static_cast<double>(v.mean[i]), v.var[i], v.gamma[i], v.beta[i], v.eps);
}

// ---- partial sums of tiles, merged (see by_pixel.cuh) ----

struct MergeStatisticsParams {
  const float* partial;  // [tile][2][c]
  Index tiles, c;
  unsigned tiles_x, tiles_y;
  int rows, columns, last_rows, last_columns;  // of a tile, and of the last ones down and across
  double share;                                // 1 / pixels
  const float *gamma, *beta;
  float eps;
  float *mean, *var;
  NormCoefficients to;
};

// mean = sum n_t mean_t / N, var = sum (M2_t + n_t mean_t^2) / N - mean^2, so that one pass does. What cancels costs
// about 1e-16 mean^2 / var of var in double: 1e-10 where the mean is 1000 deviations, far below what float32 has.
// Measured on an H200 at 512 tiles of 64 channels: 6.3 us in two passes with 8 channels a block, 32 additions in a row.
// Floor: tiles * 8 bytes a channel: launch time, 3 us predicted.
// whole: the last tiles are as large as the others, as they mostly are; no tile then has to find out where it lies.
// registers: 40, spills: 0 (32 where all tiles are whole)
template <bool whole>
__global__ void __launch_bounds__(kMergeThreads)
    merge_statistics_kernel(const __grid_constant__ MergeStatisticsParams p) {
  const Index channel = static_cast<Index>(blockIdx.x) * kMergeChannels + threadIdx.x % kMergeChannels;
  const bool there = channel < p.c;
  const Index read = there ? channel : 0;
  const float gamma = p.gamma[read], beta = p.beta[read];  // on their way meanwhile
  double sums[2] = {};
  for_rows(p.partial, p.tiles, p.c, true, [&](unsigned tile, float mean, float apart) {
    int pixels = p.rows * p.columns;
    if constexpr (!whole) {
      const unsigned row = tile / p.tiles_x;
      const bool bottom = row % p.tiles_y == p.tiles_y - 1, right = tile - row * p.tiles_x == p.tiles_x - 1;
      pixels = (bottom ? p.last_rows : p.rows) * (right ? p.last_columns : p.columns);
    }
    const double m = mean, sum = pixels * m;
    sums[0] += sum;
    sums[1] += fma(sum, m, static_cast<double>(apart));
  });
  sum_slots(sums);
  if (threadIdx.x >= kMergeChannels || !there) return;
  const double mean = sums[0] * p.share, var = fma(-mean, mean, sums[1] * p.share);
  const float kept_mean = static_cast<float>(mean), kept_var = static_cast<float>(var < 0.0 ? 0.0 : var);  // or NaN
  p.mean[channel] = kept_mean;
  p.var[channel] = kept_var;
  coefficients_of(p.to, channel, -static_cast<double>(kept_mean), kept_var, gamma, beta, p.eps);
}

struct MergeSumsParams {
  const float* partial;  // [tile][2][c]
  Index tiles, c;
  float *first, *second;
};

// Measured on an H200 at 512 tiles of 64 channels: 3.5 us with 8 channels a block, 32 additions in a row.
// registers: 34, spills: 0 (sm_89)
__global__ void __launch_bounds__(kMergeThreads) merge_sums_kernel(const __grid_constant__ MergeSumsParams p) {
  double sums[2] = {};
  for_rows(p.partial, p.tiles, p.c, p.second != nullptr, [&](unsigned, float first, float second) {
    sums[0] += first;
    sums[1] += second;
  });
  sum_slots(sums);
  const Index channel = static_cast<Index>(blockIdx.x) * kMergeChannels + threadIdx.x;
  if (threadIdx.x >= kMergeChannels || channel >= p.c) return;
  if (p.first) p.first[channel] = static_cast<float>(sums[0]);
  if (p.second) p.second[channel] = static_cast<float>(sums[1]);
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
