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
// Tasks are (part of the blocks) x (range of channels in) x (range out), at least kTasks where there are blocks enough,
// and no part has more than kLongest, to keep sums short. As in the direct kernels the parts are added up in order.
constexpr Index kTasks = 16, kLongest = 16;

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

namespace {

// The weight gradient's sums: a task's are those over its part of the blocks of tiles, for its ranges of channels.
template <class T, class S> class WeightSums {
 public:
  WeightSums(const Run<T>& run, const WeightGradient<T, S>& g)
      : run_(run), g_(g), in_(g.x.a.c, kRange), out_(g.dz.a.c, kRange), tiling_(g.region, kTile, 1, kTiles),
        kernels_(kernels_for<S>(run)), most_(position<S>(divide_up(tiling_.most_tiles(), 2) * 2, kRange)),
        readable_(grow(g.region, 1, g.x.a.h, g.x.a.w)), x_{run, kernels_.input, kTile, 1, 0, kRange, most_, kTogether},
        dz_{run, kernels_.dz, kTile, 0, 0, kRange, most_, kTogether} {
    parts_ = std::min(blocks(), std::max(divide_up(blocks(), kLongest), kTasks / ranges()));
    taps_ = Buffer<T>(parts_ * ranges() * kTaps * kPairs);
  }
  Index blocks() const { return g_.dz.a.n * tiling_.tasks(); }
  Index ranges() const { return in_.count * out_.count; }
  Index tasks() const { return parts_ * ranges(); }
  Index first(Index task) const { return blocks() * (task / ranges()) / parts_; }
  Index end(Index task) const { return blocks() * (task / ranges() + 1) / parts_; }
  std::size_t sums() const { return kPositions * kPairs * sizeof(T); }
  std::size_t scratch() const { return (std::max(x_.rows(), dz_.rows()) + kPositions * 2 * most_) * sizeof(S); }
  void fetch_x(Index task, Index block, std::vector<Ahead>& ahead) const {
    loader(x_, in_, in(task)).fetch(g_.x, tiling_.block(block), ahead);
  }
  void fetch_dz(Index task, Index block, std::vector<Ahead>& ahead) const {
    loader(dz_, out_, out(task)).fetch(g_.dz, tiling_.block(block), ahead);
  }
  // Adds a block of a task to its sums.
  void add(Index task, Index block, char* sums, char* scratch, const std::vector<Ahead>& ahead) const {
    const WinogradTiling::Block b = tiling_.block(block);
    S *const tx = reinterpret_cast<S*>(scratch), *const tdz = tx + kPositions * most_;
    S* const rows = tdz + kPositions * most_;
    loader(x_, in_, in(task)).load(g_.x, b, readable_, rows, tx);
    loader(dz_, out_, out(task)).load(g_.dz, b, g_.region, rows, tdz);
    kernels_.gradient({tx, tdz, most_, most_, kPositions, b.tiles, in_.size(in(task)), out_.size(out(task)),
                       reinterpret_cast<T*>(sums), block == first(task), ahead.data(), ahead.data() + ahead.size()});
  }
  // After a task's last block.
  void finish(Index task, const char* sums) {
    const Index pairs = in_.size(in(task)) * out_.size(out(task));
    run_.kernels.winograd_taps(reinterpret_cast<const T*>(sums), pairs, taps_.data() + task * kTaps * kPairs);
  }
  // After all tasks: a few input channels at a time, output channels side by side.
  void write() const {
    const Index tasks = divide_up(kRange, kFew) * ranges();
    parallel(run_.threads, tasks, kFew * kRange * sizeof(double), [&](Index task, char* memory) {
      double* const sum = reinterpret_cast<double*>(memory);
      const Index range = task % ranges(), i = in(range), o = out(range), size = out_.size(o);
      const Index ic = task / ranges() * kFew, count = std::min(kFew, in_.size(i) - ic);
      for (Index tap = 0; count > 0 && tap < kTaps; tap++) {
        std::fill_n(sum, count * size, 0.0);
        for (Index part = 0; part < parts_; part++) {
          const Index from_task = part * ranges() + range;
          const T* const from = taps_.data() + from_task * kTaps * kPairs + (tap * in_.size(i) + ic) * size;
          for (Index c = 0; c < count * size; c++) sum[c] += from[c];
        }
        T* const to = g_.dw + o * kRange * g_.so + (i * kRange + ic) * g_.si + (g_.flip ? kTaps - 1 - tap : tap);
        for (Index n = 0; n < count; n++) {
          for (Index c = 0; c < size; c++) {
            T& at = to[c * g_.so + n * g_.si];
            at = static_cast<T>(g_.add ? at + sum[n * size + c] : sum[n * size + c]);
          }
        }
      }
    });
  }

 private:
  static constexpr Index kTile = 4, kPositions = 36, kTaps = 9, kPairs = kRange * kRange, kFew = 8;
  static constexpr Index kTogether = std::is_same<S, T>::value ? 1 : 2;  // tiles, as products are made
  using Loader = TileLoader<T, S, S>;
  Index in(Index task) const { return task / out_.count % in_.count; }
  Index out(Index task) const { return task % out_.count; }
  static Loader loader(const Loader& all, const ChannelRanges& ranges, Index range) {
    return {all.run, all.transform, all.tile, all.halo, range * kRange, ranges.size(range), all.position, all.together};
  }
  const Run<T>& run_;
  const WeightGradient<T, S>& g_;
  ChannelRanges in_, out_;
  WinogradTiling tiling_;
  GradientKernels<T, S> kernels_;
  Index most_;
  Rect readable_;
  Loader x_, dz_;
  Index parts_;
  Buffer<T> taps_;
};

template <class T, class S> void add_all(const Run<T>& run, WeightSums<T, S>& sums) {
  parallel(run.threads, sums.tasks(), sums.sums() + sums.scratch(), [&](Index task, char* memory) {
    thread_local std::vector<Ahead> ahead;
    for (Index b = sums.first(task); b < sums.end(task); b++) {
      ahead.clear();
      if (b + 1 < sums.end(task)) {
        sums.fetch_x(task, b + 1, ahead);
        sums.fetch_dz(task, b + 1, ahead);
      }
      sums.add(task, b, memory, memory + sums.sums(), ahead);
    }
    sums.finish(task, memory);
  });
  sums.write();
}

// Both gradients of a block of tiles, one after the other: what they read comes from memory once. Many threads would
// not find enough parts, and take one gradient after the other; the blocks are the same, and so are the bits.
template <class T, class S>
void winograd_gradients(const Run<T>& run, const Weights<T>& w, const Convolution<T, S, S>& c,
                        const WeightGradient<T, S>& g) {
  WeightSums<T, S> sums(run, g);
  const BlockConvolution<S, T, S, S> data(run, w, c, kTiles, 1);
  if (run.threads > sums.tasks() / 2) {
    run_stage(run.threads, data.stage());
    return add_all(run, sums);
  }
  const std::size_t scratch = std::max(sums.scratch(), data.scratch());
  parallel(run.threads, sums.tasks(), sums.sums() + scratch, [&](Index task, char* memory) {
    thread_local std::vector<Ahead> ahead;
    for (Index b = sums.first(task); b < sums.end(task); b++) {
      ahead.clear();
      sums.fetch_x(task, b, ahead);
      data.compute(b, memory + sums.sums(), ahead);
      ahead.clear();
      if (b + 1 < sums.end(task)) data.fetch(b + 1, ahead);
      sums.add(task, b, memory, memory + sums.sums(), ahead);
    }
    sums.finish(task, memory);
  });
  sums.write();
}

template <class T> const Weights<T>* winograd_weights(const Weights<T>& w) { return w.tile ? &w : nullptr; }
const Weights<float>* winograd_weights(const Bf16Weights& w) { return w.plain && w.plain->bf16 ? &*w.plain : nullptr; }

}  // namespace

template <class T, class S> void winograd_weight_gradient(const Run<T>& run, const WeightGradient<T, S>& g) {
  WeightSums<T, S> sums(run, g);
  add_all(run, sums);
}

template <class T, class S>
void gradients(const Run<T>& run, const Filter<T>& weights, const Convolution<T, S, S>& c,
               const WeightGradient<T, S>& g) {
  if (!c.out.data) return weight_gradient(run, g);
  const auto w = gradient_weights<S>(run, weights);
  const Weights<T>* const winograd = winograd_weights(w);
  const bool one_range = g.x.a.c <= kRange && g.dz.a.c <= kRange;
  if (winograd && one_range && winograd_suits_gradient(run.kernels, g)) return winograd_gradients(run, *winograd, c, g);
  convolve(run, w, c);
  weight_gradient(run, g);
}

#define INSTANTIATE(T, S)                                                                        \
  template bool winograd_suits_gradient(const Kernels<T>&, const WeightGradient<T, S>&);         \
  template void winograd_weight_gradient(const Run<T>&, const WeightGradient<T, S>&);            \
  template void gradients(const Run<T>&, const Filter<T>&, const Convolution<T, S, S>&,          \
                          const WeightGradient<T, S>&);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(float, Bf16)

}  // namespace dblr
