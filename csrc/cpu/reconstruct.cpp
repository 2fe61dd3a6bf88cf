#include <algorithm>
#include <cstring>

#include "ops.h"
#include "threads.h"
#include "weight_gradient.h"

namespace dblr {
namespace {

// Of L34's tile with what it needs around it. Larger than other tiles: its halo is computed, not only loaded.
constexpr Index kTailRows = 16, kTailCols = 30;
constexpr Index kTaps = 9;

// How the tail is tiled, and what a thread's scratch holds: tiles of x and h1 with their halos, one block of
// channels of h2, the nine sums of each pixel.
template <class T> struct Plan {
  Plan(const Tail<T>& tail, const Rect& region) : tiling(1, 1, 1, 1) {
    tiling.rows = std::min(region.h(), kTailRows);
    tiling.cols = std::min(region.w(), kTailCols);
    tiling.down = (region.h() + tiling.rows - 1) / tiling.rows;
    tiling.across = (region.w() + tiling.cols - 1) / tiling.cols;
    const Index area = tiling.rows * tiling.cols;
    x = (tiling.rows + 4) * (tiling.cols + 4) * tail.first->in;
    h1 = (tiling.rows + 2) * (tiling.cols + 2) * tail.second->in;
    block = area * tail.second->channels(0);
    sums = area * kTaps;
  }
  std::size_t bytes() const { return (x + h1 + block + sums) * sizeof(T); }
  Tiling tiling;
  Index x, h1, block, sums;
};

// L34 of one tile, block by block: ReLU, to h2 (or scratch), and at once contracted with the nine taps of L35
// into `sums` [pixel][tap], which go to the planes.
template <class T>
void second_and_taps(const Run<T>& run, const Tail<T>& tail, const Tile& t, const T* h1, Map<T> h2, T* block,
                     T* sums, Map<T> taps) {
  const Weights<T>&second = *tail.second, &last = *tail.last;
  const Index in_row = (t.cols + 2) * second.in;
  for (Index b = 0; b < second.blocks; b++) {
    const Index channels = second.channels(b);
    Pixels<T> out = {block, t.cols * channels, channels};
    if (h2.data) {
      out = pixels(h2, t.n, t.y, t.x);
      out.data += second.first_channel(b);
    }
    Product<T> p = product<T>(second, b, {h1, in_row, second.in}, t.rows, t.cols, out);
    p.relu = true;
    run.kernels.multiply(p);
    for (Index l = 0; l < last.blocks; l++) {
      Pixels<T> to = {sums + last.first_channel(l), t.cols * kTaps, kTaps};
      Product<T> q = product<T>(last, l, {out.data, out.row, out.pixel}, t.rows, t.cols, to);
      q.run = channels;
      q.weights += second.first_channel(b) * last.vectors(l) * run.kernels.lanes;
      q.accumulate = b > 0;
      run.kernels.multiply(q);
    }
  }
  for (Index tap = 0; tap < kTaps; tap++) {
    const T* from = sums + tap;
    for (Index y = 0; y < t.rows; y++) {
      T* to = taps.data + t.n * taps.sn + tap * taps.sc + (t.y + y) * taps.sh + t.x * taps.sw;
      for (Index x = 0; x < t.cols; x++, from += kTaps) to[x] = *from;
    }
  }
}

// y[p] = bias + sum over taps of plane[tap][p + tap], planes being zero outside the picture.
template <class T> void add_taps(const Run<T>& run, Map<const T> taps, T bias, const Rect& region, Map<T> y) {
  parallel(run.threads, y.n * region.h(), 0, [&](Index task, char*) {
    const Index n = task / region.h(), row = region.y0 + task % region.h();
    T* const to = y.data + n * y.sn + row * y.sh + region.x0 * y.sw;
    for (Index x = 0; x < region.w(); x++) to[x * y.sw] = bias;
    for (Index dy = 0; dy < 3; dy++) {
      const Index from_row = row + dy - 1;
      if (from_row < 0 || from_row >= y.h) continue;
      for (Index dx = 0; dx < 3; dx++) {
        const T* from = taps.data + n * taps.sn + (dy * 3 + dx) * taps.sc + from_row * taps.sh;
        const Index x0 = std::max<Index>(region.x0, 1 - dx), x1 = std::min(region.x1, y.w + 1 - dx);
        for (Index x = x0; x < x1; x++) to[(x - region.x0) * y.sw] += from[x + dx - 1];
      }
    }
  });
}

}  // namespace

template <class T> Filter<T> tap_filter(const T* w3, Index in) { return {w3, kTaps, in, 1, kTaps, false, 1}; }

template <class T> std::size_t reconstruct_scratch(const Tail<T>& tail, const Rect& region, Index h, Index w) {
  return Plan<T>(tail, grow(region, 1, h, w)).bytes();
}

template <class T>
void reconstruct(const Run<T>& run, Map<const T> x, const Tail<T>& tail, const Rect& region, Map<T> taps, Map<T> y,
                 Map<T> h1, Map<T> h2) {
  if (region.h() <= 0 || region.w() <= 0) return;
  const Weights<T>& first = *tail.first;
  const Rect around = grow(region, 1, x.h, x.w);
  if (h1.data) {
    Convolution<T> c;
    c.source = copy_of(x);
    c.weights = &first;
    c.region = around;
    c.out = h1;
    c.relu = true;
    convolve(run, c);
  }
  const Plan<T> plan(tail, around);
  parallel(run.threads, x.n * plan.tiling.tiles(), plan.bytes(), [&](Index task, char* scratch) {
    const Tile t = tile_at(plan.tiling, around, task);
    T *const in = reinterpret_cast<T*>(scratch), *const middle = in + plan.x, *const block = middle + plan.h1,
             *const sums = block + plan.block;
    if (h1.data) {
      load_tile(run.kernels, copy_of(constant(h1)), t, 1, middle);
    } else {
      load_tile(run.kernels, copy_of(x), t, 2, in);
      middle_tile(run.kernels, first, t, x.h, x.w, in, middle);
    }
    second_and_taps(run, tail, t, middle, h2, block, sums, taps);
  });
  add_taps(run, constant(taps), tail.bias, region, y);
}

template <class T>
void reconstruct_backward(int threads, Map<const T> grad, Map<const T> x, Map<const T> h1, Map<const T> h2,
                          const ConvPair<T>& p, const T* w3, Map<T> dh1, Map<T> dh2, Map<T> dx, T* dw1, T* db1,
                          T* dw2, T* db2, T* dw3, T* db3) {
  const Run<T> run(threads);
  const Rect all = whole(x.h, x.w);
  // L35 has one output channel. With the roles of input and gradient exchanged, and the kernel turned, its
  // weight gradient has one input channel instead and fills the vectors.
  weight_gradient<T>(run, {copy_of(grad), copy_of(h2), all, dw3, 9, p.out * 9, true});
  Norm<T> plain(1);
  TileSums sums;
  norm_sums(run, plain.gradient(grad, grad, false), sums);
  double bias = 0;
  for (double s : sums.s0) bias += s;
  *db3 = static_cast<T>(bias);

  const auto back = [&](Map<const T> from, const T* w, Index out, Index in, Map<T> to, Map<const T> mask) {
    const Weights<T> weights(run, backward_filter(w, out, in));
    Convolution<T> c;
    c.source = copy_of(from);
    c.weights = &weights;
    c.region = all;
    c.out = to;
    c.mask = mask;
    convolve(run, c);
  };
  back(grad, w3, 1, p.out, dh2, h2);
  weight_gradient<T>(run, {copy_of(h1), copy_of(constant(dh2)), all, dw2, p.middle * 9, 9, false, false, db2});
  back(constant(dh2), p.w2, p.out, p.middle, dh1, h1);
  weight_gradient<T>(run, {copy_of(x), copy_of(constant(dh1)), all, dw1, p.in * 9, 9, false, false, db1});
  if (dx.data) back(constant(dh1), p.w1, p.middle, p.in, dx, {});
}

#define INSTANTIATE(T)                                                                                              \
  template Filter<T> tap_filter(const T*, Index);                                                                   \
  template std::size_t reconstruct_scratch(const Tail<T>&, const Rect&, Index, Index);                              \
  template void reconstruct(const Run<T>&, Map<const T>, const Tail<T>&, const Rect&, Map<T>, Map<T>, Map<T>,       \
                            Map<T>);                                                                                \
  template void reconstruct_backward(int, Map<const T>, Map<const T>, Map<const T>, Map<const T>,                   \
                                     const ConvPair<T>&, const T*, Map<T>, Map<T>, Map<T>, T*, T*, T*, T*, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace dblr
