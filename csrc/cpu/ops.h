// The ops of dblr_fast on the CPU. Maps that an op writes, and all but the x it reads, have unit channel stride.
// T: the type of the arithmetic, of parameters and of their gradients; S: that in which maps are kept. It is T, or Bf16
// where products are made in it: then convolutions multiply in bf16 too.
#pragma once

#include <array>
#include <memory>

#include "layer.h"
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
template <class T, class S = T>
void conv_bn_act(int threads, Map<const S> x, const ConvNorm<T>& conv, Map<const S> residual, Map<S> y, Map<S> z,
                 T* mean, T* var, bool relu, bool training);
// dx null: not wanted.
template <class T, class S = T>
void conv_bn_act_backward(int threads, Map<const S> grad, Map<const S> x, const ConvNorm<T>& conv, Map<const S> z,
                          Map<S> dx, const ConvNormGradient<T>& d, bool relu, bool training);

// y = x + norm(conv(relu(norm(conv(x))))). gradient: backward will be asked for, and must see the same signs before the
// ReLU; middle then receives the first convolution without its bias, and is scratch otherwise. z2 (null unless kept)
// receives the second one.
template <class T, class S = T>
void residual_block(int threads, Map<const S> x, const ConvNorm<T>& first, const ConvNorm<T>& second, Map<S> y,
                    Map<S> middle, Map<S> z2, bool gradient, T* mean1, T* var1, T* mean2, T* var2, bool training);
// maps: the two convolutions' outputs, each computed again, into this memory, unless it is `kept`; and scratch as large
// as the first.
template <class T, class S = T>
void residual_block_backward(int threads, Map<const S> grad, Map<const S> x, const ConvNorm<T>& first,
                             const ConvNorm<T>& second, const std::array<Map<S>, 3>& maps,
                             const std::array<bool, 2>& kept, Map<S> dx,
                             const ConvNormGradient<T>& d1, const ConvNormGradient<T>& d2, bool training);

// Two 3x3 convolutions with bias and ReLU; w1 (middle, in, 3, 3), w2 (out, middle, 3, 3).
template <class T> struct ConvPair {
  const T *w1, *b1, *w2, *b2;
  Index in, middle, out;
};
template <class T, class S = T>
void stem(const Run<T>& run, Map<const S> x, const WeightsFor<T, S>& first, const WeightsFor<T, S>& second,
          const Rect& region, Map<S> y);
template <class T, class S = T>
void stem_backward(int threads, Map<const S> grad, Map<const S> x, Map<const S> y, const ConvPair<T>& p, Map<S> dx,
                   T* dw1, T* db1, T* dw2, T* db2);

// L33 to L35. last: the nine taps of L35 as a 1x1 convolution, see tap_filter.
template <class T> Filter<T> tap_filter(const T* w3, Index in);
// W: Weights<T>, or those of its layers for maps of another type.
template <class T, class W = Weights<T>> struct Tail {
  const W *first, *second, *last;
  T bias;
};
// taps: nine planes over `region` grown by one, or three strips of them in a ring. h1, h2: kept if data is not null.
template <class T, class S = T>
void reconstruct(const Run<T>& run, Map<const S> x, const Tail<T, WeightsFor<T, S>>& tail, const Rect& region, Map<T> taps, Map<T> y,
                 Map<S> h1, Map<S> h2);
// Its parts: L34 over `region`, from h1 to the products of its output with the nine taps; and their sum.
template <class T, class S>
Stage tail_stage(const Run<T>& run, Map<const S> h1, const Tail<T>& tail, const Rect& region, Map<S> h2, Map<T> taps);
template <class T> Stage taps_stage(Map<const T> taps, T bias, const Rect& region, Map<T> y);
// Bytes that each thread takes for them beside the maps.
template <class T> std::size_t tail_scratch(const Run<T>& run, const Tail<T>& tail);
template <class T, class S = T>
void reconstruct_backward(int threads, Map<const S> grad, Map<const S> x, Map<const S> h1, Map<const S> h2,
                          const ConvPair<T>& p, const T* w3, Map<S> dx, T* dw1, T* db1, T* dw2, T* db2, T* dw3, T* db3);

}  // namespace dblr
