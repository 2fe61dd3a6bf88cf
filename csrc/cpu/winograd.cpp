#include "winograd.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "ahead.h"
#include "norm.h"
#include "winograd_points.h"

namespace dblr {
namespace {

// Tiles in a block, a multiple of every register tile; cut smaller for the sake of equal shares, a block has at least
// kFewTiles. Of 64 channels, 24 transformed tiles of F(4x4) take 216 KB, of F(6x6) 384 KB, of F(8x8) 600 KB, and their
// products as much: the last two do not fit into 512 KB, and half as many do, or nearly. Wider maps fit in no case, and
// more tiles then share the weights.
constexpr Index kTiles = 24, kTilesInSmallCache = 12, kFewTiles = 8;
constexpr Index kSmallCache = 1 << 20, kNarrow = 64;
// Output channels between two transforms, and tiles whose input is gathered at a time where it cannot be read in place.
constexpr Index kGroup = 64, kGather = 4;
constexpr Index kMostChannels = 32;  // in a block of weights: two of the widest vectors

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

template <class V> V rounded(double x) {
  if constexpr (std::is_same<V, Bf16>::value) {
    return to_bf16(static_cast<float>(x));
  } else {
    return static_cast<V>(x);
  }
}

// The transforms of a tile's side for maps of a type.
template <class S, class T> const Winograd<T, S>& transforms(const Run<T>& run, Index tile) {
  if constexpr (std::is_same<S, T>::value) {
    return tile == 4 ? run.kernels.winograd4 : tile == 6 ? run.kernels.winograd6 : run.kernels.winograd8;
  } else if constexpr (std::is_same<S, Bf16>::value) {
    return tile == 4 ? run.bf16->winograd4 : run.bf16->winograd8;
  } else {
    return run.kernels.winograd8_half;
  }
}

template <class V, class In, class T> auto input_transform(const Run<T>& run, Index tile) {
  if constexpr (std::is_same<V, T>::value) {
    return transforms<In>(run, tile).input;
  } else if constexpr (std::is_same<In, T>::value) {
    return run.bf16->input_of_float;
  } else {
    return run.bf16->input;
  }
}

template <class T, class S> bool as_it_is(const Source<T, S>& s) { return s.load == Load::copy && s.a.sc == 1; }

// to[x - x0][c - c0]: columns x0 <= x < x0 + cols of row y, channels c0 <= c < c1; all within the picture.
template <class T, class S>
void read_row(const Run<T>& run, const Source<T, S>& s, Index n, Index y, Index x0, Index cols, Index c0, Index c1,
              S* to) {
  maps_of<S>(run).load_row(s, n, y, x0, cols, c0, c1, to);
}
template <class T>
void read_row(const Run<T>&, const Source<T, Half>& s, Index n, Index y, Index x0, Index cols, Index c0, Index c1,
              Half* to) {
  const Map<const Half>& m = s.a;
  const Half* from = m.data + n * m.sn + row_of(m, y) + x0 * m.sw + c0;
  for (Index x = 0; x < cols; x++, from += m.sw, to += c1 - c0) std::memcpy(to, from, (c1 - c0) * sizeof(Half));
}

}  // namespace

KernelTransform kernel_transform(int tile) {
  return tile == 4 ? transform_at_points<4>() : tile == 6 ? transform_at_points<6>() : transform_at_points<8>();
}

template <class T> int winograd_tile(const Kernels<T>& k, const Filter<T>& f, int wanted) {
  const bool whole = f.in % k.lanes == 0 && f.out % k.lanes == 0;
  return std::is_same<T, float>::value && whole && f.kernel == 3 && f.in >= 16 && f.out >= 16 ? wanted : 0;
}

template <class T, class V>
void winograd_pack(const Filter<T>& f, const double* scale, int tile, Index first, Index channels, Index stride,
                   Index position, V* to) {
  constexpr Index kTogether = std::is_same<V, Bf16>::value ? 2 : 1;
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
        V* const u = to + (y * t.size + x) * position + i / kTogether * kTogether * stride + i % kTogether;
        for (Index c = 0; c < channels; c++) {
          u[c * kTogether] = rounded<V>(h[0][c] * g[0] + h[1][c] * g[1] + h[2][c] * g[2]);
        }
      }
    }
  }
}

Index winograd_block(Index tile, Index in) {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const long cache = sysconf(_SC_LEVEL2_CACHE_SIZE);  // 0 or -1 where it is not known
#else
  static const long cache = 0;
#endif
  return tile > 4 && in <= kNarrow && cache < kSmallCache ? kTilesInSmallCache : kTiles;
}

WinogradTiling::WinogradTiling(const Rect& region, int tile, int threads, Index most, Index shift)
    : tile(tile), shift(shift), y0((region.y0 + shift) / tile), x0(region.x0 / tile),
      down(divide_up(region.y1 + shift, tile) - y0), across(divide_up(region.x1, tile) - x0),
      blocks(divide_up(across, most)) {
  const Index even = divide_up(blocks, threads) * threads;
  if (down * blocks % threads != 0 && across >= even * kFewTiles) blocks = even;
}

WinogradTiling::Block WinogradTiling::block(Index task) const {
  const Index n = task / tasks(), at = task % tasks();
  // By columns where they are more than rows: threads' parts then have short borders.
  const bool columns = blocks > down;
  const Index row = columns ? at % down : at / blocks, b = columns ? at / down : at % blocks;
  const Index first = across * b / blocks;
  return {n, (y0 + row) * tile - shift, (x0 + first) * tile, across * (b + 1) / blocks - first};
}

Tile WinogradTiling::part(const Block& b, const Rect& region) const {
  Tile t = {b.n, std::max(b.y, region.y0), std::max(b.x, region.x0), 0, 0};
  t.rows = std::min(b.y + tile, region.y1) - t.y;
  t.cols = std::min(b.x + b.tiles * tile, region.x1) - t.x;
  return t;
}

template <class T, class In, class V>
void TileLoader<T, In, V>::load(const Source<T, In>& source, const WinogradTiling::Block& b, const Rect& readable,
                                In* rows, V* out) const {
  const Map<const In>& a = source.a;
  const Index side = tile + 2 * halo, y0 = b.y - halo;
  const bool plain = as_it_is(source) && y0 >= readable.y0 && y0 + side <= readable.y1;
  WinogradInput<V, In> in = {};
  in.channels = channels;
  in.out = out;
  in.position = position;
  for (Index i = 0; i < b.tiles; i += in.tiles) {
    const Index x0 = b.x + i * tile - halo, within = (readable.x1 - 2 * halo - x0) / tile;
    in.tiles = !plain ? kGather : x0 < readable.x0 || within < together ? together : within / together * together;
    in.tiles = std::min(in.tiles, b.tiles - i);
    in.first = i;
    const Index cols = in.tiles * tile + 2 * halo;
    if (plain && x0 >= readable.x0 && x0 + cols <= readable.x1) {
      in.pixel = a.sw;
      for (Index y = 0; y < side; y++) in.rows[y] = a.data + b.n * a.sn + row_of(a, y0 + y) + x0 * a.sw + first;
    } else {
      const Index begin = std::clamp(readable.x0 - x0, Index(0), cols);
      const Index end = std::clamp(readable.x1 - x0, begin, cols);
      in.pixel = channels;
      In* to = rows;
      for (Index y = 0; y < side; y++, to += cols * channels) {
        in.rows[y] = to;
        const bool inside = y0 + y >= readable.y0 && y0 + y < readable.y1 && begin < end;
        const Index left = inside ? begin : cols, right = inside ? end : cols;
        std::memset(to, 0, left * channels * sizeof(In));
        std::memset(to + right * channels, 0, (cols - right) * channels * sizeof(In));
        if (!inside) continue;
        read_row(run, source, b.n, y0 + y, x0 + begin, end - begin, first, first + channels, to + begin * channels);
      }
    }
    transform(in);
  }
}

template <class T, class In, class V>
void TileLoader<T, In, V>::fetch(const Source<T, In>& source, const WinogradTiling::Block& b,
                                 std::vector<Ahead>& ahead) const {
  const Rect part = {b.y - halo, b.y + tile + halo, b.x - halo, b.x + b.tiles * tile + halo};
  for (const Map<const In>& map : {source.a, source.b}) fetch_part(map, b.n, part, first, channels, false, ahead);
}

template <class T, class In, class V>
void WinogradBlocks<T, In, V>::fetch(const Source<T, In>& source, const WinogradTiling::Block& b,
                                     std::vector<Ahead>& ahead) const {
  loader_.fetch(source, b, ahead);
}

template <class T, class In, class V>
WinogradBlocks<T, In, V>::WinogradBlocks(const Run<T>& run, const Weights<T>& w, Index most)
    : run_(run), weights_(w), loader_{run, input_transform<V, In>(run, w.tile), w.tile, 1, 0, w.in, 0}, tile_(w.tile),
      side_(w.tile + 2), tiles_(most), group_(std::max<Index>(kGroup / w.width() * w.width(), w.width())) {
  const auto elements = [](Index count, std::size_t size) {  // of T, for the scratch of other types; whole cache lines
    return static_cast<Index>((count * size + 63) / 64 * 64 / sizeof(T));
  };
  loader_.position = position<V>(tiles_, w.in);
  out_position_ = position<T>(tiles_, std::min(group_, w.out));
  rows_ = elements(loader_.rows(), sizeof(In));
  in_ = elements(side_ * side_ * loader_.position, sizeof(V));
  out_ = side_ * side_ * out_position_;
}

template <class T, class In, class V> Index TileLoader<T, In, V>::rows() const {
  return (tile + 2 * halo) * (kGather * tile + 2 * halo) * channels;
}

template <class T, class In, class V> Index WinogradBlocks<T, In, V>::most_tiles() const { return tiles_; }

template <class T, class In, class V> Index WinogradBlocks<T, In, V>::channels(Index group) const {
  return std::min(group_, weights_.out - first_channel(group));
}

template <class T, class In, class V>
void WinogradBlocks<T, In, V>::load(const Source<T, In>& source, const WinogradTiling::Block& b, const Rect& readable,
                                    T* scratch) const {
  loader_.load(source, b, readable, reinterpret_cast<In*>(scratch), reinterpret_cast<V*>(scratch + rows_));
}

template <class T, class In, class V>
template <class Out>
void WinogradBlocks<T, In, V>::store(const WinogradOutput<T, Out>& o) const {
  transforms<Out>(run_, tile_).output(o);
}

template <class T, class In, class V>
template <class Out>
WinogradOutput<T, Out> WinogradBlocks<T, In, V>::multiply(const WinogradTiling::Block& b, const Rect& region,
                                                          Index group, T* scratch,
                                                          const std::vector<Ahead>& ahead) const {
  const Index first = first_channel(group) / weights_.width();
  WinogradProduct<T, V> p = {};
  p.in = reinterpret_cast<const V*>(scratch + rows_);
  p.in_position = loader_.position;
  p.positions = side_ * side_;
  p.tiles = b.tiles;
  p.depth = weights_.in;
  p.block = weights_.width() * weights_.in;
  p.weights_position = weights_.blocks * p.block;
  p.weights = weights_.template winograd<V>() + first * p.block;
  p.channels = channels(group);
  p.out = scratch + rows_ + in_;
  p.out_position = out_position_;
  p.ahead = ahead.data();
  p.ahead_end = p.ahead + ahead.size();
  if constexpr (std::is_same<V, T>::value) {
    run_.kernels.winograd_product(p);
  } else {
    run_.bf16->product(p);
  }

  WinogradOutput<T, Out> o = {};
  o.in = p.out;
  o.position = out_position_;
  o.tiles = b.tiles;
  o.channels = p.channels;
  o.row0 = region.y0 - b.y;
  o.row1 = region.y1 - b.y;
  o.col0 = region.x0 - b.x;
  o.col1 = region.x1 - b.x;
  o.bias = weights_.bias(first);
  return o;
}

namespace {

// Rows above the picture are never touched; their pointers are those of its first.
template <class S>
Rows<S> rows_from(const Map<S>& m, const WinogradTiling::Block& b, int tile, Index channel) {
  Rows<S> r = {{}, m.sw};
  for (Index y = 0; m.data && y < tile; y++) {
    r.row[y] = m.data + b.n * m.sn + row_of(m, std::max<Index>(b.y + y, 0)) + b.x * m.sw + channel;
  }
  return r;
}

}  // namespace

template <class V, class T, class In, class Out>
BlockConvolution<V, T, In, Out>::BlockConvolution(const Run<T>& run, const Weights<T>& w,
                                                  const Convolution<T, In, Out>& c, Index most, int threads)
    : run_(run), weights_(w), c_(c), tiling_(c.region, w.tile, threads, most, c.out.shift), blocks_(run, w, most),
      readable_(grow(c.region, 1, c.source.a.h, c.source.a.w)) {
  if (c.moments) c.moments->resize(tasks(), w.out);
  if (c.norm_sums) c.norm_sums->resize(tasks(), w.out);
}

template <class V, class T, class In, class Out>
void BlockConvolution<V, T, In, Out>::compute(Index task, char* memory, const std::vector<Ahead>& then) const {
  T* const scratch = reinterpret_cast<T*>(memory) + weights_.out;
  const WinogradTiling::Block b = tiling_.block(task);
  blocks_.load(c_.source, b, readable_, scratch);
  const Tile t = tiling_.part(b, c_.region);
  bool too_large = false;
  thread_local std::vector<Ahead> ahead;
  for (Index group = 0; group < blocks_.groups(); group++) {
    const Index channel = blocks_.first_channel(group);
    ahead.clear();
    // Strips are in cache: beside products in bf16 that gained nothing.
    if (std::is_same<V, T>::value || !c_.out.ring) {
      fetch_output(c_, t, channel, blocks_.channels(group), ahead);
      if (group == blocks_.groups() - 1) ahead.insert(ahead.end(), then.begin(), then.end());
    }
    WinogradOutput<T, Out> o = blocks_.template multiply<Out>(b, c_.region, group, scratch, ahead);
    o.relu = c_.relu;
    o.out = rows_from(c_.out, b, weights_.tile, channel);
    for (int i = 0; i < 2; i++) o.add[i] = rows_from(c_.add[i], b, weights_.tile, channel);
    o.mask = pixels(c_.mask, b.n, b.y, b.x);
    if (o.mask.data) o.mask.data += channel;
    o.too_large = &too_large;
    blocks_.store(o);
  }
  if constexpr (std::is_same<Out, Half>::value) {
    if (too_large) c_.overflow->store(true);
  } else {
    const Map<const Out> out = constant(c_.out);
    if (c_.moments) tile_moments(maps_of<Out>(run_), out, t, reinterpret_cast<T*>(memory), *c_.moments, task);
    if (c_.norm_sums) tile_norm_sums(maps_of<Out>(run_), c_.norm, t, *c_.norm_sums, task);
  }
}

template <class V, class T, class In, class Out> Stage BlockConvolution<V, T, In, Out>::stage() const {
  Stage stage = {tasks(), scratch()};
  stage.run = [convolution = *this](Index task, Index next, char* memory) {
    thread_local std::vector<Ahead> then;
    then.clear();
    if (next >= 0) convolution.fetch(next, then);
    convolution.compute(task, memory, then);
  };
  stage.part = [tiling = tiling_, region = c_.region](Index task) {
    return covered(tiling.part(tiling.block(task), region));
  };
  return stage;
}

template <class T, class In, class Out>
Stage winograd_stage(const Run<T>& run, const Weights<T>& w, const Convolution<T, In, Out>& c) {
  const int shares = c.moments || c.norm_sums ? 1 : run.threads;
  const Index most = winograd_block(w.tile, w.in);
  if constexpr (std::is_same<Out, Bf16>::value) {
    if (w.bf16) return BlockConvolution<Bf16, T, In, Out>(run, w, c, most, shares).stage();
  }
  return BlockConvolution<T, T, In, Out>(run, w, c, most, shares).stage();
}

#define INSTANTIATE(T)                                                                                              \
  template int winograd_tile(const Kernels<T>&, const Filter<T>&, int);                                             \
  template void winograd_pack(const Filter<T>&, const double*, int, Index, Index, Index, Index, T*);                \
  template void winograd_pack(const Filter<T>&, const double*, int, Index, Index, Index, Index, Bf16*);             \
  template struct TileLoader<T, T>;                                                                                 \
  template Stage winograd_stage(const Run<T>&, const Weights<T>&, const Convolution<T>&);
INSTANTIATE(float)
INSTANTIATE(double)
template Stage winograd_stage(const Run<float>&, const Weights<float>&, const Convolution<float, float, Half>&);
template Stage winograd_stage(const Run<float>&, const Weights<float>&, const Convolution<float, Half, Half>&);
template Stage winograd_stage(const Run<float>&, const Weights<float>&, const Convolution<float, Half, float>&);
template Stage winograd_stage(const Run<float>&, const Weights<float>&, const Convolution<float, float, Bf16>&);
template Stage winograd_stage(const Run<float>&, const Weights<float>&, const Convolution<float, Bf16, Bf16>&);
template struct TileLoader<float, Bf16, Bf16>;
template class BlockConvolution<float, float, float, float>;
template class BlockConvolution<double, double, double, double>;
template class BlockConvolution<Bf16, float, Bf16, Bf16>;
// What reconstruct.cpp takes beside.
#define INSTANTIATE_BLOCKS(T, In, V)                                                                                \
  template class WinogradBlocks<T, In, V>;                                                                          \
  template WinogradOutput<T, T> WinogradBlocks<T, In, V>::multiply(const WinogradTiling::Block&, const Rect&,       \
                                                                   Index, T*, const std::vector<Ahead>&) const;     \
  template void WinogradBlocks<T, In, V>::store(const WinogradOutput<T, T>&) const;
INSTANTIATE_BLOCKS(float, float, float)
INSTANTIATE_BLOCKS(double, double, double)
INSTANTIATE_BLOCKS(float, Bf16, float)
INSTANTIATE_BLOCKS(float, Bf16, Bf16)

}  // namespace dblr
