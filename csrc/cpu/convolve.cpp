#include "convolve.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "norm.h"
#include "winograd.h"

namespace dblr {
namespace {

// A packed tile of this size stays in a 512 KB second-level cache beside a block of weights.
constexpr Index kTileBytes = 160 * 1024;
constexpr Index kSpread = 4;  // output channels that count as one of the input where tiles are cut

}  // namespace

template <class T>
Weights<T>::Weights(const Run<T>& r, const Filter<T>& f, const T* bias, const double* scale, int tile, bool bf16)
    : in(f.in), out(f.out), tile(tile), bf16(bf16), kernel_rows(tile ? 1 : f.kernel),
      run(tile ? (tile + 2) * (tile + 2) * f.in : f.kernel * f.in), lanes_(r.kernels.lanes),
      width_(2 * r.kernels.lanes) {
  blocks = divide_up(out, width_);
  data_ = Buffer<T>(blocks * width_ * depth() / (bf16 ? sizeof(T) / sizeof(Bf16) : 1));
  bias_ = Buffer<T>(blocks * width_);
  parallel(r.threads, blocks, 0, [&](Index b, char*) {
    for (Index c = 0; c < width_; c++) {
      const Index o = first_channel(b) + c;
      bias_[o] = bias && o < out ? bias[o] : T(0);
    }
    if (tile) {
      const Index block = width_ * in, stride = vectors(b) * lanes_;
      const auto transform = [&](auto* to) {
        winograd_pack(f, scale, tile, first_channel(b), channels(b), stride, blocks * block, to + b * block);
      };
      bf16 ? transform(reinterpret_cast<Bf16*>(data_.data())) : transform(data_.data());
    } else {
      pack(f, scale, b, data_.data() + b * width_ * depth());
    }
  });
}

template <class T> void Weights<T>::pack(const Filter<T>& f, const double* scale, Index b, T* to) const {
  const int taps = f.kernel * f.kernel;
  const Index stride = vectors(b) * lanes_;
  std::memset(to, 0, stride * depth() * sizeof(T));
  for (Index c = 0; c < channels(b); c++) {
    const Index o = first_channel(b) + c;
    for (Index i = 0; i < in; i++) {
      const T* from = f.data + o * f.so + i * f.si;
      for (int t = 0; t < taps; t++) {
        const T value = from[f.flip ? taps - 1 - t : t];
        to[(t * in + i) * stride + c] = scale ? static_cast<T>(value * scale[o]) : value;
      }
    }
  }
}

template <class T>
Weights<T> weights_for(const Run<T>& run, const Filter<T>& filter, const T* bias, const double* scale) {
  return Weights<T>(run, filter, bias, scale, winograd_tile(run.kernels, filter));
}

Tiling::Tiling(Index h, Index w, Index bytes_per_pixel, int register_pixels) {
  const Index budget = kTileBytes / bytes_per_pixel;
  cols = std::max<Index>(budget / 10 - 2, register_pixels) / register_pixels * register_pixels;
  cols = std::min(cols, w);
  rows = std::min(std::max<Index>(budget / (cols + 2) - 2, 1), h);
  // Equal parts, whole register tiles where there is a choice.
  cols = divide_up(divide_up(w, divide_up(w, cols)), register_pixels) * register_pixels;
  rows = divide_up(h, divide_up(h, rows));
  down = divide_up(h, rows);
  across = divide_up(w, cols);
}

Tile tile_at(const Tiling& t, const Rect& region, Index task) {
  const Index n = task / t.tiles(), y = task % t.tiles() / t.across * t.rows, x = task % t.across * t.cols;
  return {n, region.y0 + y, region.x0 + x, std::min(t.rows, region.h() - y), std::min(t.cols, region.w() - x)};
}

void TileSums::resize(Index tiles, Index channels) {
  s0.resize(tiles * channels);
  s1.resize(tiles * channels);
  count.resize(tiles);
}

template <class T, class S>
void load_row(const Run<T>& run, const Source<T, S>& source, Index n, Index y, Index x0, Index cols, Index c0, Index c1,
              T* out, S* scratch) {
  if constexpr (std::is_same<S, T>::value) {
    run.kernels.maps.load_row(source, n, y, x0, cols, c0, c1, out);
  } else {
    const Index count = cols * (c1 - c0);
    maps_of<S>(run).load_row(source, n, y, x0, cols, c0, c1, scratch);
    run.bf16->widen({{scratch, 0, 0}, {out, 0, 0}, 1, 1, count});
  }
}

template <class T, class S>
void load_tile(const Run<T>& run, const Source<T, S>& source, const Tile& tile, Index halo, T* out, S* scratch) {
  const Index cols = tile.cols + 2 * halo, channels = source.a.c;
  for (Index y = -halo; y < tile.rows + halo; y++, out += cols * channels) {
    load_row(run, source, tile.n, tile.y + y, tile.x - halo, cols, 0, channels, out, scratch);
  }
}

template <class T>
Product<T> product(const Weights<T>& w, Index b, Pixels<const T> in, Index rows, Index cols, Pixels<T> out) {
  Product<T> p = {};
  p.in = in;
  p.kernel_rows = w.kernel_rows;
  p.run = w.run;
  p.weights = w.block(b);
  p.vectors = w.vectors(b);
  p.rows = rows;
  p.cols = cols;
  p.channels = w.channels(b);
  p.bias = w.bias(b);
  p.out = out;
  return p;
}

template <class T, class S>
Stage convolution_stage(const Run<T>& run, const Weights<T>& w, const Convolution<T, S, S>& c) {
  if (c.region.h() <= 0 || c.region.w() <= 0) return {};
  if (w.tile) return winograd_stage(run, w, c);
  constexpr bool widened = !std::is_same<S, T>::value;
  constexpr Index kMaps = widened ? 4 : 0;  // whose tiles are held in T: the output, what is added, the mask
  // Where few channels become many, tiles are cut for the work that they make, or there would not be one a thread.
  const Index channels_held = std::max(w.in, w.out / kSpread) + kMaps * w.width();
  const Tiling tiling(c.region.h(), c.region.w(), channels_held * sizeof(T), run.kernels.pixels);
  const Index tasks = c.out.n * tiling.tiles(), packed = (tiling.rows + 2) * (tiling.cols + 2) * w.in;
  const Index size = tiling.rows * tiling.cols * w.width();
  if (c.moments) c.moments->resize(tasks, w.out);
  if (c.norm_sums) c.norm_sums->resize(tasks, w.out);
  const std::size_t bytes = (packed + w.out + kMaps * size) * sizeof(T);
  Stage stage = {tasks, bytes + (widened ? (tiling.cols + 2) * w.in * sizeof(S) : 0)};
  stage.part = [region = c.region, tiling](Index task) { return covered(tile_at(tiling, region, task)); };
  stage.run = [=, &run, &w](Index task, Index, char* scratch) {
    const Tile t = tile_at(tiling, c.region, task);
    T *const in = reinterpret_cast<T*>(scratch), *const means = in + packed, *const tiles = means + w.out;
    load_tile(run, c.source, t, 1, in, reinterpret_cast<S*>(scratch + bytes));
    const Index row = (t.cols + 2) * w.in;
    for (Index b = 0; b < w.blocks; b++) {
      const Index channels = w.channels(b);
      const auto part = [&](const auto& map) {
        auto at = pixels(map, t.n, t.y, t.x);
        if (at.data) at.data += w.first_channel(b);
        return at;
      };
      const auto in_t = [&](const Map<const S>& map, [[maybe_unused]] Index number) -> Pixels<const T> {
        if constexpr (widened) {
          if (!map.data) return {};
          const Pixels<T> to = {tiles + number * size, t.cols * channels, channels};
          run.bf16->widen({part(map), to, t.rows, t.cols, channels});
          return {to.data, to.row, to.pixel};
        } else {
          return part(map);
        }
      };
      Product<T> p = product<T>(w, b, {in, row, w.in}, t.rows, t.cols, {tiles, t.cols * channels, channels});
      if constexpr (!widened) p.out = part(c.out);
      p.relu = c.relu;
      for (int i = 0; i < 2; i++) p.add[i] = in_t(c.add[i], 1 + i);
      p.mask = in_t(c.mask, 3);
      run.kernels.multiply(p);
      if constexpr (widened) {
        run.bf16->narrow({{tiles, p.out.row, p.out.pixel}, part(c.out), t.rows, t.cols, channels});
      }
    }
    const Map<const S> out = constant(c.out);
    if (c.moments) tile_moments(maps_of<S>(run), out, t, means, *c.moments, task);
    if (c.norm_sums) tile_norm_sums(maps_of<S>(run), c.norm, t, *c.norm_sums, task);
  };
  return stage;
}

template <class T, class S>
void convolve(const Run<T>& run, const Weights<T>& w, const Convolution<T, S, S>& c) {
  run_stage(run.threads, convolution_stage(run, w, c));
}

#define INSTANTIATE(T)                                                                                          \
  template class Weights<T>;                                                                                    \
  template Weights<T> weights_for(const Run<T>&, const Filter<T>&, const T*, const double*);                    \
  template Product<T> product(const Weights<T>&, Index, Pixels<const T>, Index, Index, Pixels<T>);
INSTANTIATE(float)
INSTANTIATE(double)
#define INSTANTIATE_MAPS(T, S)                                                                                  \
  template void load_row(const Run<T>&, const Source<T, S>&, Index, Index, Index, Index, Index, Index, T*, S*); \
  template void load_tile(const Run<T>&, const Source<T, S>&, const Tile&, Index, T*, S*);                      \
  template Stage convolution_stage(const Run<T>&, const Weights<T>&, const Convolution<T, S, S>&);              \
  template void convolve(const Run<T>&, const Weights<T>&, const Convolution<T, S, S>&);
INSTANTIATE_MAPS(float, float)
INSTANTIATE_MAPS(double, double)
INSTANTIATE_MAPS(float, Bf16)

}  // namespace dblr
