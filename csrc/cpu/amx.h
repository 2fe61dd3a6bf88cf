// Convolutions in bf16 on CPUs with AMX, whose matrix unit multiplies sixteen times as fast as their vectors do:
// directly, since Winograd's transforms would take longer than the products they save. Maps are kept in bf16, sums and
// all that is done to a value on its way are in float. `half` keeps and multiplies what bf16 leaves of a number too: see
// AmxProduct.
#pragma once

#include "convolve.h"

namespace dblr {

// Channels of a matrix, to whose multiples channels are filled up with zeros.
constexpr Index kAmxChannels = 16, kSplitChannels = 32;
inline Index amx_filled(Index channels) { return divide_up(channels, kAmxChannels) * kAmxChannels; }
inline Index split_filled(Index channels) { return divide_up(channels, kSplitChannels) * kSplitChannels; }

// Weights of a 3x3 or 1x1 convolution as the kernels take them, padded with zeros to whole tiles.
class AmxWeights {
 public:
  // bias, scale: as Weights' are. split: for split maps, see AmxProduct.
  AmxWeights(const AmxKernels& kernels, int threads, const Filter<float>& filter, const float* bias = nullptr,
             const double* scale = nullptr, bool split = false);
  const AmxKernels& kernels;  // that the products take
  Index in, out, kernel_rows;
  bool split;
  Index pixel;   // elements of a pixel of the input: its channels, filled up; all twice where they are split
  Index steps;   // of 32 elements in a kernel row
  Index groups;  // of 32 output channels
  Index low() const { return split ? pixel / 2 : 0; }
  Index out_low() const { return split ? split_filled(out) : 0; }
  Index group_size() const { return kernel_rows * steps * (split ? 2 : 1) * 32 * 32; }
  const Bf16* group(Index g) const { return data_.data() + g * group_size(); }
  const float* bias(Index g) const { return bias_.data() + g * 32; }

 private:
  Buffer<Bf16> data_;
  Buffer<float> bias_;
};

// Whether the matrices are full with a convolution's channels, and, of split maps, nothing is left to be filled up.
bool amx_suits(Index in, Index out, bool split = false);

// In: Bf16; or float, for a map with adjoining pixels (sw = c) and nothing fused into its load. Split maps have twice as
// many channels as the weights.
template <class In>
Stage amx_stage(const Run<float>& run, const AmxWeights& w, const Convolution<float, In, Bf16>& c);

// L34 over `region`, kept in h2 if its data is not null, and the products of its output with L35's nine taps: see
// tail_stage.
Stage amx_tail_stage(int threads, Map<const Bf16> h1, const AmxWeights& second, const AmxWeights& last,
                     const Rect& region, Map<Bf16> h2, Map<float> taps);
// Bytes that each thread takes for it where h1 is read in place.
std::size_t amx_tail_scratch(const AmxWeights& second, const AmxWeights& last);

// Channels c0 <= c < c1 of columns x0 <= x < x0 + cols of a row, pixels `pixel` elements apart: zeros between them, and
// outside `readable`.
void amx_load_row(const AmxKernels& k, const Source<float, Bf16>& source, const Rect& readable, Index n, Index y,
                  Index x0, Index cols, Index c0, Index c1, Index pixel, Bf16* to);

}  // namespace dblr
