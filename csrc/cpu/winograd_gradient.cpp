#include <algorithm>
#include <cstring>

#include "threads.h"
#include "weight_gradient.h"
#include "winograd.h"

namespace dblr {
namespace {

// Channels in and out that one task sums: 576 KB of sums in float32.
constexpr Index kRange = 64;
// Tasks are (group of blocks) x (range of channels in) x (range out), at least kTasks where there are blocks enough,
// and at least kParts groups, to keep sums short. As in the direct kernels the groups are added up in order.
constexpr Index kTasks = 16, kParts = 2;

}  // namespace

template <class T> bool winograd_suits_gradient(const Kernels<T>& k, const WeightGradient<T>& g) {
  const Filter<T> filter = {nullptr, g.dz.a.c, g.x.a.c, 0, 0, false, 3};
  return winograd_tile(k, filter) != 0;
}

template <class T> void winograd_weight_gradient(const Run<T>& run, const WeightGradient<T>& g) {
  constexpr Index kTile = 4, kPositions = 36, kSums = kPositions * kRange * kRange;
  const ChannelRanges in(g.x.a.c, kRange), out(g.dz.a.c, kRange);
  const WinogradTiling tiling(g.region, kTile, 1, winograd_block(kTile, kRange));
  const Index blocks = g.dz.a.n * tiling.tasks(), ranges = in.count * out.count;
  const Index parts = std::min(blocks, std::max(kParts, kTasks / ranges));
  const Index most = position<T>(tiling.most_tiles(), kRange);
  const TileLoader<T, T> x = {run.kernels, run.kernels.winograd4.input, kTile, 1, 0, kRange, most};
  const TileLoader<T, T> dz = {run.kernels, run.kernels.winograd_dz, kTile, 0, 0, kRange, most};
  const Rect readable = grow(g.region, 1, g.x.a.h, g.x.a.w);
  Buffer<T> sums(parts * ranges * kSums);

  const Index scratch = std::max(x.rows(), dz.rows()) + 2 * kPositions * most;
  parallel(run.threads, parts * ranges, scratch * sizeof(T), [&](Index task, char* memory) {
    const Index part = task / ranges, i = task / out.count % in.count, o = task % out.count;
    T *const tx = reinterpret_cast<T*>(memory), *const tdz = tx + kPositions * most, *const rows = tdz + kPositions * most;
    TileLoader<T, T> load_x = x, load_dz = dz;
    load_x.first = i * kRange;
    load_x.channels = in.size(i);
    load_dz.first = o * kRange;
    load_dz.channels = out.size(o);
    WinogradGradient<T> w = {tx, tdz, most, most, kPositions, 0, in.size(i), out.size(o), sums.data() + task * kSums};
    std::memset(w.out, 0, kPositions * w.in_channels * w.out_channels * sizeof(T));
    for (Index b = blocks * part / parts; b < blocks * (part + 1) / parts; b++) {
      const WinogradTiling::Block block = tiling.block(b);
      load_x.load(g.x, block, readable, rows, tx);
      load_dz.load(g.dz, block, g.region, rows, tdz);
      w.tiles = block.tiles;
      run.kernels.winograd_gradient(w);
    }
  });

  // G^T u G for one input channel at a time, output channels side by side.
  const KernelTransform t = kernel_transform(kTile);
  parallel(run.threads, in.channels, (kPositions + 3 * kMostRows) * kRange * sizeof(double), [&](Index channel, char* memory) {
    double *const u = reinterpret_cast<double*>(memory), *const half = u + kPositions * kRange;
    const Index i = channel / kRange, ic = channel % kRange;
    for (Index o = 0; o < out.count; o++) {
      const Index size = out.size(o);
      std::memset(u, 0, kPositions * size * sizeof(double));
      for (Index part = 0; part < parts; part++) {
        const T* from = sums.data() + ((part * in.count + i) * out.count + o) * kSums + ic * size;
        for (Index p = 0; p < kPositions; p++, from += in.size(i) * size) {
          for (Index c = 0; c < size; c++) u[p * size + c] += from[c];
        }
      }
      std::memset(half, 0, 3 * t.size * size * sizeof(double));
      for (int p = 0; p < kPositions; p++) {
        for (int k = 0; k < 3; k++) {
          double* const to = half + (k * t.size + p % t.size) * size;
          for (Index c = 0; c < size; c++) to[c] += t.g[p / t.size][k] * u[p * size + c];
        }
      }
      for (int tap = 0; tap < 9; tap++) {
        double sum[kRange] = {};
        for (int x = 0; x < t.size; x++) {
          const double* const from = half + (tap / 3 * t.size + x) * size;
          for (Index c = 0; c < size; c++) sum[c] += from[c] * t.g[x][tap % 3];
        }
        T* const to = g.dw + o * kRange * g.so + channel * g.si + (g.flip ? 8 - tap : tap);
        for (Index c = 0; c < size; c++) to[c * g.so] = static_cast<T>(g.add ? to[c * g.so] + sum[c] : sum[c]);
      }
    }
  });
}

#define INSTANTIATE(T)                                                                   \
  template bool winograd_suits_gradient(const Kernels<T>&, const WeightGradient<T>&);    \
  template void winograd_weight_gradient(const Run<T>&, const WeightGradient<T>&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace dblr
