#include "winograd.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "norm.h"
#include "threads.h"
#include "winograd_points.h"

namespace dblr {
namespace {

// Tiles in a block: a multiple of every register tile. Of 64 channels, 24 transformed tiles take 216 KB.
// Cut smaller for the sake of equal shares, a block has at least kFewTiles.
constexpr Index kTiles = 24, kFewTiles = 8;
// Output channels between two transforms, and tiles whose input is gathered at a time where it cannot be read in place.
constexpr Index kGroup = 64, kGather = 4;
constexpr Index kMostChannels = 32;  // in a block of weights: two of the widest vectors

Index divide_up(Index a, Index b) { return (a + b - 1) / b; }

template <int M> KernelTransform transform_at_points() {
  using Points = WinogradPoints<M>;
  double point[M + 1] = {};
  for (int i = 0; i < Points::kPairs; i++) {
    point[2 * i + 1] = Points::kPoint[i];
    point[2 * i + 2] = -Points::kPoint[i];
  }
  KernelTransform t = {M + 2, {}};
  for (int i = 0; i <= M; i++) {
    double scale = 1;
    for (int j = 0; j <= M; j++) scale *= j == i ? 1 : point[i] - point[j];
    t.g[i][0] = 1 / scale;
    t.g[i][1] = point[i] / scale;
    t.g[i][2] = point[i] * point[i] / scale;
  }
  t.g[M + 1][2] = 1;
  return t;
}

}  // namespace

KernelTransform kernel_transform(int tile) {
  return tile == 4 ? transform_at_points<4>() : transform_at_points<6>();
}

template <class T> int winograd_tile(const Kernels<T>& k, const Filter<T>& f, int wanted) {
  const bool whole = f.in % k.lanes == 0 && f.out % k.lanes == 0;
  return std::is_same<T, float>::value && whole && f.kernel == 3 && f.in >= 16 && f.out >= 16 ? wanted : 0;
}

template <class T>
void winograd_pack(const Filter<T>& f, const double* scale, int tile, Index first, Index channels, Index stride,
                   Index position, T* to) {
  const KernelTransform t = kernel_transform(tile);
  for (Index i = 0; i < f.in; i++) {
    double half[kMostRows][3][kMostChannels] = {};  // G g, for all channels side by side
    for (int tap = 0; tap < 9; tap++) {
      double value[kMostChannels];
      const T* const from = f.data + first * f.so + i * f.si + (f.flip ? 8 - tap : tap);
      for (Index c = 0; c < channels; c++) value[c] = from[c * f.so] * (scale ? scale[first + c] : 1.0);
      for (int y = 0; y < t.size; y++) {
        const double g = t.g[y][tap / 3];
        for (Index c = 0; c < channels; c++) half[y][tap % 3][c] += g * value[c];
      }
    }
    for (int y = 0; y < t.size; y++) {
      const double(*const h)[kMostChannels] = half[y];
      for (int x = 0; x < t.size; x++) {
        const double *const g = t.g[x];
        T* const u = to + (y * t.size + x) * position + i * stride;
        for (Index c = 0; c < channels; c++) u[c] = static_cast<T>(h[0][c] * g[0] + h[1][c] * g[1] + h[2][c] * g[2]);
      }
    }
  }
}

WinogradTiling::WinogradTiling(const Rect& region, int tile, int threads)
    : tile(tile), y0(region.y0 / tile), x0(region.x0 / tile), down(divide_up(region.y1, tile) - y0),
      across(divide_up(region.x1, tile) - x0), blocks(divide_up(across, kTiles)) {
  const Index even = divide_up(blocks, threads) * threads;
  if (across >= even * kFewTiles) blocks = even;
}

WinogradTiling::Block WinogradTiling::block(Index task) const {
  const Index row = task / blocks, b = task % blocks, first = across * b / blocks;
  return {row / down, y0 + row % down, x0 + first, across * (b + 1) / blocks - first};
}

Tile WinogradTiling::part(const Block& b, const Rect& region) const {
  const Index y = b.row * tile, x = b.col * tile;
  Tile t = {b.n, std::max(y, region.y0), std::max(x, region.x0), 0, 0};
  t.rows = std::min(y + tile, region.y1) - t.y;
  t.cols = std::min(x + b.tiles * tile, region.x1) - t.x;
  return t;
}

template <class T>
void TileLoader<T>::load(const Source<T>& source, const WinogradTiling::Block& b, const Rect& readable, T* rows,
                         T* out) const {
  const Map<const T>& a = source.a;
  const Index side = tile + 2 * halo, y0 = b.row * tile - halo;
  const bool plain = source.load == Load::copy && a.sc == 1 && y0 >= readable.y0 && y0 + side <= readable.y1;
  WinogradInput<T> in = {};
  in.channels = channels;
  in.position = position;
  for (Index i = 0; i < b.tiles; i += kGather) {
    in.tiles = std::min(kGather, b.tiles - i);
    in.out = out + i * channels;
    const Index x0 = (b.col + i) * tile - halo, cols = in.tiles * tile + 2 * halo;
    if (plain && x0 >= readable.x0 && x0 + cols <= readable.x1) {
      in.pixel = a.sw;
      for (Index y = 0; y < side; y++) in.rows[y] = a.data + b.n * a.sn + a.row(y0 + y) + x0 * a.sw + first;
    } else {
      const Index begin = std::clamp(readable.x0 - x0, Index(0), cols);
      const Index end = std::clamp(readable.x1 - x0, begin, cols);
      in.pixel = channels;
      T* to = rows;
      for (Index y = 0; y < side; y++, to += cols * channels) {
        in.rows[y] = to;
        const bool inside = y0 + y >= readable.y0 && y0 + y < readable.y1 && begin < end;
        const Index left = inside ? begin : cols, right = inside ? end : cols;
        std::memset(to, 0, left * channels * sizeof(T));
        std::memset(to + right * channels, 0, (cols - right) * channels * sizeof(T));
        if (!inside) continue;
        kernels.load_row(source, b.n, y0 + y, x0 + begin, end - begin, first, first + channels, to + begin * channels);
      }
    }
    transform(in);
  }
}

template <class T>
WinogradBlocks<T>::WinogradBlocks(const Kernels<T>& kernels, const Weights<T>& w)
    : kernels_(kernels), weights_(w), transforms_(w.tile == 4 ? kernels.winograd4 : kernels.winograd6),
      loader_{kernels, transforms_.input, w.tile, 1, 0, w.in, position<T>(kTiles, w.in)},
      tile_(w.tile), side_(w.tile + 2), group_(std::max<Index>(kGroup / w.width() * w.width(), w.width())) {
  out_position_ = position<T>(kTiles, std::min(group_, w.out));
  rows_ = loader_.rows();
  in_ = side_ * side_ * loader_.position;
  out_ = side_ * side_ * out_position_;
}

template <class T> Index TileLoader<T>::rows() const {
  return (tile + 2 * halo) * (kGather * tile + 2 * halo) * channels;
}

template <class T> Index WinogradBlocks<T>::most_tiles() const { return kTiles; }

template <class T> Index WinogradBlocks<T>::channels(Index group) const {
  return std::min(group_, weights_.out - first_channel(group));
}

template <class T>
void WinogradBlocks<T>::load(const Source<T>& source, const WinogradTiling::Block& b, const Rect& readable,
                             T* scratch) const {
  loader_.load(source, b, readable, scratch, scratch + rows_);
}

template <class T>
WinogradOutput<T> WinogradBlocks<T>::multiply(const WinogradTiling::Block& b, const Rect& region, Index group,
                                              T* scratch) const {
  const Index first = first_channel(group) / weights_.width();
  WinogradProduct<T> p = {};
  p.in = scratch + rows_;
  p.in_position = loader_.position;
  p.positions = side_ * side_;
  p.tiles = b.tiles;
  p.depth = weights_.in;
  p.block = weights_.width() * weights_.in;
  p.weights_position = weights_.blocks * p.block;
  p.weights = weights_.winograd() + first * p.block;
  p.channels = channels(group);
  p.out = scratch + rows_ + in_;
  p.out_position = out_position_;
  kernels_.winograd_product(p);

  WinogradOutput<T> o = {};
  o.in = p.out;
  o.position = out_position_;
  o.tiles = b.tiles;
  o.channels = p.channels;
  o.row0 = region.y0 - b.row * tile_;
  o.row1 = region.y1 - b.row * tile_;
  o.col0 = region.x0 - b.col * tile_;
  o.col1 = region.x1 - b.col * tile_;
  o.bias = weights_.bias(first);
  return o;
}

template <class T> void winograd_convolve(const Run<T>& run, const Convolution<T>& c) {
  const Weights<T>& w = *c.weights;
  const WinogradTiling tiling(c.region, w.tile, c.moments || c.norm_sums ? 1 : run.threads);
  const WinogradBlocks<T> blocks(run.kernels, w);
  const Rect readable = grow(c.region, 1, c.source.a.h, c.source.a.w);
  const Index tasks = c.out.n * tiling.tasks();
  if (c.moments) c.moments->resize(tasks, w.out);
  if (c.norm_sums) c.norm_sums->resize(tasks, w.out);
  parallel(run.threads, tasks, blocks.scratch() + w.out * sizeof(T), [&](Index task, char* memory) {
    T* const scratch = reinterpret_cast<T*>(memory) + w.out;
    const WinogradTiling::Block b = tiling.block(task);
    const Index y = b.row * w.tile, x = b.col * w.tile;
    blocks.load(c.source, b, readable, scratch);
    for (Index group = 0; group < blocks.groups(); group++) {
      auto at = [&](const auto& map) {
        auto p = pixels(map, b.n, y, x);
        if (p.data) p.data += blocks.first_channel(group);
        return p;
      };
      WinogradOutput<T> o = blocks.multiply(b, c.region, group, scratch);
      o.relu = c.relu;
      o.out = at(c.out);
      for (int i = 0; i < 2; i++) o.add[i] = at(c.add[i]);
      o.mask = at(c.mask);
      blocks.store(o);
    }
    const Tile t = tiling.part(b, c.region);
    const Map<const T> out = constant(c.out);
    if (c.moments) tile_moments(run.kernels, out, t, reinterpret_cast<T*>(memory), *c.moments, task);
    if (c.norm_sums) tile_norm_sums(run.kernels, out, c.norm, t, *c.norm_sums, task);
  });
}

#define INSTANTIATE(T)                                                                                              \
  template int winograd_tile(const Kernels<T>&, const Filter<T>&, int);                                             \
  template void winograd_pack(const Filter<T>&, const double*, int, Index, Index, Index, Index, T*);                \
  template struct TileLoader<T>;                                                                                    \
  template class WinogradBlocks<T>;                                                                                 \
  template void winograd_convolve(const Run<T>&, const Convolution<T>&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace dblr
