#include "network.h"

#include <algorithm>

#include "strips.h"
#include "winograd.h"

namespace dblr {

Network::Network(int threads, const Shape& shape, const ConvPair<float>& stem, const std::vector<Layer>& body,
                 const ConvPair<float>& tail, const float* w3, float b3, bool tail_skip, int tile)
    : shape_(shape), kernels_(kernels_of<float>(table())), tile_(tile), b3_(b3), tail_skip_(tail_skip) {
  const Run<float> run(threads, kernels_);
  const auto pack = [&](std::vector<Weights<float>>& to, const float* w, const float* b, Index out, Index in) {
    const Filter<float> f = forward_filter(w, out, in);
    to.emplace_back(run, f, b, nullptr, winograd_tile(kernels_, f, tile));
  };
  pack(stem_, stem.w1, stem.b1, shape.middle, shape.frames);
  pack(stem_, stem.w2, stem.b2, shape.width, shape.middle);
  for (const Layer& layer : body) pack(body_, layer.weight, layer.bias, shape.width, shape.width);
  pack(tail_, tail.w1, tail.b1, shape.tail, shape.width);
  pack(tail_, tail.w2, tail.b2, shape.tail, shape.tail);
  tail_.emplace_back(run, tap_filter(w3, shape.tail));
}

struct Network::Maps {
  // Of a run without memory, to learn how much it takes; then with it.
  Maps(const Network& net, const Strips& strips, Index h, Index w, const Rect& valid, float* memory)
      : memory_(memory) {
    const Index layers = net.layers(), body = static_cast<Index>(net.body_.size());
    const auto after = [&](Index layer) { return grow(valid, layers - layer, h, w); };  // what layer 1, 2, ... gives
    const auto map = [&](Index channels, Index layer, Index later) {
      const Rect part = after(layer);
      const Index ring = std::min(strips.ring(later), (part.y1 + net.tile_ - 1) / net.tile_ * net.tile_);
      return ring_map(take(ring * part.w() * channels), channels, part, h, w, ring);
    };
    middle = map(net.shape_.middle, 1, 1);
    l2 = map(net.shape_.width, 2, std::max<Index>(body, 1));
    for (Index i = 0; i < body; i++) between.push_back(map(net.shape_.width, 3 + i, i % 2 ? 2 : 1));
    h1 = map(net.shape_.tail, layers - 2, 1);
    const Rect part = after(layers - 1);
    taps = {nullptr, 1, 9, h, w, 0, 0, part.w(), 1, strips.ring(1)};
    taps.sc = taps.ring * taps.sh;
    taps.data = take(9 * taps.sc) - part.x0;
  }
  Map<float> middle, l2, h1, taps;
  std::vector<Map<float>> between;  // what each layer of the body gives
  Index used = 0;

 private:
  float* take(Index count) {
    float* const p = memory_ + used;
    used += (count + 15) / 16 * 16;
    return p;
  }
  float* memory_;
};

std::size_t Network::workspace_bytes(Index h, Index w, const Rect& valid) const {
  float base;  // only distances from it count
  return Maps(*this, Strips(strip_rows()), h, w, valid, &base).used * sizeof(float);
}

std::size_t Network::thread_bytes(Index, Index, const Rect&) const { return tail_scratch(kernels_, tail()); }

void Network::run(int threads, Map<const float> x, const Rect& valid, float* workspace, Map<float> y) const {
  const Run<float> run(threads, kernels_);
  const Index h = x.h, w = x.w, count = static_cast<Index>(body_.size());
  Strips strips(strip_rows());
  const Maps maps(*this, strips, h, w, valid, workspace);
  Index left = layers();
  const auto layer = [&](const Weights<float>& weights, const Map<const float>& in, const Map<float>& out, bool relu,
                         const Map<float>& add = {}, const Map<float>& add_too = {}) {
    Convolution<float> c;
    c.source = copy_of(in);
    c.weights = &weights;
    c.out = out;
    c.relu = relu;
    c.add[0] = constant(add);
    c.add[1] = constant(add_too);
    strips.add(grow(valid, --left, h, w), [&run, c](const Rect& strip) mutable {
      c.region = strip;
      convolve(run, c);
    });
  };
  layer(stem_[0], x, maps.middle, true);
  layer(stem_[1], constant(maps.middle), maps.l2, true);
  Map<float> block = maps.l2, last = maps.l2;  // what the block began with, what the last layer gave
  for (Index i = 0; i < count; i++) {
    const Map<float>& out = maps.between[i];
    if (i % 2 == 0) {
      layer(body_[i], constant(last), out, true);
    } else {
      const bool end = i == count - 1;
      layer(body_[i], constant(last), out, false, end && !tail_skip_ ? maps.l2 : block,
            end && tail_skip_ ? maps.l2 : Map<float>{});
      block = out;
    }
    last = out;
  }
  layer(tail_[0], constant(last), maps.h1, true);
  strips.add(grow(valid, 1, h, w), [&](const Rect& strip) {
    tail_products<float>(run, constant(maps.h1), tail(), strip, {}, maps.taps);
  });
  strips.add(valid, [&](const Rect& strip) {
    add_taps<float>(run, constant(maps.taps), b3_, strip, y);
  });
  strips.run();
}

}  // namespace dblr
