#include "amx.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "ops.h"
#include "threads.h"

namespace dblr {
namespace {

constexpr Index kPixels = 16, kGroup = 32, kHalf = 16, kTile = kHalf * kGroup;
constexpr Index kTaken = kPixels + 3;  // pixels that 16 outputs read: a neighbour a side, and one that meets zeros
constexpr Index kPiece = 20;           // times 16 pixels side by side in a task
// Weights of a group of output channels up to this size stay in the first-level cache from pixels to pixels; of larger
// ones the pixels stay there, from group to group.
constexpr Index kSmallGroup = 40 << 10;
constexpr int kEdges = 3;  // at most so many times 16 pixels of a row touch an edge: the first, and the last two

// A region in tasks of one or two rows and pieces of a multiple of 16 columns.
struct AmxTiling {
  AmxTiling(const Rect& region, int threads) : region(region), down(divide_up(region.h(), 2)) {
    const Index across = divide_up(region.w(), kPixels);
    pieces = divide_up(across, kPiece);
    if (down * pieces < 2 * threads) pieces = std::min(across, divide_up(2 * threads, down));
    most = divide_up(across, pieces) * kPixels;
  }
  Index tasks() const { return down * pieces; }
  Tile tile(Index task) const {
    const Index n = task / tasks(), y = region.y0 + task % tasks() / pieces * 2, x = region.x0 + task % pieces * most;
    return {n, y, x, std::min<Index>(2, region.y1 - y), std::max<Index>(std::min(most, region.x1 - x), 0)};
  }
  Rect region;
  Index down, pieces, most;
};

void copy_pixels(const AmxKernels&, const Bf16* from, Bf16* to, Index count) {
  std::memcpy(to, from, count * sizeof(Bf16));
}
void copy_pixels(const AmxKernels& k, const float* from, Bf16* to, Index count) { k.narrow(from, to, count); }

// The input of a task: where each row lies from the pixel left of 16 outputs on, as it is in the map where all that is
// read lies within `readable`, else packed with zeros around.
template <class In> class AmxRows {
 public:
  static Index scratch(Index in, Index most) { return (kTaken + (kWhole ? 4 * (most + 3) : kEdges * 4 * kTaken)) * in; }

  AmxRows(const AmxKernels& k, const Map<const In>& m, const Rect& readable, const Tile& t, Index padded, Bf16* scratch)
      : m_(m), readable_(readable), t_(t), zeros_(scratch), packed_(scratch + kTaken * m.c) {
    std::memset(zeros_, 0, kTaken * m.c * sizeof(Bf16));
    for (Index r = 0; r < t.rows + 2; r++) {
      const Index y = t.y - 1 + r;
      const bool inside = y >= readable.y0 && y < readable.y1;
      row_[r] = inside ? m.data + t.n * m.sn + row_of(m, y) : nullptr;
    }
    if (kWhole) pack(k, t.x - 1, t.cols + 3, packed_);
    for (Index x = t.x; !kWhole && x < t.x + t.cols; x += kPixels) {
      const bool inside = x - 1 >= readable.x0 && x + kPixels + 1 + padded <= readable.x1;
      if (inside) continue;
      edge_[edges_] = x;
      pack(k, x - 1, kTaken, packed_ + edges_++ * 4 * kTaken * m.c);
    }
  }
  void rows(Index x, const Bf16* to[4]) const {
    if (kWhole) {
      for (Index r = 0; r < t_.rows + 2; r++) to[r] = packed_ + (r * (t_.cols + 3) + x - t_.x) * m_.c;
      return;
    }
    for (int e = 0; e < edges_; e++) {
      if (edge_[e] != x) continue;
      for (Index r = 0; r < t_.rows + 2; r++) to[r] = packed_ + (e * 4 + r) * kTaken * m_.c;
      return;
    }
    if constexpr (!kWhole) {
      for (Index r = 0; r < t_.rows + 2; r++) to[r] = row_[r] ? row_[r] + (x - 1) * m_.sw : zeros_;
    }
  }

 private:
  static constexpr bool kWhole = !std::is_same<In, Bf16>::value;  // other types are converted, all of a task at once
  void pack(const AmxKernels& k, Index x0, Index cols, Bf16* to) const {
    const Index begin = std::clamp(readable_.x0 - x0, Index(0), cols);
    const Index end = std::clamp(readable_.x1 - x0, begin, cols);
    for (Index r = 0; r < t_.rows + 2; r++, to += cols * m_.c) {
      const Index left = row_[r] ? begin : cols, right = row_[r] ? end : cols;
      std::memset(to, 0, left * m_.c * sizeof(Bf16));
      std::memset(to + right * m_.c, 0, (cols - right) * m_.c * sizeof(Bf16));
      if (left < right) copy_pixels(k, row_[r] + (x0 + begin) * m_.sw, to + begin * m_.c, (end - begin) * m_.c);
    }
  }
  const Map<const In>& m_;
  const Rect& readable_;
  const Tile& t_;
  Bf16 *zeros_, *packed_;
  const In* row_[4] = {};  // from the picture's first column on; null: all zero
  Index edge_[kEdges] = {};
  int edges_ = 0;
};

// f(group, x) for all groups of output channels and all 16 pixels of a task, in the order that suits the caches.
template <class F> void each_product(const AmxWeights& w, const Tile& t, const F& f) {
  const Index end = t.x + t.cols;
  if (w.group_size() * static_cast<Index>(sizeof(Bf16)) <= kSmallGroup) {
    for (Index g = 0; g < w.groups; g++) {
      for (Index x = t.x; x < end; x += kPixels) f(g, x);
    }
  } else {
    for (Index x = t.x; x < end; x += kPixels) {
      for (Index g = 0; g < w.groups; g++) f(g, x);
    }
  }
}

// Everything of a product but its rows and what follows the bias.
AmxProduct amx_product(const AmxWeights& w, Index g, const Tile& t, Index x) {
  AmxProduct p = {};
  p.pixel = w.in;
  p.kernel_rows = w.kernel_rows;
  p.steps = w.steps;
  p.out_rows = t.rows;
  p.weights = w.group(g);
  p.cols = std::min(kPixels, t.x + t.cols - x);
  p.channels = std::min(kGroup, w.out - g * kGroup);
  p.bias = w.bias(g);
  p.least = -INFINITY;
  return p;
}

// Products one after the other, each finished while the next one runs. Registers are this thread's as long as it lives.
class AmxSeries {
 public:
  explicit AmxSeries(const AmxKernels& k) : k_(k) { k.begin(); }
  ~AmxSeries() { k_.end(); }
  void add(const AmxProduct& p) {
    products_[turn_] = p;
    k_.product(&products_[turn_], sums_[turn_], before_, sums_[1 - turn_]);
    before_ = &products_[turn_];
    turn_ = 1 - turn_;
  }
  // All that was added is where it goes.
  void finish() {
    if (before_) k_.product(nullptr, nullptr, before_, sums_[1 - turn_]);
    before_ = nullptr;
  }
  // The sums of one alone, with nothing to follow.
  const float* sums_of(const AmxProduct& p) {
    finish();
    k_.product(&p, sums_[turn_], nullptr, nullptr);
    return sums_[turn_];
  }

 private:
  const AmxKernels& k_;
  AmxProduct products_[2];
  const AmxProduct* before_ = nullptr;
  int turn_ = 0;
  alignas(64) float sums_[2][AmxProduct::kSums];
};

}  // namespace

bool amx_suits(Index in, Index out) { return in % 16 == 0 && out % 16 == 0; }

AmxWeights::AmxWeights(const AmxKernels& kernels, int threads, const Filter<float>& f, const float* bias)
    : kernels(kernels), in(f.in), out(f.out), kernel_rows(f.kernel), steps(divide_up(f.kernel * f.in, kGroup)),
      groups(divide_up(f.out, kGroup)), data_(groups * group_size()), bias_(groups * kGroup) {
  parallel(threads, groups, 0, [&](Index g, char*) {
    Bf16* const to = data_.data() + g * group_size();
    for (Index c = 0; c < kGroup; c++) {
      const Index o = g * kGroup + c;
      bias_[o] = bias && o < out ? bias[o] : 0.0f;
    }
    // A kernel row is one run: pixel by pixel its channels.
    for (Index row = 0; row < kernel_rows; row++) {
      for (Index k = 0; k < steps * kGroup; k++) {
        const Index dx = k / in, channel = k % in, tap = row * f.kernel + dx;
        const Index from = channel * f.si + (f.flip ? f.kernel * f.kernel - 1 - tap : tap);
        Bf16* const tiles = to + (row * steps + k / kGroup) * 2 * kTile + k % kGroup / 2 * 2 * kHalf + k % 2;
        for (Index c = 0; c < kGroup; c++) {
          const Index o = g * kGroup + c;
          const bool real = o < out && dx < f.kernel;
          tiles[c / kHalf * kTile + c % kHalf * 2] = to_bf16(real ? f.data[o * f.so + from] : 0.0f);
        }
      }
    }
  });
}

template <class In>
void amx_convolve(const Run<float>& run, const AmxWeights& w, const Convolution<float, In, Bf16>& c) {
  if (c.region.h() <= 0 || c.region.w() <= 0) return;
  const AmxKernels& k = w.kernels;
  const Map<const In>& m = map_of(c.source);
  const AmxTiling tiling(c.region, run.threads);
  const Rect readable = grow(c.region, 1, m.h, m.w);
  const Index padded = w.kernel_rows * w.in % kGroup != 0;
  parallel(run.threads, c.out.n * tiling.tasks(), AmxRows<In>::scratch(w.in, tiling.most) * sizeof(Bf16),
           [&](Index task, char* scratch) {
    const Tile t = tiling.tile(task);
    if (t.cols == 0) return;
    const AmxRows<In> rows(k, m, readable, t, padded, reinterpret_cast<Bf16*>(scratch));
    Bf16* out[2] = {};
    const Bf16* add[2][2] = {};
    for (Index r = 0; r < t.rows; r++) {
      out[r] = pixels(c.out, t.n, t.y + r, 0).data;
      for (int i = 0; i < 2; i++) add[i][r] = pixels(c.add[i], t.n, t.y + r, 0).data;
    }
    AmxSeries series(k);
    each_product(w, t, [&](Index g, Index x) {
      AmxProduct p = amx_product(w, g, t, x);
      rows.rows(x, p.rows);
      if (c.relu) p.least = 0;
      p.out_pixel = c.out.sw;
      for (Index r = 0; r < t.rows; r++) {
        p.out[r] = out[r] + x * c.out.sw + g * kGroup;
        for (int i = 0; i < 2; i++) p.add[i][r] = add[i][r] ? add[i][r] + x * c.add[i].sw + g * kGroup : nullptr;
      }
      for (int i = 0; i < 2; i++) p.add_pixel[i] = c.add[i].sw;
      series.add(p);
    });
    series.finish();
  });
}

std::size_t amx_tail_scratch(const AmxWeights& second) {
  return (AmxRows<Bf16>::scratch(second.in, 0) + 2 * kPixels * second.out) * sizeof(Bf16);
}

void amx_tail(int threads, Map<const Bf16> h1, const AmxWeights& second, const AmxWeights& last, const Rect& region,
              Map<float> taps) {
  const AmxKernels& k = second.kernels;
  const AmxTiling tiling(region, threads);
  const Rect readable = grow(region, 1, h1.h, h1.w);
  const Index padded = second.kernel_rows * second.in % kGroup != 0;
  parallel(threads, h1.n * tiling.tasks(), amx_tail_scratch(second), [&](Index task, char* scratch) {
    const Tile t = tiling.tile(task);
    if (t.cols == 0) return;
    Bf16 *const h2 = reinterpret_cast<Bf16*>(scratch), *const below = h2 + kPixels * second.out;
    const AmxRows<Bf16> rows(k, h1, readable, t, padded, below + kPixels * second.out);
    AmxSeries series(k);
    for (Index x = t.x; x < t.x + t.cols; x += kPixels) {
      for (Index g = 0; g < second.groups; g++) {
        AmxProduct p = amx_product(second, g, t, x);
        rows.rows(x, p.rows);
        p.least = 0;
        p.out_pixel = second.out;
        p.out[0] = h2 + g * kGroup;
        p.out[1] = below + g * kGroup;
        series.add(p);
      }
      series.finish();
      AmxProduct p = amx_product(last, 0, t, x);
      p.rows[0] = h2;
      p.rows[1] = below;
      const float* const sums = series.sums_of(p);
      for (Index r = 0; r < t.rows; r++) {
        float* const to = taps.data + t.n * taps.sn + row_of(taps, t.y + r) + x;
        for (Index tap = 0; tap < last.out; tap++) {
          for (Index i = 0; i < p.cols; i++) to[tap * taps.sc + i] = sums[AmxProduct::at(r, i, tap)];
        }
      }
    }
  });
}

template void amx_convolve(const Run<float>&, const AmxWeights&, const Convolution<float, float, Bf16>&);
template void amx_convolve(const Run<float>&, const AmxWeights&, const Convolution<float, Bf16, Bf16>&);

}  // namespace dblr
