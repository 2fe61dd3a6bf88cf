#include "ops.h"
#include "weight_gradient.h"

namespace dblr {

template <class T, class S>
void conv_bn_act(int threads, Map<const S> x, const ConvNorm<T>& conv, Map<const S> residual, Map<S> y, Map<S> z,
                 T* mean, T* var, bool relu, bool training) {
  const Run<T> run(threads);
  const Filter<T> filter = forward_filter(conv.weight, y.c, x.c);
  Convolution<T, S, S> c;
  c.source = copy_of<T>(x);
  c.region = whole(y.h, y.w);
  if (!training && !z.data) {  // batch norm folded into the weights
    const Folded<T> folded(conv.norm, y.c);
    const auto weights = layer_weights<S>(run, filter, folded.bias.data(), folded.scale.data());
    c.out = y;
    c.relu = relu;
    c.add[0] = residual;
    return convolve(run, weights, c);
  }
  TileSums moments;
  c.out = z.data ? z : y;  // unless it is kept, normalised where it lies
  if (training) c.moments = &moments;
  convolve(run, layer_weights<S>(run, filter), c);
  NormParameters<T> p = conv.norm;
  if (training) {
    merge_moments(moments, y.c, mean, var);
    p.mean = mean;  // as they are handed out: backward sees these, and must see the same signs
    p.var = var;
  }
  normalise(run, Norm<T>(p, y.c), constant(c.out), relu, residual, y);
}

template <class T, class S>
void conv_bn_act_backward(int threads, Map<const S> grad, Map<const S> x, const ConvNorm<T>& conv, Map<const S> z,
                          Map<S> dx, const ConvNormGradient<T>& d, bool relu, bool training) {
  const Run<T> run(threads);
  Norm<T> norm(conv.norm, z.c);
  TileSums sums;
  norm_sums(run, norm.gradient(grad, z, relu), sums);
  norm.set_gradient(conv.norm, sums, training, d.bias, d.gamma, d.beta);
  const Source<T, S> dz = norm.gradient(grad, z, relu);
  Convolution<T, S, S> c;
  c.source = dz;
  c.region = whole(x.h, x.w);
  c.out = dx;
  gradients(run, backward_filter(conv.weight, z.c, x.c), c,
            WeightGradient<T, S>{copy_of<T>(x), dz, c.region, d.weight, x.c * 9, 9});
}

#define INSTANTIATE(T, S)                                                                                            \
  template void conv_bn_act(int, Map<const S>, const ConvNorm<T>&, Map<const S>, Map<S>, Map<S>, T*, T*, bool, bool); \
  template void conv_bn_act_backward(int, Map<const S>, Map<const S>, const ConvNorm<T>&, Map<const S>, Map<S>,      \
                                     const ConvNormGradient<T>&, bool, bool);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(float, Bf16)

}  // namespace dblr
