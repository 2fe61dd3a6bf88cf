#include "strips.h"

#include <algorithm>

namespace dblr {

void Strips::add(const Rect& region, std::function<void(const Rect&)> compute) {
  layers_.push_back({region, std::move(compute), region.y0});
}

void Strips::run() {
  if (!layers_.empty()) advance(layers_.size() - 1, layers_.back().region.y1);
}

void Strips::advance(std::size_t index, Index until) {
  Layer& layer = layers_[index];
  until = std::min(until, layer.region.y1);
  while (layer.done < until) {
    Rect strip = layer.region;
    strip.y0 = layer.done;
    const Index up = shift(static_cast<Index>(index));
    strip.y1 = std::min(((layer.done + up) / rows_ + 1) * rows_ - up, layer.region.y1);
    if (index > 0) advance(index - 1, strip.y1 + 1);
    layer.compute(strip);
    layer.done = strip.y1;
  }
}

}  // namespace dblr
