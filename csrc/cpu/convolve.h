// A 3x3 convolution, tile by tile: load a tile with its halo (and what is fused into the load), multiply block
// by block of output channels, finish from registers, and sum statistics while the tile is in cache.
#pragma once

#include <atomic>
#include <vector>

#include "isa.h"
#include "tensor.h"
#include "threads.h"

namespace dblr {

// Weights as they lie in memory: element (o, i, dy, dx) at o * so + i * si + dy * 3 + dx; `flip` turns the
// kernel by 180 degrees, as a gradient to the input needs. kernel: 3, or 1 for a product without neighbours.
template <class T> struct Filter {
  const T* data;
  Index out, in, so, si;
  bool flip;
  int kernel;
};

// Weights (out, in, 3, 3), contiguous, of the forward pass and of the gradient to its input.
template <class T> Filter<T> forward_filter(const T* w, Index out, Index in) {
  return {w, out, in, in * 9, 9, false, 3};
}
template <class T> Filter<T> backward_filter(const T* w, Index out, Index in) {
  return {w, in, out, 9, in * 9, true, 3};
}

// Weights packed for the kernels: [block of output channels][dy][dx, ic][channel of the block], or transformed for
// Winograd's tiles: [position][block][ic][channel of the block].
template <class T> class Weights {
 public:
  // bias: null for none. scale: one factor an output channel (a folded batch norm), or null. tile: 0, or the side
  // of Winograd's tiles (see winograd_tile).
  // bf16: for products in bf16, tiles of 4.
  Weights(const Run<T>& run, const Filter<T>& filter, const T* bias = nullptr, const double* scale = nullptr,
          int tile = 0, bool bf16 = false);

  Index in, out;
  int tile;
  bool bf16;
  Index kernel_rows, run;
  Index blocks;  // of width() channels
  Index width() const { return width_; }
  int vectors(Index b) const { return channels(b) > lanes_ ? 2 : 1; }
  int channels(Index b) const { return static_cast<int>(out - b * width_ < width_ ? out - b * width_ : width_); }
  Index first_channel(Index b) const { return b * width_; }
  const T* block(Index b) const { return data_.data() + b * width_ * depth(); }
  template <class V> const V* winograd() const { return reinterpret_cast<const V*>(data_.data()); }
  const T* bias(Index b) const { return bias_.data() + b * width_; }
  Index depth() const { return kernel_rows * run; }

 private:
  void pack(const Filter<T>& f, const double* scale, Index b, T* to) const;
  int lanes_;
  Index width_;
  Buffer<T> data_, bias_;
};

// Weights for convolve(), for the method that is fastest for their shape.
template <class T>
Weights<T> weights_for(const Run<T>& run, const Filter<T>& filter, const T* bias = nullptr,
                       const double* scale = nullptr);

// How an h x w picture is cut. Depends on the sizes alone, never on the number of threads.
struct Tiling {
  Tiling(Index h, Index w, Index bytes_per_pixel, int register_pixels);
  Index rows, cols, down, across;
  Index tiles() const { return down * across; }
};

struct Tile {
  Index n, y, x, rows, cols;
};
Tile tile_at(const Tiling& tiling, const Rect& region, Index task);
inline Rect covered(const Tile& t) { return {t.y, t.y + t.rows, t.x, t.x + t.cols}; }

// Sums of a map, tile by tile: [tile][channel].
struct TileSums {
  std::vector<double> s0, s1;
  std::vector<Index> count;
  void resize(Index tiles, Index channels);
};

// In, Out: the types of the maps: T, Bf16 where products are made in it, or a float map and one in 16 bits with nothing
// fused into the load; maps in Half too.
template <class T, class In = T, class Out = T> struct Convolution {
  Source<T, In> source;
  Rect region;           // what is computed of each output picture
  Map<Out> out;          // indexed in the picture's coordinates
  bool relu = false;
  Map<const Out> add[2] = {};
  Map<const Out> mask = {};
  std::atomic<bool>* overflow = nullptr;  // set when a value does not fit into Out; Half alone
  // Mean and M2 (sum of squared deviations from it) of each channel over each tile of the output.
  TileSums* moments = nullptr;
  // Sums for the gradient of a batch norm: norm.b is its input and norm.a the gradient to its output, one of which is
  // `out`.
  TileSums* norm_sums = nullptr;
  Source<T, Out> norm = {};
};

// By the method that the weights were packed for. Maps in Bf16 without Winograd's are widened tile by tile.
template <class T, class S>
void convolve(const Run<T>& run, const Weights<T>& w, const Convolution<T, S, S>& c);
// The same as a stage, for as long as `run` and the weights live.
template <class T, class S>
Stage convolution_stage(const Run<T>& run, const Weights<T>& w, const Convolution<T, S, S>& c);

// The pieces, for ops that chain convolutions within a tile. A row as it loads, in T; scratch for as much of S where
// that is another type. `halo` pixels on each side of a tile are loaded too.
template <class T, class S>
void load_row(const Run<T>& run, const Source<T, S>& source, Index n, Index y, Index x0, Index cols, Index c0, Index c1,
              T* out, S* scratch);
template <class T, class S>
void load_tile(const Run<T>& run, const Source<T, S>& source, const Tile& tile, Index halo, T* out, S* scratch);

// Everything of a product but what follows the bias; the caller adds that.
template <class T>
Product<T> product(const Weights<T>& w, Index block, Pixels<const T> in, Index rows, Index cols, Pixels<T> out);

}  // namespace dblr
