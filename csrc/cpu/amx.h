// Convolutions in bf16 on CPUs with AMX, whose matrix unit multiplies sixteen times as fast as their vectors do:
// directly, since Winograd's transforms would take longer than the products they save.
#pragma once

#include "convolve.h"

namespace dblr {

// Weights of a 3x3 or 1x1 convolution as the kernels take them, padded with zeros to whole tiles.
class AmxWeights {
 public:
  AmxWeights(const AmxKernels& kernels, int threads, const Filter<float>& filter, const float* bias = nullptr);
  const AmxKernels& kernels;  // that the products take
  Index in, out, kernel_rows;
  Index steps;   // of 32 elements in a kernel row
  Index groups;  // of 32 output channels
  Index group_size() const { return kernel_rows * steps * 32 * 32; }
  const Bf16* group(Index g) const { return data_.data() + g * group_size(); }
  const float* bias(Index g) const { return bias_.data() + g * 32; }

 private:
  Buffer<Bf16> data_;
  Buffer<float> bias_;
};

// Whether the matrices suit a convolution's channels.
bool amx_suits(Index in, Index out);

// Maps have adjoining pixels (sw = c). In: float or Bf16.
template <class In>
void amx_convolve(const Run<float>& run, const AmxWeights& w, const Convolution<float, In, Bf16>& c);

// L34 over `region` and the products of its output with L35's nine taps: see tail_products.
void amx_tail(int threads, Map<const Bf16> h1, const AmxWeights& second, const AmxWeights& last, const Rect& region,
              Map<float> taps);
// Bytes that each thread takes for it.
std::size_t amx_tail_scratch(const AmxWeights& second);

}  // namespace dblr
