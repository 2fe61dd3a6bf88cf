#include <algorithm>

#include "ops.h"
#include "strips.h"
#include "weight_gradient.h"

namespace dblr {
namespace {

// Backward holds the middle map and its gradient for this many pixels at a time.
constexpr Index kBandPixels = 64 * 1024;

}  // namespace

template <class T>
void stem(const Run<T>& run, Map<const T> x, const Weights<T>& first, const Weights<T>& second, const Rect& region,
          Map<T> y) {
  if (region.h() <= 0 || region.w() <= 0) return;
  Convolution<T> c;
  c.weights = &second;
  c.relu = true;
  feed(run, x, first, region, [&](Index n, const Map<const T>& middle, const Rect& strip) {
    c.source = copy_of(middle);
    c.region = strip;
    c.out = picture_of(y, n);
    convolve(run, c);
  });
}

template <class T>
void stem_backward(int threads, Map<const T> grad, Map<const T> x, Map<const T> y, const ConvPair<T>& p, Map<T> dx,
                   T* dw1, T* db1, T* dw2, T* db2) {
  const Run<T> run(threads);
  const Weights<T> first(run, forward_filter(p.w1, p.middle, p.in), p.b1);
  const Weights<T> second_back = weights_for(run, backward_filter(p.w2, p.out, p.middle));
  const Weights<T> first_back(run, backward_filter(p.w1, p.middle, p.in));
  const Index h = x.h, w = x.w;
  const Index band_rows = std::min(h, std::max<Index>(kBandPixels / w, 8));
  const Index size = std::min(h, band_rows + 2) * w * p.middle;
  Buffer<T> middle_data(size), gradient_data(size);
  bool add = false;
  for (Index n = 0; n < x.n; n++) {
    const auto picture = [n](const auto& map) { return picture_of(map, n); };
    const Source<T> dz2 = {picture(grad), picture(y), Load::relu_grad, true, nullptr, nullptr, nullptr,
                           nullptr, nullptr, nullptr};
    for (Index y0 = 0; y0 < h; y0 += band_rows, add = true) {
      const Rect band = {y0, std::min(h, y0 + band_rows), 0, w};
      const Rect around = grow(band, 1, h, w);
      const Map<T> middle = part_of_picture(middle_data.data(), p.middle, around, h, w);
      const Map<T> gradient = part_of_picture(gradient_data.data(), p.middle, around, h, w);
      Convolution<T> c;
      c.source = copy_of(picture(x));
      c.weights = &first;
      c.region = around;
      c.out = middle;
      c.relu = true;
      convolve(run, c);
      c = {};
      c.source = dz2;
      c.weights = &second_back;
      c.region = around;
      c.out = gradient;
      c.mask = constant(middle);
      convolve(run, c);
      weight_gradient<T>(run, {copy_of(constant(middle)), dz2, band, dw2, p.middle * 9, 9, false, add, db2});
      weight_gradient<T>(run, {copy_of(picture(x)), copy_of(constant(gradient)), band, dw1, p.in * 9, 9, false, add,
                               db1});
      if (!dx.data) continue;
      c = {};
      c.source = copy_of(constant(gradient));
      c.weights = &first_back;
      c.region = band;
      c.out = picture(dx);
      convolve(run, c);
    }
  }
}

#define INSTANTIATE(T)                                                                                              \
  template void stem(const Run<T>&, Map<const T>, const Weights<T>&, const Weights<T>&, const Rect&, Map<T>);       \
  template void stem_backward(int, Map<const T>, Map<const T>, Map<const T>, const ConvPair<T>&, Map<T>, T*, T*,    \
                              T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace dblr
