#include "ops.h"
#include "weight_gradient.h"

namespace dblr {

template <class T, class S>
void residual_block(int threads, Map<const S> x, const ConvNorm<T>& first, const ConvNorm<T>& second, Map<S> y,
                    Map<S> middle, Map<S> z2, bool gradient, T* mean1, T* var1, T* mean2, T* var2, bool training) {
  if (!training && !gradient) {
    conv_bn_act<T, S>(threads, x, first, {}, middle, {}, nullptr, nullptr, true, false);
    return conv_bn_act<T, S>(threads, constant(middle), second, x, y, {}, nullptr, nullptr, false, false);
  }
  const Run<T> run(threads);
  NormParameters<T> p1 = first.norm, p2 = second.norm;
  TileSums moments;
  Convolution<T, S, S> c;
  c.region = whole(y.h, y.w);
  if (training) c.moments = &moments;

  c.source = copy_of<T>(x);
  c.out = middle;
  convolve(run, layer_weights<S>(run, forward_filter(first.weight, middle.c, x.c)), c);
  if (training) {
    merge_moments(moments, middle.c, mean1, var1);
    p1.mean = mean1;
    p1.var = var1;
  }

  const Norm<T> norm1(p1, middle.c);
  c.source = norm1.normalised(constant(middle));
  c.out = z2.data ? z2 : y;  // unless it is kept, normalised where it lies
  convolve(run, layer_weights<S>(run, forward_filter(second.weight, y.c, middle.c)), c);
  if (training) {
    merge_moments(moments, y.c, mean2, var2);
    p2.mean = mean2;
    p2.var = var2;
  }
  normalise(run, Norm<T>(p2, y.c), constant(c.out), false, x, y);
}

template <class T, class S>
void residual_block_backward(int threads, Map<const S> grad, Map<const S> x, const ConvNorm<T>& first,
                             const ConvNorm<T>& second, const std::array<Map<S>, 3>& maps,
                             const std::array<bool, 2>& kept, Map<S> dx,
                             const ConvNormGradient<T>& d1, const ConvNormGradient<T>& d2, bool training) {
  const Run<T> run(threads);
  const Map<S>& scratch = maps[2];
  const Map<const S> z1 = constant(maps[0]), z2 = constant(maps[1]);
  TileSums sums;
  Norm<T> norm1(first.norm, z1.c), norm2(second.norm, z2.c);

  // Forward again, to the same bits. The sums over the second convolution's output are taken while it is in cache.
  Convolution<T, S, S> again;
  again.region = whole(x.h, x.w);
  if (!kept[0]) {
    again.source = copy_of<T>(x);
    again.out = maps[0];
    convolve(run, layer_weights<S>(run, forward_filter(first.weight, z1.c, x.c)), again);
  }
  const Source<T, S> dz2 = norm2.gradient(grad, z2, false);
  if (kept[1]) {
    norm_sums(run, dz2, sums);
  } else {
    again.source = norm1.normalised(z1);
    again.out = maps[1];
    again.norm_sums = &sums;
    again.norm = dz2;
    convolve(run, layer_weights<S>(run, forward_filter(second.weight, z2.c, z1.c)), again);
  }
  norm2.set_gradient(second.norm, sums, training, d2.bias, d2.gamma, d2.beta);  // dz2 reads it from here on
  Convolution<T, S, S> c;
  c.source = dz2;
  c.region = whole(x.h, x.w);
  c.out = scratch;
  c.norm_sums = &sums;
  c.norm = norm1.gradient(constant(scratch), z1, true);
  gradients(run, backward_filter(second.weight, z2.c, z1.c), c,
            WeightGradient<T, S>{norm1.normalised(z1), dz2, c.region, d2.weight, z1.c * 9, 9});

  norm1.set_gradient(first.norm, sums, training, d1.bias, d1.gamma, d1.beta);
  const Source<T, S> dz1 = norm1.gradient(constant(scratch), z1, true);
  Convolution<T, S, S> back;
  back.source = dz1;
  back.region = c.region;
  back.out = dx;
  back.add[0] = grad;
  gradients(run, backward_filter(first.weight, z1.c, x.c), back,
            WeightGradient<T, S>{copy_of<T>(x), dz1, c.region, d1.weight, x.c * 9, 9});
}

#define INSTANTIATE(T, S)                                                                                           \
  template void residual_block(int, Map<const S>, const ConvNorm<T>&, const ConvNorm<T>&, Map<S>, Map<S>, Map<S>,   \
                               bool, T*, T*, T*, T*, bool);                                                         \
  template void residual_block_backward(int, Map<const S>, Map<const S>, const ConvNorm<T>&, const ConvNorm<T>&,    \
                                        const std::array<Map<S>, 3>&, const std::array<bool, 2>&, Map<S>,           \
                                        const ConvNormGradient<T>&, const ConvNormGradient<T>&, bool);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(float, Bf16)

}  // namespace dblr
