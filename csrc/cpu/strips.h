// Layers run strip by strip: each strip of a layer as soon as the one before has the rows that it reads. A few rows
// of each map are then alive at a time.
//
// Strips that start at the same row in every layer need the first row of the next strip of the layer before, so each
// layer stays a strip behind and reads what has left the cache since. Skewed, the strips of each layer start one row
// further up than those of the layer before: each reads what has just been written, and two rows above.
#pragma once

#include <algorithm>
#include <vector>

#include "layer.h"

namespace dblr {

class Strips {
 public:
  // rows of a strip; those of the first layer start at the picture's top row.
  explicit Strips(Index rows, bool skewed = false) : rows_(rows), skewed_(skewed) {}
  Index rows() const { return rows_; }
  bool skewed() const { return skewed_; }
  // By how many rows the strips of a layer start further up.
  Index shift(Index layer) const { return skewed_ ? layer : 0; }
  // The next layer: computes `region` from what the layer before gives there and one pixel around.
  void add(const Rect& region) { layers_.push_back({region, region.y0}); }
  // What is computed, in this order.
  struct Strip {
    Index layer;
    Rect part;
  };
  std::vector<Strip> order() const;

  // Rows that must be kept of a map whose last reader is `later` layers behind the one that writes it, in whole strips:
  // every layer is a strip ahead of the next, skewed a row, and a strip is read with its neighbours.
  Index ring(Index later) const {
    if (skewed_) return (later + rows_) / rows_ * rows_ + rows_;
    return (later + 1 > 3 ? later + 1 : 3) * rows_;
  }

 private:
  struct Layer {
    Rect region;
    Index done;  // rows above this one are computed
  };
  void advance(std::vector<Layer>& layers, std::size_t layer, Index until, std::vector<Strip>& order) const;
  Index rows_;
  bool skewed_;
  std::vector<Layer> layers_;
};

// A channels_last map of which `ring` rows over the columns of `part` are kept; indexed as if all of an h x w picture
// were there.
template <class T>
Map<T> ring_map(T* data, Index channels, const Rect& part, Index h, Index w, Index ring, Index shift = 0) {
  const Index row = part.w() * channels;
  return {data - part.x0 * channels, 1, channels, h, w, 0, 1, row, channels, ring, shift};
}

// A convolution with ReLU of which the next layer, computing `region`, reads a strip at a time: the map between them
// never exists whole. next(n, map, strip) computes a strip of picture n from the map.
template <class T, class S, class Next>
void feed(const Run<T>& run, Map<const S> x, const WeightsFor<T, S>& weights, const Rect& region, const Next& next) {
  constexpr Index kRows = 16;
  const Rect part = grow(region, 1, x.h, x.w);
  const Index ring = std::min(Strips(kRows).ring(1), (part.y1 + kRows - 1) / kRows * kRows);
  Buffer<S> memory(ring * part.w() * weights.out);
  Convolution<T, S, S> c;
  c.relu = true;
  c.out = ring_map(memory.data(), weights.out, part, x.h, x.w, ring);
  for (Index n = 0; n < x.n; n++) {
    c.source = copy_of<T>(x);
    c.source.a.data += n * x.sn;
    Strips strips(kRows);
    strips.add(part);
    strips.add(region);
    for (const Strips::Strip& strip : strips.order()) {
      if (strip.layer > 0) {
        next(n, constant(c.out), strip.part);
        continue;
      }
      c.region = strip.part;
      convolve(run, weights, c);
    }
  }
}

}  // namespace dblr
