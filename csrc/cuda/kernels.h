// The launchers of csrc/cuda: what each computes. Pointers are the device's, work goes to `stream`, nothing is
// allocated, nothing is waited for. Each gives the same bits on every run (no atomics in sums).
#pragma once

#include "launch.h"

namespace dblr {

// Type of a map's elements, and how products are formed.
enum class Kind { f32, f16, bf16 };
enum class Products { exact, tf32 };  // of float32 elements; 16-bit ones multiply exactly into float32 sums

inline int size_of(Kind kind) { return kind == Kind::f32 ? 4 : 2; }

// A dense map (N, H, W, C) in memory, C a multiple of 16 bytes, aligned to 16 bytes. data null: there is none.
struct Map {
  void* data = nullptr;
  Index n = 0, h = 0, w = 0, c = 0;
  Kind kind = Kind::f16;
  Index pixels() const { return n * h * w; }
  std::size_t bytes() const { return static_cast<std::size_t>(pixels() * c) * size_of(kind); }
};

// ---- pack.cu: weights ----

// Channels are packed in chunks of 64 on both sides; what is missing is zero.
constexpr int kChunk = 64;
inline Index chunks(Index channels) { return (channels + kChunk - 1) / kChunk; }

// 3x3 weights ready for the portable convolution, elements of `kind`:
// [chunk of out][chunk of in][tap = 3 ky + kx][64 out][64 in].
struct PackedWeights {
  const void* data = nullptr;
  Index out = 0, in = 0;
  Kind kind = Kind::f16;
};
inline std::size_t packed_bytes(Index out, Index in, Kind kind) {
  return static_cast<std::size_t>(chunks(out) * chunks(in) * 9 * kChunk * kChunk) * size_of(kind);
}
// from: contiguous (out, in, 3, 3) of `from_kind`. With `adjoint` the packed filter is that of the data gradient: in
// and out change places and taps are reversed, so that it maps `out` channels to `in` (PackedWeights.out is in).
PackedWeights pack_weights(const void* from, Kind from_kind, Index out, Index in, bool adjoint, Kind kind, void* to,
                           Stream stream);

// ---- conv3x3.cu: the 3x3 convolution, padding 1 with zeros ----

// What is read at each pixel: x, or with scale (float32, C values) act(x * scale + shift); zero outside the picture.
struct Source {
  Map x;
  const float* scale = nullptr;
  const float* shift = nullptr;
  bool relu = false;
};

// Sums over pixels that a convolution's epilogue leaves as partial sums, one row for each tile (see Tiling).
enum class Sums {
  none,
  statistics,  // of the values before scale and shift: (mean, sum of squared deviations) over the tile's pixels; in
               // conv3x3_sm90 of these values as y holds them
  total,       // of the values stored: (sum, unused)
  normalised,  // of v = the values stored: (sum v, sum v * xhat), xhat = norm_z * norm_scale + norm_shift
};

// y = mask(act(conv * scale + shift) + add0 + add1); a null pointer leaves its step out (scale may be null with shift).
struct Epilogue {
  const float* scale = nullptr;  // (out,)
  const float* shift = nullptr;  // (out,)
  bool relu = false;
  Map add0, add1;
  // Keeps a value where the mask's is above 0; with mask_scale where mask * mask_scale + mask_shift is, else 0.
  Map mask;
  const float* mask_scale = nullptr;
  const float* mask_shift = nullptr;
  Map y;  // may be null when taps is given
  Sums sums = Sums::none;
  float* partial = nullptr;  // conv_partial_floats(y or source, out) floats
  Map norm_z;                // Sums::normalised
  const float* norm_scale = nullptr;
  const float* norm_shift = nullptr;
  // L35 folded in: nine planes a chunk of 64 channels, taps[chunk][tap][n][h][w] = sum over the chunk's channels of
  // y * tap_weights[tap][channel] (float32, (9, out)). conv3x3 takes both before any rounding; conv3x3_sm90 rounds both
  // to the map's type first, as L35 alone would read them. Sums are float32.
  const float* tap_weights = nullptr;
  float* taps = nullptr;
};

// How pixels are put together in partial sums, which lie as [tile][2][out], tiles in the order n, y, x: by 8 rows x 16
// columns, but by 128 columns of a row in conv3x3_sm90.
constexpr int kTileRows = 8, kTileColumns = 16;
struct Tiling {
  int rows = kTileRows, columns = kTileColumns;
  Index across(Index w) const { return (w + columns - 1) / columns; }
  Index down(Index h) const { return (h + rows - 1) / rows; }
};
constexpr Tiling kTiling90{1, 128};
inline Index tiles_of(Index n, Index h, Index w, const Tiling& tiling = {}) {
  return n * tiling.down(h) * tiling.across(w);
}
// Enough for either.
inline Index conv_partial_floats(Index n, Index h, Index w, Index out) {
  const Index tiles = tiles_of(n, h, w), rows = tiles_of(n, h, w, kTiling90);
  return (tiles > rows ? tiles : rows) * 2 * out;
}

// The source's type, the weights' and those of all maps of the epilogue are the same.
void conv3x3(const Source& source, const PackedWeights& weights, const Epilogue& epilogue, Products products,
             Stream stream);

// ---- weight_gradient.cu ----

// dw (out, in, 3, 3) = sum over pixels p of dy[p][out] * source[p + tap][in], contiguous float32 (whatever the maps'
// type). partial: weight_gradient_partial_floats(...) floats. The number of partial sums depends on shapes alone.
std::size_t weight_gradient_partial_floats(Index n, Index h, Index w, Index out, Index in);
void weight_gradient(const Source& source, const Map& dy, float* dw, float* partial, Products products, Stream stream);
// dw = the sum of `partials` partial sums, [partial][chunk of out][chunk of in][tap][64 out][64 in], in their order.
void reduce_gradient(const float* partial, Index partials, Index out, Index in, float* dw, Stream stream);

// ---- norm.cu: batch norm and other work by the pixel ----

// Batch norm's vectors, all float32 (C,) on the device. scale = gamma / sqrt(var + eps); what is normalised is
// z = the convolution without its bias: in training shift = beta - mean * scale; in evaluation
// shift = beta + (bias - running_mean) * scale.
struct NormVectors {
  const float *gamma, *beta, *bias, *mean, *var;  // mean, var: the batch's of z, or the running ones of z + bias
  float eps;
  bool training;
};
// Where y = z * scale + shift goes, and, unless null, xhat = z * invstd + offset.
struct NormCoefficients {
  float *scale = nullptr, *shift = nullptr, *invstd = nullptr, *offset = nullptr;  // (C,)
};
// Partial statistics of all tiles of a picture set of n x h x w -> mean, biased var (merged in double, in a fixed
// order), and what norm_coefficients makes of them in training, to the bit.
void merge_statistics(const float* partial, Index n, Index h, Index w, Index c, const float* gamma, const float* beta,
                      float eps, float* mean, float* var, const NormCoefficients& to, Stream stream,
                      const Tiling& tiling = {});
void norm_coefficients(const NormVectors& norm, Index c, const NormCoefficients& to, Stream stream);
// y = act(z * scale + shift) + add (add may be null; it is added after the ReLU). Any of the maps may be the same.
void norm_apply(const Map& z, const float* scale, const float* shift, bool relu, const Map& add, const Map& y,
                Stream stream);
// Partial sums of g = mask(grad) over tiles: (sum g, sum g * xhat), [tile][2][C]; mask is z * scale + shift > 0 with
// relu, else nothing is masked.
void norm_backward_sums(const Map& grad, const Map& z, const float* scale, const float* shift, const float* invstd,
                        const float* offset, bool relu, float* partial, Stream stream);
// Adds partial sums of `tiles` tiles, in a fixed order (in double): first, second (C,), either may be null.
void merge_sums(const float* partial, Index tiles, Index c, float* first, float* second, Stream stream);
// dz = scale * (g - (dbeta + xhat * dgamma) / count) in training, scale * g in evaluation; g as above.
void norm_backward_apply(const Map& grad, const Map& z, const float* scale, const float* shift, const float* invstd,
                         const float* offset, const float* dbeta, const float* dgamma, bool relu, bool training,
                         const Map& dz, Stream stream);
// Between types, widths (missing channels are zero) and layouts. from: (n, c, h, w) at element strides.
struct Strided {
  const void* data;
  Index n, c, h, w, sn, sc, sh, sw;
  Kind kind;
};
void copy_map(const Strided& from, const Map& to, Stream stream);

// ---- stem.cu: L1, from planes to a map ----

// Weights (channels, in, 3, 3), planar (3-D ones as bands), of the first `frames` of `in` alone, packed by pack_stem,
// elements of `kind`.
struct StemWeights {
  const void* data = nullptr;
  Index frames = 0, channels = 0;
  Kind kind = Kind::f16;
};
std::size_t stem_bytes(Index frames, Index channels, Kind kind);
StemWeights pack_stem(const void* from, Kind from_kind, Index in, Index frames, Index channels, Kind kind, void* to,
                      Stream stream);
// y = ReLU(conv3x3(x) + bias), (n, h, w, channels) of weights.kind. x: (n, frames, h, w) float32 or 16-bit at element
// strides.
void stem(const Strided& x, const StemWeights& weights, const float* bias, const Map& y, Products products,
          Stream stream);

// ---- reconstruct.cu: L35's edges ----

// y[n][h][w] (of `kind`) = bias[0] + sum over chunks and taps of taps[chunk][tap] shifted by the tap, zero outside.
// planes: how many there are, 9 for each chunk.
void sum_taps(const float* taps, Index planes, Index n, Index h, Index w, const float* bias, void* y, Kind kind,
              Stream stream);
// dh[p][c] = mask(sum over taps of grad[p - tap] * w3[tap][c]) where h[p][c] > 0; grad (n, h, w) of grad_kind dense.
// w3: float32 (9, c).
void taps_backward(const void* grad, Kind grad_kind, const float* w3, const Map& h, const Map& dh, Stream stream);
// dw3 (9, c) = sum over pixels of grad[p - tap] * h[p][c], and db3 = sum of grad. partial: floats as said.
std::size_t taps_gradient_partial_floats(Index n, Index h, Index w, Index c);
void taps_gradient(const void* grad, Kind grad_kind, const Map& h, float* dw3, float* db3, float* partial,
                   Stream stream);
// Partial sums over tiles of a map by channel: [tile][2][C], the second row unused (merge_sums adds them).
void channel_sums(const Map& map, float* partial, Stream stream);
// out = where(y > 0, grad, 0), the gradient at a ReLU.
void relu_backward(const Map& grad, const Map& y, const Map& out, Stream stream);

// ---- conv3x3_sm90.cu: 64 (or 256) -> 64 m channels with wgmma and the copy engine, sm_90a alone ----

// Weights as those kernels hold them: 16-bit, fragments of A in the order of use. conv3x3_sm90_bytes(out, in).
std::size_t conv3x3_sm90_bytes(Index out, Index in);
struct PackedWeights90 {
  const void* data = nullptr;
  Index out = 0, in = 0;
  Kind kind = Kind::f16;
};
// adjoint: as in pack_weights.
PackedWeights90 pack_weights_sm90(const void* from, Kind from_kind, Index out, Index in, bool adjoint, Kind kind,
                                  void* to, Stream stream);
// Whether conv3x3_sm90 takes these shapes and this epilogue (in and out multiples of 64, 16-bit maps).
bool conv3x3_sm90_takes(const Source& source, Index out, const Epilogue& epilogue);
void conv3x3_sm90(const Source& source, const PackedWeights90& weights, const Epilogue& epilogue, Stream stream);

// ---- weight_gradient_sm90.cu: weight_gradient with wgmma and the copy engine, sm_90a alone ----

// Blocks of all pairs of chunks; never by what the device is, so that sums come out alike on all. Tests take fewer, so
// that a block does more than it would.
constexpr Index kGradientBlocks = 128;
// Whether it takes these maps: 16-bit, channels multiples of 64, the source read as it is.
bool weight_gradient_sm90_takes(const Map& x, const Map& dy);
std::size_t weight_gradient_sm90_partial_floats(Index n, Index h, Index w, Index out, Index in,
                                                Index blocks = kGradientBlocks);
void weight_gradient_sm90(const Map& x, const Map& dy, float* dw, float* partial, Stream stream,
                          Index blocks = kGradientBlocks);

}  // namespace dblr
