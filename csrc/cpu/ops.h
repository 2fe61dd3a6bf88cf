// The ops of dblr_fast on the CPU. Maps that an op writes, and all but the x it reads, have unit channel stride.
#pragma once

#include <array>
#include <memory>

#include "norm.h"

namespace dblr {

// A convolution with batch norm: weight (out, in, 3, 3) and vectors (out,), contiguous.
template <class T> struct ConvNorm {
  const T* weight;
  NormParameters<T> norm;
};
template <class T> struct ConvNormGradient {
  T *weight, *bias, *gamma, *beta;
};

// y = act(norm(conv(x))) + residual. With training the batch's statistics are written to mean and var; z (null
// unless kept) receives the convolution without its bias.
template <class T>
void conv_bn_act(int threads, Map<const T> x, const ConvNorm<T>& conv, Map<const T> residual, Map<T> y, Map<T> z,
                 T* mean, T* var, bool relu, bool training);
// dx null: not wanted.
template <class T>
void conv_bn_act_backward(int threads, Map<const T> grad, Map<const T> x, const ConvNorm<T>& conv, Map<const T> z,
                          Map<T> dx, const ConvNormGradient<T>& d, bool relu, bool training);

// y = x + norm(conv(relu(norm(conv(x))))). middle: scratch. gradient: backward will be asked for, and must see the same
// signs before the ReLU.
template <class T>
void residual_block(int threads, Map<const T> x, const ConvNorm<T>& first, const ConvNorm<T>& second, Map<T> y,
                    Map<T> middle, bool gradient, T* mean1, T* var1, T* mean2, T* var2, bool training);
// Of the forward pass x and the statistics are all that is kept: both convolutions are computed again, for a sixth of a
// step's time and a third of its memory. scratch: maps as the first convolution's output, the second's, the first's.
template <class T>
void residual_block_backward(int threads, Map<const T> grad, Map<const T> x, const ConvNorm<T>& first,
                             const ConvNorm<T>& second, const std::array<Map<T>, 3>& scratch, Map<T> dx,
                             const ConvNormGradient<T>& d1, const ConvNormGradient<T>& d2, bool training);

// Two 3x3 convolutions with bias and ReLU; w1 (middle, in, 3, 3), w2 (out, middle, 3, 3).
template <class T> struct ConvPair {
  const T *w1, *b1, *w2, *b2;
  Index in, middle, out;
};
template <class T> void stem(const Run<T>& run, Map<const T> x, const Weights<T>& first, const Weights<T>& second,
                             const Rect& region, Map<T> y);
template <class T>
void stem_backward(int threads, Map<const T> grad, Map<const T> x, Map<const T> y, const ConvPair<T>& p, Map<T> dx,
                   T* dw1, T* db1, T* dw2, T* db2);

// L33 to L35. last: the nine taps of L35 as a 1x1 convolution, see tap_filter.
template <class T> Filter<T> tap_filter(const T* w3, Index in);
template <class T> struct Tail {
  const Weights<T>*first, *second, *last;
  T bias;
};
// taps: nine planes over `region` grown by one, or three strips of them in a ring. h1, h2: kept if data is not null.
template <class T>
void reconstruct(const Run<T>& run, Map<const T> x, const Tail<T>& tail, const Rect& region, Map<T> taps, Map<T> y,
                 Map<T> h1, Map<T> h2);
// Its parts: L34 over `region`, from h1 to the products of its output with the nine taps; and their sum.
template <class T>
void tail_products(const Run<T>& run, Map<const T> h1, const Tail<T>& tail, const Rect& region, Map<T> h2,
                   Map<T> taps);
// With h1 in 16 bits: where the weights are Winograd's with tiles of 6, or in bf16.
void tail_products(const Run<float>& run, Map<const Half> h1, const Tail<float>& tail, const Rect& region,
                   Map<float> taps);
void tail_products(const Run<float>& run, Map<const Bf16> h1, const Tail<float>& tail, const Rect& region,
                   Map<float> taps);
template <class T> void add_taps(const Run<T>& run, Map<const T> taps, T bias, const Rect& region, Map<T> y);
// Bytes that each thread takes for them beside the maps.
template <class T> std::size_t tail_scratch(const Kernels<T>& kernels, const Tail<T>& tail);
template <class T>
void reconstruct_backward(int threads, Map<const T> grad, Map<const T> x, Map<const T> h1, Map<const T> h2,
                          const ConvPair<T>& p, const T* w3, Map<T> dx, T* dw1, T* db1, T* dw2, T* db2, T* dw3, T* db3);

}  // namespace dblr
