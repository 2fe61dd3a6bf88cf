#include <algorithm>
#include <cstring>
#include <type_traits>

#include "ops.h"
#include "strips.h"
#include "weight_gradient.h"
#include "winograd.h"

namespace dblr {
namespace {

constexpr Index kTaps = 9;
// Tiles of L34 where it goes without Winograd.
constexpr Index kTailRows = 16, kTailCols = 30;
// Pixels of a band of the backward pass.
constexpr Index kBandPixels = 8 * 1024;

// Adds to `sums` [pixel][tap] of a tile what the channels of h2 from `first` on give: `from` holds them.
template <class T>
void contract(const Run<T>& run, const Weights<T>& last, const Tile& t, Pixels<const T> from, Index first,
              Index channels, T* sums) {
  for (Index l = 0; l < last.blocks; l++) {
    Pixels<T> to = {sums + last.first_channel(l), t.cols * kTaps, kTaps};
    Product<T> p = product<T>(last, l, from, t.rows, t.cols, to);
    p.run = channels;
    p.weights += first * last.vectors(l) * run.kernels.lanes;
    p.accumulate = first > 0;
    run.kernels.multiply(p);
  }
}

template <class T> void spread_taps(const Tile& t, const T* sums, Map<T> taps) {
  for (Index tap = 0; tap < kTaps; tap++) {
    const T* from = sums + tap;
    for (Index y = 0; y < t.rows; y++) {
      T* to = taps.data + t.n * taps.sn + tap * taps.sc + row_of(taps, t.y + y) + t.x * taps.sw;
      for (Index x = 0; x < t.cols; x++, from += kTaps) to[x] = *from;
    }
  }
}

// What a thread's scratch holds, in elements: L34's own, a block of channels of h2, the nine sums of each pixel.
struct TailScratch {
  Index own, block, sums;
};
template <class T> TailScratch scratch_of(const Run<T>& run, const Weights<T>& second) {
  if (second.tile) {
    const WinogradBlocks<T, T> blocks(run, second, winograd_block(second.tile, second.in));
    const Index pixels = blocks.most_tiles() * second.tile * second.tile;
    return {static_cast<Index>(blocks.scratch() / sizeof(T)), pixels * blocks.channels(0), pixels * kTaps};
  }
  const Index pixels = kTailRows * kTailCols;
  return {(kTailRows + 3) * (kTailCols + 2) * second.in, pixels * second.channels(0), pixels * kTaps};
}

// A block of channels of a tile of h2, made in T, to its map if that is kept in another type.
template <class T, class S>
void keep_narrowed(const Run<T>& run, const Tile& t, Pixels<const T> from, Index first, Index channels, Map<S> h2) {
  if constexpr (std::is_same<S, Bf16>::value) {
    if (!h2.data) return;
    Pixels<S> to = pixels(h2, t.n, t.y, t.x);
    to.data += first;
    run.bf16->narrow({from, to, t.rows, t.cols, channels});
  }
}

template <class T, class In, class V>
Stage products_by_winograd(const Run<T>& run, Map<const In> h1, const Tail<T>& tail, const Rect& region, Map<In> h2,
                          Map<T> taps) {
  const Rect readable = grow(region, 1, h1.h, h1.w);
  const Source<T, In> source = copy_of<T>(h1);
  const Weights<T>&second = *tail.second, &last = *tail.last;
  const TailScratch size = scratch_of(run, second);
  const Index most = winograd_block(second.tile, second.in);
  const WinogradTiling tiling(region, second.tile, run.threads, most, taps.shift);
  const WinogradBlocks<T, In, V> blocks(run, second, most);
  Stage stage = {h1.n * tiling.tasks(), tail_scratch(run, tail)};
  stage.part = [tiling, region](Index task) { return covered(tiling.part(tiling.block(task), region)); };
  stage.run = [=, &run, &second, &last](Index task, Index, char* memory) {
    T *const scratch = reinterpret_cast<T*>(memory), *const kept = scratch + size.own, *const sums = kept + size.block;
    const WinogradTiling::Block b = tiling.block(task);
    const Tile t = tiling.part(b, region);
    blocks.load(source, b, readable, scratch);
    for (Index group = 0; group < blocks.groups(); group++) {
      const Index first = blocks.first_channel(group), channels = blocks.channels(group);
      WinogradOutput<T, T> o = blocks.template multiply<T>(b, region, group, scratch);
      o.relu = true;
      Pixels<T> out = {kept, b.tiles * second.tile * channels, channels};
      if constexpr (std::is_same<In, T>::value) {
        if (h2.data) {
          out = pixels(h2, b.n, b.y, b.x);
          out.data += first;
        }
      }
      o.out.pixel = out.pixel;
      for (Index y = 0; y < second.tile; y++) o.out.row[y] = out.data + y * out.row;
      blocks.store(o);
      const T* from = out.data + (t.y - b.y) * out.row + (t.x - b.x) * out.pixel;
      contract(run, last, t, {from, out.row, out.pixel}, first, channels, sums);
      keep_narrowed(run, t, {from, out.row, out.pixel}, first, channels, h2);
    }
    spread_taps(t, sums, taps);
  };
  return stage;
}

template <class T, class S>
Stage products_directly(const Run<T>& run, Map<const S> h1, const Tail<T>& tail, const Rect& region, Map<S> h2,
                       Map<T> taps) {
  const Weights<T>&second = *tail.second, &last = *tail.last;
  const TailScratch size = scratch_of(run, second);
  Tiling tiling(1, 1, 1, 1);
  tiling.rows = std::min(region.h(), kTailRows);
  tiling.cols = std::min(region.w(), kTailCols);
  tiling.down = (region.h() + tiling.rows - 1) / tiling.rows;
  tiling.across = (region.w() + tiling.cols - 1) / tiling.cols;
  Stage stage = {h1.n * tiling.tiles(), tail_scratch(run, tail)};
  stage.part = [tiling, region](Index task) { return covered(tile_at(tiling, region, task)); };
  stage.run = [=, &run, &second, &last](Index task, Index, char* memory) {
    const Tile t = tile_at(tiling, region, task);
    T *const in = reinterpret_cast<T*>(memory), *const kept = in + size.own, *const sums = kept + size.block;
    S* const row = reinterpret_cast<S*>(in + (kTailRows + 2) * (kTailCols + 2) * second.in);
    load_tile(run, copy_of<T>(h1), t, 1, in, row);
    for (Index b = 0; b < second.blocks; b++) {
      const Index channels = second.channels(b), first = second.first_channel(b);
      Pixels<T> out = {kept, t.cols * channels, channels};
      if constexpr (std::is_same<S, T>::value) {
        if (h2.data) {
          out = pixels(h2, t.n, t.y, t.x);
          out.data += first;
        }
      }
      Product<T> p = product<T>(second, b, {in, (t.cols + 2) * second.in, second.in}, t.rows, t.cols, out);
      p.relu = true;
      run.kernels.multiply(p);
      contract(run, last, t, {out.data, out.row, out.pixel}, first, channels, sums);
      keep_narrowed(run, t, {out.data, out.row, out.pixel}, first, channels, h2);
    }
    spread_taps(t, sums, taps);
  };
  return stage;
}

}  // namespace

// y[p] = bias + sum over taps of plane[tap][p + tap], planes being zero outside the picture.
template <class T> Stage taps_stage(Map<const T> taps, T bias, const Rect& region, Map<T> y) {
  Stage stage = {y.n * region.h()};
  stage.run = [=](Index task, Index, char*) {
    const Index n = task / region.h(), row = region.y0 + task % region.h();
    T* const to = y.data + n * y.sn + row * y.sh + region.x0 * y.sw;
    for (Index x = 0; x < region.w(); x++) to[x * y.sw] = bias;
    for (Index dy = 0; dy < 3; dy++) {
      const Index from_row = row + dy - 1;
      if (from_row < 0 || from_row >= y.h) continue;
      for (Index dx = 0; dx < 3; dx++) {
        const T* from = taps.data + n * taps.sn + (dy * 3 + dx) * taps.sc + row_of(taps, from_row);
        const Index x0 = std::max<Index>(region.x0, 1 - dx), x1 = std::min(region.x1, y.w + 1 - dx);
        for (Index x = x0; x < x1; x++) to[(x - region.x0) * y.sw] += from[x + dx - 1];
      }
    }
  };
  return stage;
}

template <class T> Filter<T> tap_filter(const T* w3, Index in) { return {w3, kTaps, in, 1, kTaps, false, 1}; }

template <class T> std::size_t tail_scratch(const Run<T>& run, const Tail<T>& tail) {
  const TailScratch s = scratch_of(run, *tail.second);
  return (s.own + s.block + s.sums) * sizeof(T);
}

template <class T, class S>
Stage tail_stage(const Run<T>& run, Map<const S> h1, const Tail<T>& tail, const Rect& region, Map<S> h2, Map<T> taps) {
  if (!tail.second->tile) return products_directly(run, h1, tail, region, h2, taps);
  if constexpr (std::is_same<S, Bf16>::value) {
    if (tail.second->bf16) return products_by_winograd<T, S, Bf16>(run, h1, tail, region, h2, taps);
  }
  return products_by_winograd<T, S, T>(run, h1, tail, region, h2, taps);
}

template <class T, class S>
void reconstruct(const Run<T>& run, Map<const S> x, const Tail<T, WeightsFor<T, S>>& tail, const Rect& region, Map<T> taps, Map<T> y,
                 Map<S> h1, Map<S> h2) {
  if (region.h() <= 0 || region.w() <= 0) return;
  const Rect around = grow(region, 1, x.h, x.w);
  const auto products = [&](const Map<const S>& from, const Rect& part, const Map<S>& kept, const Map<T>& to) {
    if constexpr (std::is_same<S, T>::value) {
      run_stage(run.threads, tail_stage(run, from, tail, part, kept, to));
    } else if (run.amx) {
      const AmxWeights &second = *tail.second->amx, &last = *tail.last->amx;
      run_stage(run.threads, amx_tail_stage(run.threads, from, second, last, part, kept, to));
    } else {
      const Tail<T> plain = {&*tail.first->plain, &*tail.second->plain, &*tail.last->plain, tail.bias};
      run_stage(run.threads, tail_stage(run, from, plain, part, kept, to));
    }
  };
  if (h1.data) {
    Convolution<T, S, S> first;
    first.source = copy_of<T>(x);
    first.region = around;
    first.out = h1;
    first.relu = true;
    convolve(run, *tail.first, first);
    products(constant(h1), around, h2, taps);
  } else {
    feed<T, S>(run, x, *tail.first, around, [&](Index n, const Map<const S>& rows, const Rect& strip) {
      products(rows, strip, {}, picture_of(taps, n));
    });
  }
  run_stage(run.threads, taps_stage(constant(taps), tail.bias, region, y));
}

// Gradients of the two wide maps are held for a band of rows at a time, with the rows around it that the next
// convolution reads.
template <class T, class S>
void reconstruct_backward(int threads, Map<const S> grad, Map<const S> x, Map<const S> h1, Map<const S> h2,
                          const ConvPair<T>& p, const T* w3, Map<S> dx, T* dw1, T* db1, T* dw2, T* db2, T* dw3,
                          T* db3) {
  const Run<T> run(threads);
  const Index h = x.h, w = x.w, band_rows = std::min(h, std::max<Index>(kBandPixels / w, 16));
  // L35 has one output channel. With the roles of input and gradient exchanged, and the kernel turned, its
  // weight gradient has one input channel instead and fills the vectors.
  using Gradient = WeightGradient<T, S>;
  weight_gradient(run, Gradient{copy_of<T>(grad), copy_of<T>(h2), whole(h, w), dw3, 9, p.out * 9, true});
  Norm<T> plain(1);
  TileSums sums;
  norm_sums(run, plain.gradient(grad, grad, false), sums);
  double bias = 0;
  for (double s : sums.s0) bias += s;
  *db3 = static_cast<T>(bias);

  const auto third = gradient_weights<S>(run, backward_filter(w3, 1, p.out));
  const auto second = gradient_weights<S>(run, backward_filter(p.w2, p.out, p.middle));
  const auto first = gradient_weights<S>(run, backward_filter(p.w1, p.middle, p.in));
  const auto back = [&](const Map<const S>& from, const WeightsFor<T, S>& weights, const Rect& region,
                        const Map<S>& to, const Map<const S>& mask) {
    Convolution<T, S, S> c;
    c.source = copy_of<T>(from);
    c.region = region;
    c.out = to;
    c.mask = mask;
    convolve(run, weights, c);
  };
  Buffer<S> dh1_data(std::min(h, band_rows + 2) * w * p.middle), dh2_data(std::min(h, band_rows + 4) * w * p.out);
  bool add = false;
  for (Index n = 0; n < x.n; n++) {
    const auto picture = [n](const auto& map) { return picture_of(map, n); };
    for (Index y0 = 0; y0 < h; y0 += band_rows, add = true) {
      const Rect band = {y0, std::min(h, y0 + band_rows), 0, w}, one = grow(band, 1, h, w), two = grow(band, 2, h, w);
      const Map<S> dh1 = part_of_picture(dh1_data.data(), p.middle, one, h, w);
      const Map<S> dh2 = part_of_picture(dh2_data.data(), p.out, two, h, w);
      back(picture(grad), third, two, dh2, picture(h2));
      const Source<T, S> dz1 = copy_of<T>(constant(dh1)), dz2 = copy_of<T>(constant(dh2));
      weight_gradient(run, Gradient{copy_of<T>(picture(h1)), dz2, band, dw2, p.middle * 9, 9, false, add, db2});
      back(constant(dh2), second, one, dh1, picture(h1));
      weight_gradient(run, Gradient{copy_of<T>(picture(x)), dz1, band, dw1, p.in * 9, 9, false, add, db1});
      if (dx.data) back(constant(dh1), first, band, picture(dx), {});
    }
  }
}

#define INSTANTIATE(T)                                                                                              \
  template Filter<T> tap_filter(const T*, Index);                                                                   \
  template std::size_t tail_scratch(const Run<T>&, const Tail<T>&);                                                 \
  template Stage taps_stage(Map<const T>, T, const Rect&, Map<T>);
INSTANTIATE(float)
INSTANTIATE(double)
#define INSTANTIATE_MAPS(T, S)                                                                                      \
  template Stage tail_stage(const Run<T>&, Map<const S>, const Tail<T>&, const Rect&, Map<S>, Map<T>);              \
  template void reconstruct(const Run<T>&, Map<const S>, const Tail<T, WeightsFor<T, S>>&, const Rect&, Map<T>,     \
                            Map<T>, Map<S>, Map<S>);                                                                \
  template void reconstruct_backward(int, Map<const S>, Map<const S>, Map<const S>, Map<const S>,                   \
                                     const ConvPair<T>&, const T*, Map<S>, T*, T*, T*, T*, T*, T*);
INSTANTIATE_MAPS(float, float)
INSTANTIATE_MAPS(double, double)
INSTANTIATE_MAPS(float, Bf16)

}  // namespace dblr
