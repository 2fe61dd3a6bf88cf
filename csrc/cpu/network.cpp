#include "network.h"

#include <algorithm>

namespace dblr {

Network::Network(int threads, const Shape& shape, const ConvPair<float>& stem, const std::vector<Layer>& body,
                 const ConvPair<float>& tail, const float* w3, float b3, bool tail_skip)
    : shape_(shape), kernels_(kernels_of<float>(table())), b3_(b3), tail_skip_(tail_skip) {
  const Run<float> run(threads, kernels_);
  const auto pack = [&](std::vector<Weights<float>>& to, const float* w, const float* b, Index out, Index in) {
    to.emplace_back(run, forward_filter(w, out, in), b);
  };
  pack(stem_, stem.w1, stem.b1, shape.middle, shape.frames);
  pack(stem_, stem.w2, stem.b2, shape.width, shape.middle);
  for (const Layer& layer : body) pack(body_, layer.weight, layer.bias, shape.width, shape.width);
  pack(tail_, tail.w1, tail.b1, shape.tail, shape.width);
  pack(tail_, tail.w2, tail.b2, shape.tail, shape.tail);
  tail_.emplace_back(run, tap_filter(w3, shape.tail));
}

// Floats of one map of the body; the nine planes of the tail must fit too.
Index Network::map_size(const Rect& part) const {
  return (part.h() * part.w() * std::max<Index>(shape_.width, 9) + 15) / 16 * 16;
}

std::size_t Network::workspace_bytes(Index h, Index w, const Rect& valid) const {
  return 3 * map_size(grow(valid, layers() - 2, h, w)) * sizeof(float);
}

std::size_t Network::thread_bytes(Index h, Index w, const Rect& valid) const {
  return reconstruct_scratch(tail(), valid, h, w);
}

void Network::run(int threads, Map<const float> x, const Rect& valid, float* workspace, Map<float> y) const {
  const Run<float> run(threads, kernels_);
  const Index h = x.h, w = x.w;
  const Rect stem_part = grow(valid, layers() - 2, h, w);
  const auto map = [&](int i) {
    return part_of_picture(workspace + i * map_size(stem_part), shape_.width, stem_part, h, w);
  };
  // l2: the stem's output, kept for the last addition; a: the blocks' sum; b: between two convolutions.
  const Map<float> l2 = map(0), a = map(1), b = map(2);
  stem(run, x, stem_[0], stem_[1], stem_part, l2);

  const Index count = static_cast<Index>(body_.size());
  Map<float> in = l2;
  for (Index i = 0; i < count; i++) {
    const bool second = i % 2 == 1, last = i == count - 1;
    Convolution<float> c;
    c.source = copy_of(constant(second ? b : in));
    c.weights = &body_[i];
    c.region = grow(valid, layers() - 3 - i, h, w);
    c.out = second ? a : b;
    c.relu = !second;
    if (second) c.add[0] = constant(last && !tail_skip_ ? l2 : in);  // in may be c.out: added pixel by pixel
    if (last && tail_skip_) c.add[1] = constant(l2);
    convolve(run, c);
    if (second) in = a;
  }

  const Rect around = grow(valid, 1, h, w);
  Map<float> taps = b;
  taps.c = 9;
  taps.sw = 1;
  taps.sh = around.w();
  taps.sc = around.h() * around.w();
  taps.data = workspace + 2 * map_size(stem_part) - around.y0 * taps.sh - around.x0;
  reconstruct<float>(run, constant(in), tail(), valid, taps, y, {}, {});
}

}  // namespace dblr
