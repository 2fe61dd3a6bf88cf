#include <algorithm>

#include "ops.h"
#include "strips.h"
#include "weight_gradient.h"

namespace dblr {
namespace {

// Backward holds the middle map and its gradient for this many pixels at a time.
constexpr Index kBandPixels = 64 * 1024;

}  // namespace

template <class T, class S>
void stem(const Run<T>& run, Map<const S> x, const WeightsFor<T, S>& first, const WeightsFor<T, S>& second,
          const Rect& region, Map<S> y) {
  if (region.h() <= 0 || region.w() <= 0) return;
  Convolution<T, S, S> c;
  c.relu = true;
  feed<T, S>(run, x, first, region, [&](Index n, const Map<const S>& middle, const Rect& strip) {
    c.source = copy_of<T>(middle);
    c.region = strip;
    c.out = picture_of(y, n);
    convolve(run, second, c);
  });
}

template <class T, class S>
void stem_backward(int threads, Map<const S> grad, Map<const S> x, Map<const S> y, const ConvPair<T>& p, Map<S> dx,
                   T* dw1, T* db1, T* dw2, T* db2) {
  const Run<T> run(threads);
  const auto first = layer_weights<S>(run, forward_filter(p.w1, p.middle, p.in), p.b1);
  const auto second_back = gradient_weights<S>(run, backward_filter(p.w2, p.out, p.middle));
  const auto first_back = gradient_weights<S>(run, backward_filter(p.w1, p.middle, p.in));
  const Index h = x.h, w = x.w;
  const Index band_rows = std::min(h, std::max<Index>(kBandPixels / w, 8));
  const Index size = std::min(h, band_rows + 2) * w * p.middle;
  Buffer<S> middle_data(size), gradient_data(size);
  bool add = false;
  for (Index n = 0; n < x.n; n++) {
    const auto picture = [n](const auto& map) { return picture_of(map, n); };
    const Source<T, S> dz2 = {picture(grad), picture(y), Load::relu_grad, true, nullptr, nullptr, nullptr,
                           nullptr, nullptr, nullptr};
    for (Index y0 = 0; y0 < h; y0 += band_rows, add = true) {
      const Rect band = {y0, std::min(h, y0 + band_rows), 0, w};
      const Rect around = grow(band, 1, h, w);
      const Map<S> middle = part_of_picture(middle_data.data(), p.middle, around, h, w);
      const Map<S> gradient = part_of_picture(gradient_data.data(), p.middle, around, h, w);
      Convolution<T, S, S> c;
      c.source = copy_of<T>(picture(x));
      c.region = around;
      c.out = middle;
      c.relu = true;
      convolve(run, first, c);
      c = {};
      c.source = dz2;
      c.region = around;
      c.out = gradient;
      c.mask = constant(middle);
      convolve(run, second_back, c);
      using Gradient = WeightGradient<T, S>;
      const Source<T, S> dz1 = copy_of<T>(constant(gradient));
      weight_gradient(run, Gradient{copy_of<T>(constant(middle)), dz2, band, dw2, p.middle * 9, 9, false, add, db2});
      weight_gradient(run, Gradient{copy_of<T>(picture(x)), dz1, band, dw1, p.in * 9, 9, false, add, db1});
      if (!dx.data) continue;
      c = {};
      c.source = dz1;
      c.region = band;
      c.out = picture(dx);
      convolve(run, first_back, c);
    }
  }
}

#define INSTANTIATE(T, S)                                                                                           \
  template void stem(const Run<T>&, Map<const S>, const WeightsFor<T, S>&, const WeightsFor<T, S>&, const Rect&,    \
                     Map<S>);                                                                                       \
  template void stem_backward(int, Map<const S>, Map<const S>, Map<const S>, const ConvPair<T>&, Map<S>, T*, T*, T*, \
                              T*);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(float, Bf16)

}  // namespace dblr
