#include "ops.h"
#include "weight_gradient.h"

namespace dblr {

template <class T>
void conv_bn_act(int threads, Map<const T> x, const ConvNorm<T>& conv, Map<const T> residual, Map<T> y, Map<T> z,
                 T* mean, T* var, bool relu, bool training) {
  const Run<T> run(threads);
  const Filter<T> filter = forward_filter(conv.weight, y.c, x.c);
  Convolution<T> c;
  c.source = copy_of(x);
  c.region = whole(y.h, y.w);
  if (!training && !z.data) {  // batch norm folded into the weights
    const Folded<T> folded(conv.norm, y.c);
    const Weights<T> weights = weights_for(run, filter, folded.bias.data(), folded.scale.data());
    c.weights = &weights;
    c.out = y;
    c.relu = relu;
    c.add[0] = residual;
    return convolve(run, c);
  }
  const Weights<T> weights = weights_for(run, filter);
  TileSums moments;
  c.weights = &weights;
  c.out = z.data ? z : y;  // unless it is kept, normalised where it lies
  if (training) c.moments = &moments;
  convolve(run, c);
  NormParameters<T> p = conv.norm;
  if (training) {
    merge_moments(moments, y.c, mean, var);
    p.mean = mean;  // as they are handed out: backward sees these, and must see the same signs
    p.var = var;
  }
  normalise(run, Norm<T>(p, y.c), constant(c.out), relu, residual, y);
}

template <class T>
void conv_bn_act_backward(int threads, Map<const T> grad, Map<const T> x, const ConvNorm<T>& conv, Map<const T> z,
                          Map<T> dx, const ConvNormGradient<T>& d, bool relu, bool training) {
  const Run<T> run(threads);
  Norm<T> norm(conv.norm, z.c);
  TileSums sums;
  norm_sums(run, norm.gradient(grad, z, relu), sums);
  norm.set_gradient(conv.norm, sums, training, d.bias, d.gamma, d.beta);
  const Source<T> dz = norm.gradient(grad, z, relu);
  if (dx.data) {
    const Weights<T> weights = weights_for(run, backward_filter(conv.weight, z.c, x.c));
    Convolution<T> c;
    c.source = dz;
    c.weights = &weights;
    c.region = whole(x.h, x.w);
    c.out = dx;
    convolve(run, c);
  }
  weight_gradient<T>(run, {copy_of(x), dz, whole(z.h, z.w), d.weight, x.c * 9, 9});
}

#define INSTANTIATE(T)                                                                                               \
  template void conv_bn_act(int, Map<const T>, const ConvNorm<T>&, Map<const T>, Map<T>, Map<T>, T*, T*, bool, bool); \
  template void conv_bn_act_backward(int, Map<const T>, Map<const T>, const ConvNorm<T>&, Map<const T>, Map<T>,      \
                                     const ConvNormGradient<T>&, bool, bool);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace dblr
