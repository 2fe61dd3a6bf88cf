// Convolutions from and to maps of a type, by the method that is fastest for it.
#pragma once

#include <optional>
#include <type_traits>

#include "amx.h"

namespace dblr {

// For maps in bf16: by AMX; where there is none by Winograd's transforms, or directly where these do not suit.
// Transforms in bf16 multiply by five what rounding to it errs: forward passes, through which errors add up from layer
// to layer, multiply in float, with F(8x8), whose own errors are small beside bf16's; gradients in bf16, with F(4x4).
struct Bf16Weights {
  Bf16Weights(const Run<float>& run, const Filter<float>& filter, const float* bias, const double* scale,
              bool gradient);
  Index out;
  std::optional<AmxWeights> amx;
  std::optional<Weights<float>> plain;  // instead
};
void convolve(const Run<float>& run, const Bf16Weights& w, const Convolution<float, Bf16, Bf16>& c);

template <class T, class S> using WeightsFor = std::conditional_t<std::is_same<S, T>::value, Weights<T>, Bf16Weights>;
template <class S, class T>
WeightsFor<T, S> layer_weights(const Run<T>& run, const Filter<T>& filter, const T* bias = nullptr,
                               const double* scale = nullptr) {
  if constexpr (std::is_same<S, T>::value) {
    return weights_for(run, filter, bias, scale);
  } else {
    return Bf16Weights(run, filter, bias, scale, false);
  }
}
template <class S, class T> WeightsFor<T, S> gradient_weights(const Run<T>& run, const Filter<T>& filter) {
  if constexpr (std::is_same<S, T>::value) {
    return weights_for(run, filter);
  } else {
    return Bf16Weights(run, filter, nullptr, nullptr, true);
  }
}

}  // namespace dblr
