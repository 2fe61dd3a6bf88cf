// What a kernel file offers for one instruction set: a table of functions, and the plain structs they take.
//
// Files compiled for an instruction set include this header and no other shared one. It holds data alone:
// an inline function in it could be compiled with AVX-512 in one file and be picked by the linker for all.
#pragma once

#include <cstdint>

namespace dblr {

using Index = std::int64_t;

// A number in 16 bits (IEEE 754 binary16), as `half` keeps the maps within residual blocks.
struct Half {
  std::uint16_t bits;
};

// The upper half of a float, in which `bf16` keeps maps and multiplies.
struct Bf16 {
  std::uint16_t bits;
};

// n pictures of h x w pixels with c channels; strides in elements. With a ring only so many rows are kept at a time:
// row y lies where row (y + shift) mod ring would; but with `kept` the last two rows of each turn of the ring lie so
// far from the first, by turns in two places, so that they outlive the next turn while others take the ring.
template <class T> struct Map {
  T* data;
  Index n, c, h, w;
  Index sn, sc, sh, sw;
  Index ring = 0, shift = 0, kept = 0;
};

enum class Load {
  copy,         // a
  normalise,    // relu((a - mean) * scale + shift)
  norm_grad,    // k1 * g + k2 * (b - mean) + k3, g = a where (b - mean) * scale + shift > 0 (if relu), else a
  relu_grad,    // a where b > 0, else 0
};

// Where a packed tile comes from, and what is done on the way. The arrays hold one value a channel.
// b has unit channel stride; outside the picture everything loads as zero.
// T: the type of the arithmetic; S: that in which maps are kept.
template <class T, class S = T> struct Source {
  Map<const S> a, b;
  Load load;
  bool relu;
  const T *mean, *scale, *shift, *k1, *k2, *k3;
};

// Pixels with unit channel stride: `data` is the first, row and pixel are distances in elements.
template <class T> struct Pixels {
  T* data;
  Index row, pixel;
};

// out[y][x] = epilogue(bias + sum over kernel_rows, run of in[y + r][x * pixel + k] * weights[r][k]) for one
// block of output channels. A packed tile keeps (dx, channel) adjacent, so a kernel row is one run.
template <class T> struct Product {
  Pixels<const T> in;
  Index kernel_rows, run;
  const T* weights;      // [kernel_rows * run][vectors * lanes]
  int vectors;           // 1 or 2
  Index rows, cols;
  int channels;          // how many of vectors * lanes are stored
  bool accumulate;       // add what `out` holds
  bool relu;
  const T* bias;         // [vectors * lanes]
  Pixels<T> out;
  Pixels<const T> add[2];  // added after the ReLU; data null: none
  Pixels<const T> mask;    // then zero where mask <= 0; data null: none
};

// Winograd's F(m x m, 3 x 3): a tile of m x m outputs from m + 2 inputs squared, by products in as many positions.
// Blocks of tiles side by side; transformed tiles lie [position][tile][channel], positions `position` apart.
constexpr int kMostRows = 10;

// V: the type in which products are made; S: that in which the map is kept.
template <class V, class S> struct WinogradInput {
  const S* rows[kMostRows];  // first pixel of the first tile's rows; tiles are m pixels apart
  Index pixel;
  Index first, tiles, channels;  // first: which tile of the block it is, an even one for pairs; channels: whole vectors
  V* out;                        // of the block
  Index position;
};

// Lines of memory that are wanted soon, to be fetched in the meantime: `stride` bytes apart, to be read or written.
struct Ahead {
  static constexpr Index kLine = 64;
  const char* data;
  Index lines, stride;
  bool write;
};

// out[position][tile][oc] = sum over ic of in[position][tile][ic] * weights[position][block][ic][oc of the block];
// where products are made in pairs (Bf16) the weights lie [ic / 2][oc][ic % 2].
template <class T, class V> struct WinogradProduct {
  const V* in;
  Index in_position;
  Index positions, tiles, depth;
  const V* weights;
  Index block, weights_position;  // from one block of output channels, and one position, to the next
  Index channels;            // whole vectors
  T* out;
  Index out_position;        // tiles are `channels` apart
  const Ahead *ahead, *ahead_end;
};

// A tile's rows, each where a ring has put it; row[0] null: none.
template <class T> struct Rows {
  T* row[kMostRows];
  Index pixel;
};

// Back to pixels, and what multiply() does after its sums.
template <class T, class S> struct WinogradOutput {
  const T* in;
  Index position;
  Index tiles, channels;
  Index row0, row1, col0, col1;  // of the block's m rows and tiles * m columns, the part that is stored
  bool relu;
  const T* bias;
  Rows<S> out;  // each from the block's first pixel on, be it stored or not
  Rows<const S> add[2];
  Pixels<const S> mask;
  bool* too_large;  // set where a value does not fit into S; Half alone
};

// Weight gradient: out[position][ic][oc] += sum over tiles of in[position][tile][ic] * dz[position][tile][oc]; where
// products are made in pairs (Bf16) tiles lie [tile / 2][channel][tile % 2], zeros beside the last of an odd number.
template <class T, class V = T> struct WinogradGradient {
  const V *in, *dz;
  Index in_position, dz_position;
  Index positions, tiles, in_channels, out_channels;  // out_channels: whole vectors
  T* out;
  bool first;  // of the blocks that are summed: out holds nothing yet
  const Ahead *ahead, *ahead_end;
};

template <class T, class S> struct Winograd {
  void (*input)(const WinogradInput<T, S>&);
  void (*output)(const WinogradOutput<T, S>&);
};

// Weight gradient of one tile for one block of output channels, added to out[group][dy][dx][ic][lane].
template <class T> struct Gradient {
  const T* x;            // [group][rows + 2][cols + 2][ic], ic < group_channels
  Index groups;
  const T* dz;           // [rows][cols][vectors * lanes]
  int vectors;
  Index rows, cols;
  T* out;
};

enum class Sum {
  plain,       // s0 = sum a
  squares,     // s0 = sum (a - mean), s1 = sum (a - mean)^2
  norm_grad,   // s0 = sum g, s1 = sum g * (b - mean); g as in Load::norm_grad
};

// Sums over a tile for each channel, in double from row to row.
template <class T, class S = T> struct Sums {
  Pixels<const S> a, b;
  Index rows, cols, channels;
  Sum sum;
  bool relu;
  const T *mean, *scale, *shift;
  double *s0, *s1;
};

// out = act((z - mean) * scale + shift) + add
template <class T, class S = T> struct Normalise {
  Pixels<const S> z, add;  // add.data null: none
  Pixels<S> out;
  Index rows, cols, channels;
  bool relu;
  const T *mean, *scale, *shift;
};

// What is done to maps around the convolutions.
template <class T, class S = T> struct MapKernels {
  // out[x - x0][c - c0] of row y of picture n, x0 <= x < x0 + cols, c0 <= c < c1
  void (*load_row)(const Source<T, S>&, Index n, Index y, Index x0, Index cols, Index c0, Index c1, S* out);
  void (*sums)(const Sums<T, S>&);
  void (*normalise)(const Normalise<T, S>&);
};

template <class T> struct Kernels {
  int lanes;           // channels in a vector
  int pixels;          // pixels in the register tile
  int group_channels;  // input channels that a weight gradient takes together
  MapKernels<T> maps;
  void (*multiply)(const Product<T>&);
  void (*gradient)(const Gradient<T>&);
  Winograd<T, T> winograd4, winograd6, winograd8;  // F(4 x 4), F(6 x 6) and F(8 x 8), of float alone, as all of these
  Winograd<T, Half> winograd8_half;
  void (*winograd_product)(const WinogradProduct<T, T>&);
  // F(4 x 4)'s transform of a gradient to the output: m rows of m pixels a tile, to m + 2 squared positions.
  void (*winograd_dz)(const WinogradInput<T, T>&);
  void (*winograd_gradient)(const WinogradGradient<T>&);
  // Its sums, from F(4 x 4)'s 36 positions back to the nine taps: [tap][ic][oc] of [position][ic][oc], `count` numbers,
  // whole vectors, of each.
  void (*winograd_taps)(const T* sums, Index count, T* taps);
};

// A part of a map in another type.
template <class From, class To> struct Converted {
  Pixels<const From> from;
  Pixels<To> to;
  Index rows, cols, channels;
};

// F(4 x 4) with products in bf16 and sums in float, and what else maps in bf16 need.
struct Bf16Kernels {
  Winograd<float, Bf16> winograd4, winograd8;  // for products in float
  void (*input)(const WinogradInput<Bf16, Bf16>&);
  void (*input_of_float)(const WinogradInput<Bf16, float>&);
  void (*product)(const WinogradProduct<float, Bf16>&);
  // The weight gradient: the input and the gradient to the output, tiles in pairs, and their products.
  void (*input_pairs)(const WinogradInput<Bf16, Bf16>&);
  void (*dz_pairs)(const WinogradInput<Bf16, Bf16>&);
  void (*gradient)(const WinogradGradient<float, Bf16>&);
  MapKernels<float, Bf16> maps;
  void (*widen)(const Converted<Bf16, float>&);
  void (*narrow)(const Converted<float, Bf16>&);
};

// A convolution of 1 or 2 rows of pixels with up to 32 output channels, directly, in bf16 with sums in float.
// Of a row of the input, `steps` times 32 elements count from the first pixel that a kernel row covers on: its pixels
// adjoin, and what goes beyond them meets weights of zero, and must be a number.
// In split maps a pixel's channels, times 32, lie as bf16 and then, as bf16 again, what that leaves of a float: 16 bits
// of each factor count, for all products are summed but those of remainders with remainders.
struct AmxProduct {
  static constexpr Index kPixels = 16;  // are summed at a time
  static constexpr Index kSums = 2 * 2 * 16 * 16;
  // Where the sum of one of these pixels of a row and of channel c lies.
  static constexpr Index at(Index row, Index x, Index c) { return ((row * 2 + c / 16) * 16 + x) * 16 + c % 16; }
  const Bf16* rows[4];  // of the input, from the top row of the kernel on the first row of the output on
  Index pixel;          // of the input, in elements
  Index low, out_low;   // from split channels to their remainders, in the input and in the output; 0: not split
  Index kernel_rows, steps, out_rows;
  const Bf16* weights;    // [kernel row][step][half of the output channels][16 pairs][16 channels][2]; split ones lie
                          // twice in a step, the remainders first
  Index pixels;           // of a row; the input of whole times 16 is read
  Index channels;         // that are stored
  const float* bias;      // [32]
  float least;            // then what lies below becomes this: 0 for a ReLU, minus infinity for none
  Bf16* out[2];           // a row each
  Index out_pixel;
  const Bf16* add[2][2];  // then added: the rows of up to two maps, null where there is none
  Index add_pixel[2];
  const Bf16* mask[2];    // or then zero where mask <= 0, instead of what is added
  Index mask_pixel;
};

// Some that add as many maps each, or have a mask each, all or none of them split; and what is to be fetched meanwhile.
struct AmxProducts {
  const AmxProduct *first, *last;
  const Ahead *ahead, *ahead_end;
  Index lines;  // of it, beside each step
};

// Weight gradient of a 3x3 convolution: adds to sums[16 channels in][16 channels out][turn][channel out][channel in],
// over rows of times 32 pixels. The gradient lies [16 channels][32 pixels][channel][pixel]. Of a row of the input each 16
// channels lie [pair of pixels][channel][2], from the row's first pixel on, and again, `odd` elements on, in pairs that
// begin with the pixel before it.
struct AmxGradient {
  static constexpr Index kRows = 4, kTaps = 9;
  // Taps, dy * 3 + dx, take turns so that each reads much of what the one before did: down and up a column of the kernel,
  // and one after the other those whose pairs begin alike.
  static constexpr Index kTurns[kTaps] = {0, 3, 6, 8, 5, 2, 1, 4, 7};
  const Bf16 *x[kRows + 2], *dz[kRows];  // x: from the row above on
  Index rows, steps;                     // steps of 32 pixels
  Index in_tiles, out_tiles;             // of 16 channels
  Index x_tile, odd, dz_tile;            // from one tile to the next
  float* sums;
  bool first;  // sums hold nothing yet
  const Ahead *ahead, *ahead_end;
  Index lines;  // of it, beside each step
};

struct AmxKernels {
  void (*begin)();  // before a thread's first product, and after its last: they set and release its registers
  void (*end)();
  void (*products)(const AmxProducts&);
  void (*sums)(const AmxProduct&, float* sums);  // of 16 pixels alone
  void (*narrow)(const float* from, Bf16* to, Index count);
  // Pixels that adjoin, to split ones of `low` channels, zeros where there are fewer.
  void (*split)(const float* from, Index pixels, Index channels, Bf16* to, Index low);
  void (*gradient)(const AmxGradient&);  // between begin and end
  // 16 channels: to[pair of pixels][channel][2]; and of 32 pixels to[channel][pixel].
  void (*pair)(const Bf16* from, Index pixel, Index pairs, Bf16* to);
  void (*transpose)(const Bf16* from, Index pixel, Bf16* to);
  MapKernels<float, Bf16> maps;
};

struct Table {
  Kernels<float> f32;
  Kernels<double> f64;
};

const Table* table_portable();
const Table* table_avx2();
const Table* table_avx512();
const Table* table_avx512_model();
const Bf16Kernels* bf16_avx512();
const Bf16Kernels* bf16_avx512_model();
const AmxKernels* bf16_amx();
const AmxKernels* bf16_amx_model();

}  // namespace dblr
