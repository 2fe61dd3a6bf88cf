// Gradient of a 3x3 convolution's weights (and bias): sums over all pixels of products of input and gradient.
#pragma once

#include <algorithm>

#include "layer.h"

namespace dblr {

template <class T, class S = T> struct WeightGradient {
  Source<T, S> x, dz;  // input and gradient to the output, as they load
  Rect region;      // which pixels of the gradient count
  T* dw;            // element (o, i, dy, dx) at o * so + i * si + dy * 3 + dx, or turned by 180 degrees
  Index so, si;
  bool flip = false;
  bool add = false;     // to what dw and dbias hold
  T* dbias = nullptr;   // null: not wanted
};

// Channels in ranges of `most`, each summed by a task of its own.
struct ChannelRanges {
  ChannelRanges(Index channels, Index most) : channels(channels), most(most), count(divide_up(channels, most)) {}
  Index channels, most, count;
  Index size(Index i) const { return std::min(most, channels - i * most); }
};

template <class T, class S> void weight_gradient(const Run<T>& run, const WeightGradient<T, S>& g);
void amx_weight_gradient(const Run<float>& run, const WeightGradient<float, Bf16>& g);

// Both gradients of a convolution over whole pictures: to its input, as c says (unless c.out is null), by these weights,
// see backward_filter, and to the weights. c.source is g.dz.
template <class T, class S>
void gradients(const Run<T>& run, const Filter<T>& weights, const Convolution<T, S, S>& c,
               const WeightGradient<T, S>& g);

// dbias alone.
template <class T, class S> void bias_gradient(const Run<T>& run, const WeightGradient<T, S>& g);

// dw alone, by Winograd's transforms, for shapes that they suit.
template <class T, class S> bool winograd_suits_gradient(const Kernels<T>& k, const WeightGradient<T, S>& g);
template <class T, class S> void winograd_weight_gradient(const Run<T>& run, const WeightGradient<T, S>& g);

}  // namespace dblr
