#include "norm.h"

#include <algorithm>
#include <cmath>

#include "threads.h"

namespace dblr {
namespace {

// A pass over whole maps goes in tiles of this many columns and rows: sums within a row stay short, and the
// tiles do not depend on the number of threads.
constexpr Index kPassCols = 64, kPassRows = 16;

Tiling pass_tiling(Index h, Index w) {
  Tiling t(1, 1, 1, 1);
  t.rows = std::min(h, kPassRows);
  t.cols = std::min(w, kPassCols);
  t.down = (h + t.rows - 1) / t.rows;
  t.across = (w + t.cols - 1) / t.cols;
  return t;
}

}  // namespace

template <class T>
Norm<T>::Norm(Index count)
    : channels(count), mean(count), scale(count), shift(count), k1(count), k2(count), k3(count) {
  for (Index c = 0; c < count; c++) {
    scale[c] = k1[c] = 1;
    mean[c] = shift[c] = k2[c] = k3[c] = 0;
  }
}

template <class T> Norm<T>::Norm(const NormParameters<T>& p, Index count) : Norm(count) {
  for (Index c = 0; c < count; c++) {
    mean[c] = static_cast<T>(static_cast<double>(p.mean[c]) - (p.bias ? p.bias[c] : T(0)));
    scale[c] = static_cast<T>(p.gamma[c] / std::sqrt(p.var[c] + p.eps));
    shift[c] = p.beta[c];
  }
}

template <class T>
void Norm<T>::set_gradient(const NormParameters<T>& p, const TileSums& sums, bool training, T* dbias, T* dgamma,
                           T* dbeta) {
  double count = 0;
  for (Index n : sums.count) count += static_cast<double>(n);
  for (Index c = 0; c < channels; c++) {
    double s0 = 0, s1 = 0;
    for (std::size_t tile = 0; tile < sums.count.size(); tile++) {
      s0 += sums.s0[tile * channels + c];
      s1 += sums.s1[tile * channels + c];
    }
    const double inverse = 1 / std::sqrt(p.var[c] + p.eps), factor = p.gamma[c] * inverse;
    dgamma[c] = static_cast<T>(s1 * inverse);
    dbeta[c] = static_cast<T>(s0);
    dbias[c] = training ? T(0) : static_cast<T>(factor * s0);
    k1[c] = static_cast<T>(factor);
    k2[c] = training ? static_cast<T>(-factor * inverse * inverse * s1 / count) : T(0);
    k3[c] = training ? static_cast<T>(-factor * s0 / count) : T(0);
  }
}

template <class T> Folded<T>::Folded(const NormParameters<T>& p, Index channels) : scale(channels), bias(channels) {
  for (Index c = 0; c < channels; c++) {
    scale[c] = p.gamma[c] / std::sqrt(p.var[c] + p.eps);
    bias[c] = static_cast<T>((static_cast<double>(p.bias[c]) - p.mean[c]) * scale[c] + p.beta[c]);
  }
}

template <class T, class S>
void tile_moments(const MapKernels<T, S>& k, const Map<const S>& z, const Tile& t, T* mean, TileSums& sums, Index at) {
  Sums<T, S> s = {};
  s.a = pixels(z, t.n, t.y, t.x);
  s.rows = t.rows;
  s.cols = t.cols;
  s.channels = z.c;
  s.s0 = sums.s0.data() + at * z.c;
  s.s1 = sums.s1.data() + at * z.c;
  s.sum = Sum::plain;
  k.sums(s);
  const double count = static_cast<double>(t.rows * t.cols);
  for (Index c = 0; c < z.c; c++) mean[c] = static_cast<T>(s.s0[c] / count);
  s.sum = Sum::squares;
  s.mean = mean;
  k.sums(s);
  for (Index c = 0; c < z.c; c++) {  // about the rounded mean: correct for what was rounded off
    const double off = s.s0[c] / count;
    s.s0[c] = mean[c] + off;
    s.s1[c] -= off * off * count;
  }
  sums.count[at] = t.rows * t.cols;
}

template <class T, class S>
void tile_norm_sums(const MapKernels<T, S>& k, const Source<T, S>& norm, const Tile& t, TileSums& sums, Index at) {
  const Map<const S>& grad = norm.a;
  Sums<T, S> s = {};
  s.a = pixels(grad, t.n, t.y, t.x);
  s.b = pixels(norm.b, t.n, t.y, t.x);
  s.rows = t.rows;
  s.cols = t.cols;
  s.channels = grad.c;
  s.sum = Sum::norm_grad;
  s.relu = norm.relu;
  s.mean = norm.mean;
  s.scale = norm.scale;
  s.shift = norm.shift;
  s.s0 = sums.s0.data() + at * grad.c;
  s.s1 = sums.s1.data() + at * grad.c;
  k.sums(s);
  sums.count[at] = t.rows * t.cols;
}

template <class T> void merge_moments(const TileSums& sums, Index channels, T* mean, T* var) {
  for (Index c = 0; c < channels; c++) {
    double count = 0, m = 0, m2 = 0;
    for (std::size_t tile = 0; tile < sums.count.size(); tile++) {
      const double n = static_cast<double>(sums.count[tile]), total = count + n;
      const double delta = sums.s0[tile * channels + c] - m;
      m += delta * n / total;
      m2 += sums.s1[tile * channels + c] + delta * delta * count * n / total;
      count = total;
    }
    mean[c] = static_cast<T>(m);
    var[c] = static_cast<T>(std::max(m2, 0.0) / count);
  }
}

template <class T, class S> void norm_sums(const Run<T>& run, const Source<T, S>& norm, TileSums& sums) {
  const Map<const S>& grad = norm.a;
  const Tiling tiling = pass_tiling(grad.h, grad.w);
  const Index tasks = grad.n * tiling.tiles();
  sums.resize(tasks, grad.c);
  parallel(run.threads, tasks, 0, [&](Index task, char*) {
    tile_norm_sums(maps_of<S>(run), norm, tile_at(tiling, whole(grad.h, grad.w), task), sums, task);
  });
}

template <class T, class S>
void normalise(const Run<T>& run, const Norm<T>& norm, Map<const S> z, bool relu, Map<const S> add, Map<S> out) {
  const Tiling tiling = pass_tiling(z.h, z.w);
  parallel(run.threads, z.n * tiling.tiles(), 0, [&](Index task, char*) {
    const Tile t = tile_at(tiling, whole(z.h, z.w), task);
    maps_of<S>(run).normalise({pixels(z, t.n, t.y, t.x), pixels(add, t.n, t.y, t.x), pixels(out, t.n, t.y, t.x),
                               t.rows, t.cols, z.c, relu, norm.mean.data(), norm.scale.data(), norm.shift.data()});
  });
}

#define INSTANTIATE(T)           \
  template class Norm<T>;        \
  template struct Folded<T>;     \
  template void merge_moments(const TileSums&, Index, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
#define INSTANTIATE_MAPS(T, S)                                                                                        \
  template void tile_moments(const MapKernels<T, S>&, const Map<const S>&, const Tile&, T*, TileSums&, Index);        \
  template void tile_norm_sums(const MapKernels<T, S>&, const Source<T, S>&, const Tile&, TileSums&, Index);          \
  template void norm_sums(const Run<T>&, const Source<T, S>&, TileSums&);                                             \
  template void normalise(const Run<T>&, const Norm<T>&, Map<const S>, bool, Map<const S>, Map<S>);
INSTANTIATE_MAPS(float, float)
INSTANTIATE_MAPS(double, double)
INSTANTIATE_MAPS(float, Bf16)

}  // namespace dblr
