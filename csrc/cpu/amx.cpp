#include "amx.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "ahead.h"
#include "norm.h"
#include "threads.h"

namespace dblr {
namespace {

constexpr Index kPixels = 16, kGroup = 32, kHalf = 16, kTile = kHalf * kGroup;
constexpr Index kTaken = kPixels + 3;  // pixels that 16 outputs read: a neighbour a side, and one that meets zeros
// Weights of a group of output channels up to this size stay in the first-level cache from pixels to pixels; of larger
// ones the pixels stay there, from group to group. Split ones, which are too many for the second level, stay in that.
constexpr Index kSmallGroup = 40 << 10;
constexpr Index kEdges = 3;  // at most so many times 16 pixels of a row touch an edge: the first, and the last two

// A task's rows and times 16 pixels side by side: of maps read in place; and of others, which are packed, where more
// rows share those around them. Sums go with the latter too, for many tasks have many sums to merge.
struct AmxShape {
  Index rows, pieces;
};
constexpr AmxShape kInPlace = {2, 20}, kPacked = {8, 8};
constexpr Index kTailPixels = 128;  // of a row, whose L34 is held for L35
constexpr Index kMostTaken = kPacked.rows + 2;  // rows that a task reads

// A region in such tasks. threads: tasks are cut smaller to give each some; 1 where results depend on the tasks.
struct AmxTiling {
  AmxTiling(const Rect& region, int threads, const AmxShape& shape)
      : region(region), rows(shape.rows), down(divide_up(region.h(), rows)) {
    const Index across = divide_up(region.w(), kPixels);
    pieces = divide_up(across, shape.pieces);
    if (down * pieces < 2 * threads) pieces = std::min(across, divide_up(2 * threads, down));
    most = divide_up(across, pieces) * kPixels;
    pieces = divide_up(region.w(), most);
  }
  Index tasks() const { return down * pieces; }
  Tile tile(Index task) const {
    const Index n = task / tasks(), down_at = task % tasks() / pieces, across_at = task % pieces;
    const Index y = region.y0 + down_at * rows, x = region.x0 + across_at * most;
    return {n, y, x, std::min(rows, region.y1 - y), std::min(most, region.x1 - x)};
  }
  Rect region;
  Index rows, down, pieces, most;
};

template <class S> bool in_place(const Source<float, S>& s, Index pixel) {
  return std::is_same<S, Bf16>::value && s.load == Load::copy && s.a.sc == 1 && s.a.sw == pixel;
}

// Of columns x0 <= x < x0 + cols of a row those that can be read: load(begin, end) fills them, from x0 on. Zeros
// elsewhere.
template <class F>
void load_readable(const Rect& readable, Index y, Index x0, Index cols, Index pixel, Bf16* to, const F& load) {
  const bool inside = y >= readable.y0 && y < readable.y1;
  const Index begin = inside ? std::clamp(readable.x0 - x0, Index(0), cols) : cols;
  const Index end = std::clamp(readable.x1 - x0, begin, cols);
  std::memset(to, 0, begin * pixel * sizeof(Bf16));
  std::memset(to + end * pixel, 0, (cols - end) * pixel * sizeof(Bf16));
  if (begin < end) load(begin, end);
}

void load_row(const AmxWeights& w, const Source<float, Bf16>& s, const Rect& readable, Index n, Index y, Index x0,
              Index cols, Bf16* to) {
  amx_load_row(w.kernels, s, readable, n, y, x0, cols, 0, s.a.c, w.pixel, to);
}
void load_row(const AmxWeights& w, const Source<float>& s, const Rect& readable, Index n, Index y, Index x0, Index cols,
              Bf16* to) {
  load_readable(readable, y, x0, cols, w.pixel, to, [&](Index begin, Index end) {
    const float* const from = s.a.data + n * s.a.sn + row_of(s.a, y) + (x0 + begin) * s.a.sw;
    if (w.split) return w.kernels.split(from, end - begin, w.in, to + begin * w.pixel, w.low());
    w.kernels.narrow(from, to + begin * w.pixel, (end - begin) * w.pixel);
  });
}

// The input of a task: where each row lies from the pixel left of 16 outputs on, as it is in the map where all that is
// read lies within `readable`, else packed with zeros around.
template <class In> class AmxRows {
 public:
  static Index scratch(Index pixel, const AmxTiling& t) {
    return (t.rows + 2) * std::max(t.most + 3, kEdges * kTaken) * pixel;
  }

  AmxRows(const AmxWeights& w, const Source<float, In>& s, const Rect& readable, const Tile& t, Bf16* scratch)
      : t_(t), pixel_(w.pixel), packed_(scratch),
        whole_(!in_place(s, w.pixel) || t.y - 1 < readable.y0 || t.y + t.rows + 1 > readable.y1) {
    const auto pack = [&](Index x0, Index cols, Bf16* to) {
      for (Index r = 0; r < t.rows + 2; r++, to += cols * pixel_) {
        load_row(w, s, readable, t.n, t.y - 1 + r, x0, cols, to);
      }
    };
    if (whole_) {
      pack(t.x - 1, t.cols + 3, packed_);
      return;
    }
    map_pixel_ = s.a.sw;
    for (Index r = 0; r < t.rows + 2; r++) {
      row_[r] = reinterpret_cast<const Bf16*>(s.a.data + t.n * s.a.sn + row_of(s.a, t.y - 1 + r));
    }
    const Index more = w.kernel_rows * pixel_ % kGroup != 0;  // pixels read beyond those that count
    for (Index x = t.x; x < t.x + t.cols; x += kPixels) {
      if (x - 1 >= readable.x0 && x + kPixels + 1 + more <= readable.x1) continue;
      edge_[edges_] = x;
      pack(x - 1, kTaken, packed_ + edges_++ * (t.rows + 2) * kTaken * pixel_);
    }
  }
  // For outputs of rows r and r + 1 of the task, from column x on; gives how many columns lie in a row from there.
  Index rows(Index r, Index x, const Bf16* to[4]) const {
    const Index count = std::min<Index>(4, t_.rows + 2 - r), end = t_.x + t_.cols;
    if (whole_) {
      for (Index i = 0; i < count; i++) to[i] = packed_ + ((r + i) * (t_.cols + 3) + x - t_.x) * pixel_;
      return end - x;
    }
    int e = 0;
    while (e < edges_ && edge_[e] < x) e++;
    if (e < edges_ && edge_[e] == x) {
      for (Index i = 0; i < count; i++) to[i] = packed_ + (e * (t_.rows + 2) + r + i) * kTaken * pixel_;
      return std::min(kPixels, end - x);
    }
    for (Index i = 0; i < count; i++) to[i] = row_[r + i] + (x - 1) * map_pixel_;
    return (e < edges_ ? edge_[e] : end) - x;
  }

 private:
  const Tile& t_;
  Index pixel_, map_pixel_ = 0;
  Bf16* packed_;
  bool whole_;
  const Bf16* row_[kMostTaken] = {};  // from the picture's first column on
  Index edge_[kEdges] = {};
  int edges_ = 0;
};

// Rows of a task in a map that may be null.
template <class S> struct RowsOf {
  RowsOf(const Map<S>& m, const Tile& t) : pixel(m.sw) {
    for (Index r = 0; r < t.rows; r++) row[r] = pixels(m, t.n, t.y + r, 0).data;
  }
  S* at(Index r, Index x, Index channel) const { return row[r] ? row[r] + x * pixel + channel : nullptr; }
  Index pixel;
  S* row[kPacked.rows];
};

// Everything of a product of rows r and r + 1 but where they are, how long, and what follows the bias.
AmxProduct amx_product(const AmxWeights& w, Index g, const Tile& t, Index r) {
  AmxProduct p = {};
  p.pixel = w.pixel;
  p.low = w.low();
  p.out_low = w.out_low();
  p.kernel_rows = w.kernel_rows;
  p.steps = w.steps;
  p.out_rows = std::min<Index>(2, t.rows - r);
  p.weights = w.group(g);
  p.channels = std::min(kGroup, w.out - g * kGroup);
  p.bias = w.bias(g);
  p.least = -INFINITY;
  return p;
}

// Registers are this thread's as long as it lives.
class AmxRegisters {
 public:
  explicit AmxRegisters(const AmxKernels& k) : k_(k) { k.begin(); }
  ~AmxRegisters() { k_.end(); }

 private:
  const AmxKernels& k_;
};

void run_products(const AmxKernels& k, const std::vector<AmxProduct>& products, const std::vector<Ahead>& ahead) {
  Index steps = 0;
  for (const AmxProduct& p : products) steps += divide_up(p.pixels, kPixels) * p.kernel_rows * p.steps;
  const AmxRegisters registers(k);
  k.products({products.data(), products.data() + products.size(), ahead.data(), ahead.data() + ahead.size(),
              lines_a_step(ahead, steps)});
}

// All products of a task, in the order that suits the caches. Where each begins, f(product, group, row, x) adds.
template <class In, class F>
void add_products(const AmxWeights& w, const AmxRows<In>& rows, const Tile& t, const F& f,
                  std::vector<AmxProduct>& products) {
  const bool small = w.split || w.group_size() * static_cast<Index>(sizeof(Bf16)) <= kSmallGroup;
  const Index together = small ? 1 : w.groups;
  for (Index g = 0; g < w.groups; g += together) {
    for (Index r = 0; r < t.rows; r += 2) {
      for (Index x = t.x, next; x < t.x + t.cols; x = next) {
        AmxProduct p;
        for (Index i = g; i < g + together; i++) {
          p = amx_product(w, i, t, r);
          p.pixels = rows.rows(r, x, p.rows);
          if (!small) p.pixels = std::min(p.pixels, kPixels);
          f(p, i, r, x);
          products.push_back(p);
        }
        next = x + p.pixels;
      }
    }
  }
}

}  // namespace

bool amx_suits(Index in, Index out, bool split) {
  return in % kAmxChannels == 0 && out % (split ? kSplitChannels : kAmxChannels) == 0;
}

AmxWeights::AmxWeights(const AmxKernels& kernels, int threads, const Filter<float>& f, const float* bias,
                       const double* scale, bool split)
    : kernels(kernels), in(f.in), out(f.out), kernel_rows(f.kernel), split(split),
      pixel(split ? 2 * split_filled(f.in) : amx_filled(f.in)),
      steps(divide_up(f.kernel * (split ? pixel / 2 : pixel), kGroup)), groups(divide_up(f.out, kGroup)),
      data_(groups * group_size()), bias_(groups * kGroup) {
  const Index channels = split ? pixel / 2 : pixel, tiles = split ? 4 : 2;
  parallel(threads, groups, 0, [&](Index g, char*) {
    Bf16* const to = data_.data() + g * group_size();
    for (Index c = 0; c < kGroup; c++) {
      const Index o = g * kGroup + c;
      bias_[o] = bias && o < out ? bias[o] : 0.0f;
    }
    // A kernel row is one run: pixel by pixel its channels.
    for (Index row = 0; row < kernel_rows; row++) {
      for (Index k = 0; k < steps * kGroup; k++) {
        const Index dx = k / channels, channel = k % channels, tap = row * f.kernel + dx;
        const Index from = channel * f.si + (f.flip ? f.kernel * f.kernel - 1 - tap : tap);
        Bf16* const step = to + (row * steps + k / kGroup) * tiles * kTile + k % kGroup / 2 * 2 * kHalf + k % 2;
        for (Index c = 0; c < kGroup; c++) {
          const Index o = g * kGroup + c;
          float value = 0;
          if (o < out && dx < f.kernel && channel < in) value = f.data[o * f.so + from];
          if (scale && o < out) value = static_cast<float>(value * scale[o]);
          Bf16* const at = step + c / kHalf * kTile + c % kHalf * 2;
          const Bf16 high = to_bf16(value);
          if (split) *at = to_bf16(value - to_float(high));
          at[split ? 2 * kTile : 0] = high;
        }
      }
    }
  });
}

void amx_load_row(const AmxKernels& k, const Source<float, Bf16>& source, const Rect& readable, Index n, Index y,
                  Index x0, Index cols, Index c0, Index c1, Index pixel, Bf16* to) {
  load_readable(readable, y, x0, cols, pixel, to, [&](Index begin, Index end) {
    const Index channels = c1 - c0;
    k.maps.load_row(source, n, y, x0 + begin, end - begin, c0, c1, to + begin * pixel);
    if (channels == pixel) return;
    for (Index x = end - 1; x >= begin; x--) {  // from the last on, each to its place behind
      std::memmove(to + x * pixel, to + begin * pixel + (x - begin) * channels, channels * sizeof(Bf16));
      std::memset(to + x * pixel + channels, 0, (pixel - channels) * sizeof(Bf16));
    }
  });
}

template <class In>
Stage amx_stage(const Run<float>& run, const AmxWeights& w, const Convolution<float, In, Bf16>& c) {
  if (c.region.h() <= 0 || c.region.w() <= 0) return {};
  const bool sums = c.moments || c.norm_sums;
  const bool packed = !in_place(c.source, w.pixel);
  const AmxTiling tiling(c.region, sums ? 1 : run.threads, sums || packed ? kPacked : kInPlace);
  const Rect readable = grow(c.region, 1, c.source.a.h, c.source.a.w);
  const Index tasks = c.out.n * tiling.tasks();
  if (c.moments) c.moments->resize(tasks, w.out);
  if (c.norm_sums) c.norm_sums->resize(tasks, w.out);
  const std::size_t size = AmxRows<In>::scratch(w.pixel, tiling) * sizeof(Bf16);  // then means of channels
  Stage stage = {tasks, size + w.out * sizeof(float)};
  stage.part = [tiling](Index task) { return covered(tiling.tile(task)); };
  stage.run = [=, &w](Index task, Index next, char* scratch) {
    const Tile t = tiling.tile(task);
    const AmxRows<In> rows(w, c.source, readable, t, reinterpret_cast<Bf16*>(scratch));
    const RowsOf<Bf16> to(c.out, t);
    const RowsOf<const Bf16> add[2] = {{c.add[0], t}, {c.add[1], t}}, mask(c.mask, t);
    thread_local std::vector<AmxProduct> products;
    products.clear();
    const auto place = [&](AmxProduct& p, Index g, Index r, Index x) {
      if (c.relu) p.least = 0;
      p.out_pixel = to.pixel;
      p.mask_pixel = mask.pixel;
      for (int a = 0; a < 2; a++) p.add_pixel[a] = add[a].pixel;
      for (Index i = 0; i < p.out_rows; i++) {
        p.out[i] = to.at(r + i, x, g * kGroup);
        p.mask[i] = mask.at(r + i, x, g * kGroup);
        for (int a = 0; a < 2; a++) p.add[a][i] = add[a].at(r + i, x, g * kGroup);
      }
    };
    add_products(w, rows, t, place, products);
    thread_local std::vector<Ahead> ahead;
    ahead.clear();
    if (sums || packed) fetch_output(c, t, 0, w.out, ahead);
    if (next >= 0) {
      const Tile then = tiling.tile(next);
      // What a strip reads was the last layer's work and is near, but split it is twice as much.
      if (sums || packed || w.split) fetch_input(c.source, then, ahead);
      for (const auto& map : c.add) fetch_part(map, then.n, covered(then), 0, map.c, false, ahead);
    }
    run_products(w.kernels, products, ahead);
    const Map<const Bf16> out = constant(c.out);
    if (c.moments) tile_moments(w.kernels.maps, out, t, reinterpret_cast<float*>(scratch + size), *c.moments, task);
    if (c.norm_sums) tile_norm_sums(w.kernels.maps, c.norm, t, *c.norm_sums, task);
  };
  return stage;
}

std::size_t amx_tail_scratch(const AmxWeights& second, const AmxWeights& last) {
  const AmxTiling any({0, 1, 0, 1}, 1, kInPlace);
  return (AmxRows<Bf16>::scratch(second.pixel, any) + 2 * kTailPixels * last.pixel) * sizeof(Bf16);
}

Stage amx_tail_stage(int threads, Map<const Bf16> h1, const AmxWeights& second, const AmxWeights& last,
                     const Rect& region, Map<Bf16> h2, Map<float> taps) {
  const AmxTiling tiling(region, threads, kInPlace);
  const Rect readable = grow(region, 1, h1.h, h1.w);
  const Source<float, Bf16> source = copy_of<float>(h1);
  const Index row = kTailPixels * last.pixel;
  const Index size = AmxRows<Bf16>::scratch(second.pixel, tiling) + 2 * row;
  Stage stage = {h1.n * tiling.tasks(), size * sizeof(Bf16)};
  stage.part = [tiling](Index task) { return covered(tiling.tile(task)); };
  stage.run = [=, &second, &last](Index task, Index, char* scratch) {
    const Tile t = tiling.tile(task);
    Bf16* const kept = reinterpret_cast<Bf16*>(scratch);
    const AmxRows<Bf16> rows(second, source, readable, t, kept + 2 * row);
    std::memset(kept, 0, 2 * row * sizeof(Bf16));
    const AmxRegisters registers(second.kernels);
    thread_local std::vector<AmxProduct> products;
    for (Index x0 = t.x; x0 < t.x + t.cols; x0 += kTailPixels) {
      const Index cols = std::min(kTailPixels, t.x + t.cols - x0);
      products.clear();
      for (Index g = 0; g < second.groups; g++) {
        AmxProduct p = amx_product(second, g, t, 0);
        p.least = 0;
        p.out_pixel = last.pixel;
        for (Index x = 0; x < cols; x += p.pixels) {
          p.pixels = std::min(rows.rows(0, x0 + x, p.rows), cols - x);
          for (Index r = 0; r < 2; r++) p.out[r] = kept + r * row + x * last.pixel + g * kGroup;
          products.push_back(p);
        }
      }
      second.kernels.products({products.data(), products.data() + products.size(), nullptr, nullptr, 0});
      AmxProduct p = amx_product(last, 0, t, 0);
      alignas(64) float sums[AmxProduct::kSums];
      for (Index x = 0; x < cols; x += kPixels) {
        for (Index r = 0; r < 2; r++) p.rows[r] = kept + r * row + x * last.pixel;
        last.kernels.sums(p, sums);
        for (Index r = 0; r < t.rows; r++) {
          float* const to = taps.data + t.n * taps.sn + row_of(taps, t.y + r) + x0 + x;
          for (Index tap = 0; tap < last.out; tap++) {
            for (Index i = 0; i < std::min(kPixels, cols - x); i++) {
              to[tap * taps.sc + i] = sums[AmxProduct::at(r, i, tap)];
            }
          }
        }
      }
      for (Index r = 0; h2.data && r < t.rows; r++) {
        const Pixels<Bf16> keep = pixels(h2, t.n, t.y + r, x0);
        for (Index i = 0; i < cols; i++) {
          std::memcpy(keep.data + i * keep.pixel, kept + r * row + i * last.pixel, second.out * sizeof(Bf16));
        }
      }
    }
  };
  return stage;
}

template Stage amx_stage(const Run<float>&, const AmxWeights&, const Convolution<float, float, Bf16>&);
template Stage amx_stage(const Run<float>&, const AmxWeights&, const Convolution<float, Bf16, Bf16>&);

}  // namespace dblr
