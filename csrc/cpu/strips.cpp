#include "strips.h"

#include <algorithm>

namespace dblr {

std::vector<Strips::Strip> Strips::order() const {
  std::vector<Strip> order;
  std::vector<Layer> layers = layers_;
  if (!layers.empty()) advance(layers, layers.size() - 1, layers.back().region.y1, order);
  return order;
}

void Strips::advance(std::vector<Layer>& layers, std::size_t index, Index until, std::vector<Strip>& order) const {
  Layer& layer = layers[index];
  until = std::min(until, layer.region.y1);
  while (layer.done < until) {
    Rect strip = layer.region;
    strip.y0 = layer.done;
    const Index up = shift(static_cast<Index>(index));
    strip.y1 = std::min(((layer.done + up) / rows_ + 1) * rows_ - up, layer.region.y1);
    if (index > 0) advance(layers, index - 1, strip.y1 + 1, order);
    order.push_back({static_cast<Index>(index), strip});
    layer.done = strip.y1;
  }
}

}  // namespace dblr
