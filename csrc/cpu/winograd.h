// Convolutions by Winograd's F(m x m, 3 x 3) (Lavin and Gray, 2016), m = 4, 6 or 8: (m + 2)^2 products for m^2 outputs
// instead of 9 m^2. A block of tiles side by side stays in the second-level cache from the input's transform to the
// output's. Tiles lie on a grid that starts at the picture's corner, or in a ring with shifted rows so many rows above
// it, so results do not depend on the blocks.
#pragma once

#include <vector>

#include "convolve.h"

namespace dblr {

// The side of the tiles with which a convolution goes, `wanted` or 0: few channels are faster without, and float64 is
// there for accuracy.
template <class T> int winograd_tile(const Kernels<T>& k, const Filter<T>& f, int wanted = 4);

// Transforms the weights of `channels` output channels from `first` on: to[position][ic][stride], or in bf16
// [position][ic / 2][stride][ic % 2]; positions as far apart as `position` says.
template <class T, class V>
void winograd_pack(const Filter<T>& f, const double* scale, int tile, Index first, Index channels, Index stride,
                   Index position, V* to);

// By the weights' own tiles and type of products, for as long as `run` and they live.
template <class T, class In, class Out>
Stage winograd_stage(const Run<T>& run, const Weights<T>& w, const Convolution<T, In, Out>& c);

// The most tiles in a block of a map of `in` channels: as many as suit the second-level cache.
Index winograd_block(Index tile, Index in);

// Tiles of a region: rows of blocks, blocks of at most `most` tiles side by side.
struct WinogradTiling {
  // Blocks are cut smaller where `threads` would not get equal shares; 1 where results depend on the blocks (as sums do).
  // shift: tiles begin so many rows further up.
  WinogradTiling(const Rect& region, int tile, int threads, Index most, Index shift = 0);
  Index tile, shift, y0, x0, down, across;  // of the grid: first row and column, how many
  Index blocks;                      // in a row
  Index most_tiles() const { return (across + blocks - 1) / blocks; }
  Index tasks() const { return down * blocks; }
  struct Block {
    Index n, y, x, tiles;  // y, x: its first pixel, which may lie above the picture
  };
  Block block(Index task) const;
  // The part of the region that a block gives.
  Tile part(const Block& b, const Rect& region) const;
};

// Kernels to Winograd's domain: u = G g G^T, G of `size` rows.
struct KernelTransform {
  int size;
  double g[kMostRows][3];
};
KernelTransform kernel_transform(int tile);

// Elements from one position to the next of a block: a cache line more than it takes, for all positions of a power
// of two would fall into the same sets.
template <class V> Index position(Index tiles, Index channels) { return tiles * channels + 64 / sizeof(V); }

// Gathers and transforms `channels` channels from `first` on of a block's tiles.
template <class T, class In, class V = T> struct TileLoader {
  const Run<T>& run;
  void (*transform)(const WinogradInput<V, In>&);
  Index tile, halo;
  Index first, channels, position;
  Index together = 1;  // tiles that are transformed at a time
  // Pixels outside `readable` are taken as zero. rows: scratch for as many elements as rows() says.
  void load(const Source<T, In>& source, const WinogradTiling::Block& b, const Rect& readable, In* rows, V* out) const;
  // Adds what load() will read of a block.
  void fetch(const Source<T, In>& source, const WinogradTiling::Block& b, std::vector<Ahead>& ahead) const;
  Index rows() const;
};

// The pieces, for ops that go on with a block's output.
// V: the type in which products are made; Bf16 goes with maps in Bf16, or in float to begin with.
template <class T, class In, class V = T> class WinogradBlocks {
 public:
  // most: tiles in a block.
  WinogradBlocks(const Run<T>& run, const Weights<T>& weights, Index most);
  Index most_tiles() const;
  std::size_t scratch() const { return (rows_ + in_ + out_) * sizeof(T); }
  // Output channels that are finished together, first to last.
  Index groups() const { return (weights_.out + group_ - 1) / group_; }
  Index first_channel(Index group) const { return group * group_; }
  Index channels(Index group) const;
  // Transforms the input of a block; pixels outside `readable` are taken as zero.
  void load(const Source<T, In>& source, const WinogradTiling::Block& b, const Rect& readable, T* scratch) const;
  void fetch(const Source<T, In>& source, const WinogradTiling::Block& b, std::vector<Ahead>& ahead) const;
  // Products of one group, while what is wanted ahead is fetched. What follows the bias, and where it goes, the caller
  // adds before `store`.
  template <class Out>
  WinogradOutput<T, Out> multiply(const WinogradTiling::Block& b, const Rect& region, Index group, T* scratch,
                                  const std::vector<Ahead>& ahead = {}) const;
  template <class Out> void store(const WinogradOutput<T, Out>& o) const;

 private:
  const Run<T>& run_;
  const Weights<T>& weights_;
  TileLoader<T, In, V> loader_;
  Index tile_, side_, tiles_, group_, out_position_, rows_, in_, out_;
};

// A convolution block by block, in any order, by any thread.
template <class V, class T, class In, class Out> class BlockConvolution {
 public:
  // most, threads: see WinogradTiling. Sums that the convolution asks for are taken block by block.
  BlockConvolution(const Run<T>& run, const Weights<T>& weights, const Convolution<T, In, Out>& c, Index most,
                   int threads);
  Index tasks() const { return c_.out.n * tiling_.tasks(); }
  WinogradTiling::Block block(Index task) const { return tiling_.block(task); }
  std::size_t scratch() const { return blocks_.scratch() + weights_.out * sizeof(T); }
  // Adds what compute() will read of a block.
  void fetch(Index task, std::vector<Ahead>& ahead) const { blocks_.fetch(c_.source, block(task), ahead); }
  // then: what is to be fetched beside the last products.
  void compute(Index task, char* memory, const std::vector<Ahead>& then) const;
  // All of it, each thread fetching ahead what it is likely to go on with.
  Stage stage() const;

 private:
  const Run<T>& run_;
  const Weights<T>& weights_;
  Convolution<T, In, Out> c_;
  WinogradTiling tiling_;
  WinogradBlocks<T, In, V> blocks_;
  Rect readable_;
};

}  // namespace dblr
