#include <algorithm>
#include <type_traits>

#include "threads.h"
#include "weight_gradient.h"
#include "winograd.h"

namespace dblr {
namespace {

// Channels in and out that one task sums: 576 KB of sums in float32, 144 of taps. All of them are read and written a
// block of tiles: the more tiles, the less often.
constexpr Index kRange = 64, kTiles = 32;
// Tasks are (group of blocks) x (range of channels in) x (range out), at least kTasks where there are blocks enough,
// and at least kParts groups, to keep sums short. As in the direct kernels the groups are added up in order.
constexpr Index kTasks = 16, kParts = 2;

// The kernels for maps of a type: products are made in it too.
template <class T, class S> struct GradientKernels {
  void (*input)(const WinogradInput<S, S>&);
  void (*dz)(const WinogradInput<S, S>&);
  void (*gradient)(const WinogradGradient<T, S>&);
};
template <class S, class T> GradientKernels<T, S> kernels_for(const Run<T>& run) {
  if constexpr (std::is_same<S, T>::value) {
    return {run.kernels.winograd4.input, run.kernels.winograd_dz, run.kernels.winograd_gradient};
  } else {
    return {run.bf16->input_pairs, run.bf16->dz_pairs, run.bf16->gradient};
  }
}

}  // namespace

template <class T, class S> bool winograd_suits_gradient(const Kernels<T>& k, const WeightGradient<T, S>& g) {
  const Filter<T> filter = {nullptr, g.dz.a.c, g.x.a.c, 0, 0, false, 3};
  return winograd_tile(k, filter) != 0;
}

template <class T, class S> void winograd_weight_gradient(const Run<T>& run, const WeightGradient<T, S>& g) {
  constexpr Index kTile = 4, kPositions = 36, kTaps = 9, kPairs = kRange * kRange;
  const ChannelRanges in(g.x.a.c, kRange), out(g.dz.a.c, kRange);
  const WinogradTiling tiling(g.region, kTile, 1, kTiles);
  const Index blocks = g.dz.a.n * tiling.tasks(), ranges = in.count * out.count;
  const Index parts = std::min(blocks, std::max(kParts, kTasks / ranges));
  const Index most = position<S>(divide_up(tiling.most_tiles(), 2) * 2, kRange);
  const auto kernels = kernels_for<S>(run);
  const Index together = std::is_same<S, T>::value ? 1 : 2;  // as products are made
  const TileLoader<T, S, S> x = {run, kernels.input, kTile, 1, 0, kRange, most, together};
  const TileLoader<T, S, S> dz = {run, kernels.dz, kTile, 0, 0, kRange, most, together};
  const Rect readable = grow(g.region, 1, g.x.a.h, g.x.a.w);
  Buffer<T> taps(parts * ranges * kTaps * kPairs);

  const Index scratch = std::max(x.rows(), dz.rows()) + kPositions * 2 * most;
  parallel(run.threads, parts * ranges, kPositions * kPairs * sizeof(T) + scratch * sizeof(S),
           [&](Index task, char* memory) {
    const Index part = task / ranges, i = task / out.count % in.count, o = task % out.count;
    T* const sums = reinterpret_cast<T*>(memory);
    S *const tx = reinterpret_cast<S*>(sums + kPositions * kPairs), *const tdz = tx + kPositions * most;
    S* const rows = tdz + kPositions * most;
    TileLoader<T, S, S> load_x = x, load_dz = dz;
    load_x.first = i * kRange;
    load_x.channels = in.size(i);
    load_dz.first = o * kRange;
    load_dz.channels = out.size(o);
    WinogradGradient<T, S> w = {tx, tdz, most, most, kPositions, 0, in.size(i), out.size(o), sums, true, nullptr, nullptr};
    thread_local std::vector<Ahead> ahead;
    const Index last = blocks * (part + 1) / parts - 1;
    for (Index b = blocks * part / parts; b <= last; b++) {
      const WinogradTiling::Block block = tiling.block(b);
      load_x.load(g.x, block, readable, rows, tx);
      load_dz.load(g.dz, block, g.region, rows, tdz);
      w.tiles = block.tiles;
      ahead.clear();
      if (b < last) {
        load_x.fetch(g.x, tiling.block(b + 1), ahead);
        load_dz.fetch(g.dz, tiling.block(b + 1), ahead);
      }
      w.ahead = ahead.data();
      w.ahead_end = w.ahead + ahead.size();
      kernels.gradient(w);
      w.first = false;
    }
    run.kernels.winograd_taps(sums, w.in_channels * w.out_channels, taps.data() + task * kTaps * kPairs);
  });

  // One input channel at a time, output channels side by side.
  parallel(run.threads, in.channels, 0, [&](Index channel, char*) {
    const Index i = channel / kRange, ic = channel % kRange;
    for (Index o = 0; o < out.count; o++) {
      const Index size = out.size(o);
      for (Index tap = 0; tap < kTaps; tap++) {
        double sum[kRange] = {};
        for (Index part = 0; part < parts; part++) {
          const Index task = (part * in.count + i) * out.count + o;
          const T* const from = taps.data() + task * kTaps * kPairs + (tap * in.size(i) + ic) * size;
          for (Index c = 0; c < size; c++) sum[c] += from[c];
        }
        T* const to = g.dw + o * kRange * g.so + channel * g.si + (g.flip ? kTaps - 1 - tap : tap);
        for (Index c = 0; c < size; c++) to[c * g.so] = static_cast<T>(g.add ? to[c * g.so] + sum[c] : sum[c]);
      }
    }
  });
}

#define INSTANTIATE(T, S)                                                                   \
  template bool winograd_suits_gradient(const Kernels<T>&, const WeightGradient<T, S>&);    \
  template void winograd_weight_gradient(const Run<T>&, const WeightGradient<T, S>&);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(float, Bf16)

}  // namespace dblr
