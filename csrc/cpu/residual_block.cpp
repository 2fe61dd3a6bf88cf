#include "ops.h"
#include "weight_gradient.h"

namespace dblr {

template <class T>
void residual_block(int threads, Map<const T> x, const ConvNorm<T>& first, const ConvNorm<T>& second, Map<T> y,
                    Map<T> middle, bool gradient, T* mean1, T* var1, T* mean2, T* var2, bool training) {
  if (!training && !gradient) {
    conv_bn_act<T>(threads, x, first, {}, middle, {}, nullptr, nullptr, true, false);
    return conv_bn_act<T>(threads, constant(middle), second, x, y, {}, nullptr, nullptr, false, false);
  }
  const Run<T> run(threads);
  NormParameters<T> p1 = first.norm, p2 = second.norm;
  TileSums moments;
  Convolution<T> c;
  c.region = whole(y.h, y.w);
  if (training) c.moments = &moments;

  const Weights<T> w1 = weights_for(run, forward_filter(first.weight, middle.c, x.c));
  c.source = copy_of(x);
  c.weights = &w1;
  c.out = middle;
  convolve(run, c);
  if (training) {
    merge_moments(moments, middle.c, mean1, var1);
    p1.mean = mean1;
    p1.var = var1;
  }

  const Norm<T> norm1(p1, middle.c);
  const Weights<T> w2 = weights_for(run, forward_filter(second.weight, y.c, middle.c));
  c.source = norm1.normalised(constant(middle));
  c.weights = &w2;
  c.out = y;
  convolve(run, c);
  if (training) {
    merge_moments(moments, y.c, mean2, var2);
    p2.mean = mean2;
    p2.var = var2;
  }
  normalise(run, Norm<T>(p2, y.c), constant(y), false, x, y);
}

template <class T>
void residual_block_backward(int threads, Map<const T> grad, Map<const T> x, const ConvNorm<T>& first,
                             const ConvNorm<T>& second, const std::array<Map<T>, 3>& scratch_maps, Map<T> dx,
                             const ConvNormGradient<T>& d1, const ConvNormGradient<T>& d2, bool training) {
  const Run<T> run(threads);
  const Map<T>& scratch = scratch_maps[2];
  const Map<const T> z1 = constant(scratch_maps[0]), z2 = constant(scratch_maps[1]);
  TileSums sums;
  Norm<T> norm1(first.norm, z1.c), norm2(second.norm, z2.c);

  // Forward again, to the same bits.
  const auto again = [&](const Source<T>& source, const T* weight, const Map<T>& out) {
    const Weights<T> weights = weights_for(run, forward_filter(weight, out.c, source.a.c));
    Convolution<T> c;
    c.source = source;
    c.weights = &weights;
    c.region = whole(x.h, x.w);
    c.out = out;
    convolve(run, c);
  };
  again(copy_of(x), first.weight, scratch_maps[0]);
  again(norm1.normalised(z1), second.weight, scratch_maps[1]);

  norm_sums(run, norm2.gradient(grad, z2, false), sums);
  norm2.set_gradient(second.norm, sums, training, d2.bias, d2.gamma, d2.beta);
  const Source<T> dz2 = norm2.gradient(grad, z2, false);
  const Weights<T> w2 = weights_for(run, backward_filter(second.weight, z2.c, z1.c));
  Convolution<T> c;
  c.source = dz2;
  c.weights = &w2;
  c.region = whole(x.h, x.w);
  c.out = scratch;
  c.norm_sums = &sums;
  c.norm = norm1.gradient(constant(scratch), z1, true);
  convolve(run, c);
  weight_gradient<T>(run, {norm1.normalised(z1), dz2, whole(x.h, x.w), d2.weight, z1.c * 9, 9});

  norm1.set_gradient(first.norm, sums, training, d1.bias, d1.gamma, d1.beta);
  const Source<T> dz1 = norm1.gradient(constant(scratch), z1, true);
  if (dx.data) {
    const Weights<T> w1 = weights_for(run, backward_filter(first.weight, z1.c, x.c));
    Convolution<T> back;
    back.source = dz1;
    back.weights = &w1;
    back.region = c.region;
    back.out = dx;
    back.add[0] = grad;
    convolve(run, back);
  }
  weight_gradient<T>(run, {copy_of(x), dz1, c.region, d1.weight, x.c * 9, 9});
}

#define INSTANTIATE(T)                                                                                              \
  template void residual_block(int, Map<const T>, const ConvNorm<T>&, const ConvNorm<T>&, Map<T>, Map<T>, bool, T*, \
                               T*, T*, T*, bool);                                                                   \
  template void residual_block_backward(int, Map<const T>, Map<const T>, const ConvNorm<T>&, const ConvNorm<T>&,    \
                                        const std::array<Map<T>, 3>&, Map<T>, const ConvNormGradient<T>&,           \
                                        const ConvNormGradient<T>&, bool);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace dblr
