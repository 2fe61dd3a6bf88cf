// Batch norm around the convolutions: statistics, constants, sums for the gradient, the pass that ends a block.
#pragma once

#include "convolve.h"

namespace dblr {

// Parameters and statistics of one convolution with batch norm, each (channels,). z is the convolution without
// its bias. In training bias is null and mean is that of z; else mean is the running one, of z + bias.
template <class T> struct NormParameters {
  const T *bias, *gamma, *beta, *mean, *var;
  double eps;
};

// The same per channel as the kernels want it.
template <class T> class Norm {
 public:
  Norm(const NormParameters<T>& p, Index channels);
  explicit Norm(Index channels);  // the identity
  // After the sums over a map: gradients of gamma, beta and bias, and the constants of the gradient to z.
  void set_gradient(const NormParameters<T>& p, const TileSums& sums, bool training, T* dbias, T* dgamma, T* dbeta);
  // z = b in these: a normalised and rectified load of z, and the gradient to z from that to the output.
  template <class S> Source<T, S> normalised(Map<const S> z) const {
    return {z, {}, Load::normalise, true, mean.data(), scale.data(), shift.data(), nullptr, nullptr, nullptr};
  }
  template <class S> Source<T, S> gradient(Map<const S> grad, Map<const S> z, bool relu) const {
    return {grad, z, Load::norm_grad, relu, mean.data(), scale.data(), shift.data(), k1.data(), k2.data(), k3.data()};
  }

  Index channels;
  Buffer<T> mean, scale, shift, k1, k2, k3;
};

// Folded into a convolution: factors of the weights and the bias that is left.
template <class T> struct Folded {
  Folded(const NormParameters<T>& p, Index channels);
  Buffer<double> scale;
  Buffer<T> bias;
};

template <class T, class S>
void tile_moments(const MapKernels<T, S>& k, const Map<const S>& z, const Tile& t, T* scratch, TileSums& sums,
                  Index at);
template <class T, class S>
void tile_norm_sums(const MapKernels<T, S>& k, const Source<T, S>& norm, const Tile& t, TileSums& sums, Index at);

// Mean and biased variance of all tiles, merged in order (Chan et al.) in double.
template <class T> void merge_moments(const TileSums& sums, Index channels, T* mean, T* var);

// Sums of g and g * (z - mean) over a whole map; norm as in Norm::gradient.
template <class T, class S> void norm_sums(const Run<T>& run, const Source<T, S>& norm, TileSums& sums);

// out = act(norm(z)) + add; add.data null: nothing added.
template <class T, class S>
void normalise(const Run<T>& run, const Norm<T>& norm, Map<const S> z, bool relu, Map<const S> add, Map<S> out);

}  // namespace dblr
