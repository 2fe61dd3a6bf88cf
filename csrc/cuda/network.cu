#include "network.h"

#include <algorithm>

namespace dblr {

namespace {

std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

CudaNetwork::CudaNetwork(Kind kind, Products products, bool sm90, const Shape& shape, const Weights& weights)
    : kind_(kind), products_(products), sm90_(sm90), shape_(shape), weights_(weights) {
  if (weights.body.empty() || weights.body.size() % 2 != 0) {
    throw std::invalid_argument("the body must have an even number of layers, at least two.");
  }
  convolutions_.push_back({shape.width, shape.middle, weights.stem[1].weight, weights.stem[1].bias, {}, {}});
  for (const Layer& layer : weights.body) {
    convolutions_.push_back({shape.width, shape.width, layer.weight, layer.bias, {}, {}});
  }
  convolutions_.push_back({shape.tail, shape.width, weights.tail[0].weight, weights.tail[0].bias, {}, {}});
  convolutions_.push_back({shape.tail, shape.tail, weights.tail[1].weight, weights.tail[1].bias, {}, {}});
}

bool CudaNetwork::packs_sm90(const Convolution& c) const {
  return sm90_ && kind_ != Kind::f32 && c.in % kChunk == 0 && c.out % kChunk == 0;
}

std::size_t CudaNetwork::portable_bytes(const Convolution& c) const { return aligned(dblr::packed_bytes(c.out, c.in, kind_)); }

std::size_t CudaNetwork::packed_bytes() const {
  std::size_t bytes = aligned(stem_bytes(shape_.frames, shape_.middle, kind_));
  for (const Convolution& c : convolutions_) {
    bytes += portable_bytes(c) + (packs_sm90(c) ? aligned(conv3x3_sm90_bytes(c.out, c.in)) : 0);
  }
  return bytes;
}

void CudaNetwork::pack(void* memory, Stream stream) {
  char* at = static_cast<char*>(memory);
  stem_ = pack_stem(weights_.stem[0].weight, Kind::f32, shape_.frames, shape_.frames, shape_.middle, kind_, at, stream);
  at += aligned(stem_bytes(shape_.frames, shape_.middle, kind_));
  for (Convolution& c : convolutions_) {
    c.portable = pack_weights(c.weight, Kind::f32, c.out, c.in, false, kind_, at, stream);
    at += portable_bytes(c);
    if (!packs_sm90(c)) continue;
    c.sm90 = pack_weights_sm90(c.weight, Kind::f32, c.out, c.in, false, kind_, at, stream);
    at += aligned(conv3x3_sm90_bytes(c.out, c.in));
  }
}

std::size_t CudaNetwork::map_bytes(Index pixels, Index channels) const {
  return aligned(static_cast<std::size_t>(pixels * channels) * size_of(kind_));
}

// The first buffer holds a map of the body, and L34's tap planes once L33 has read it.
std::size_t CudaNetwork::first_bytes(Index pixels) const {
  return std::max(map_bytes(pixels, shape_.width),
                  aligned(static_cast<std::size_t>(9 * chunks(shape_.tail) * pixels) * sizeof(float)));
}

// Behind the first buffer lie three maps of the body, the last of which holds L1's output too; L33's output takes their
// place. In 16 bits at 64 and 256 channels that is 656 bytes a pixel.
std::size_t CudaNetwork::workspace_bytes(Index n, Index h, Index w) const {
  const Index pixels = n * h * w;
  const std::size_t last = map_bytes(pixels, std::max(shape_.width, shape_.middle));
  const std::size_t body = 2 * map_bytes(pixels, shape_.width) + last;
  return first_bytes(pixels) + std::max(body, map_bytes(pixels, shape_.tail));
}

void CudaNetwork::convolve(const Convolution& c, const Map& x, Epilogue epilogue, Stream stream) const {
  epilogue.shift = c.bias;
  Source source;
  source.x = x;
  if (c.sm90.data && conv3x3_sm90_takes(source, c.out, epilogue)) {
    conv3x3_sm90(source, c.sm90, epilogue, stream);
  } else {
    conv3x3(source, c.portable, epilogue, products_, stream);
  }
}

void CudaNetwork::run(const Strided& x, void* workspace, float* y, Stream stream) const {
  const Index pixels = x.n * x.h * x.w;
  if (pixels == 0) return;
  const std::size_t map_size = map_bytes(pixels, shape_.width);
  char* const rest = static_cast<char*>(workspace) + first_bytes(pixels);
  const auto map = [&](void* data, Index channels) { return Map{data, x.n, x.h, x.w, channels, kind_}; };
  // The blocks' sums alternate between two maps, so that no convolution writes what it also adds; the last one goes to
  // the first buffer.
  const Map sums[2] = {map(workspace, shape_.width), map(rest, shape_.width)};
  const Map l2 = map(rest + map_size, shape_.width), between = map(rest + 2 * map_size, shape_.width);
  const Map l1 = map(between.data, shape_.middle), wide = map(rest, shape_.tail);

  stem(x, stem_, weights_.stem[0].bias, l1, products_, stream);
  Epilogue l2_epilogue;
  l2_epilogue.relu = true;
  l2_epilogue.y = l2;
  convolve(convolutions_[0], l1, l2_epilogue, stream);
  const std::size_t pairs = weights_.body.size() / 2;
  Map in = l2;
  for (std::size_t i = 0; i < pairs; i++) {
    const bool last = i == pairs - 1;
    Epilogue first;
    first.relu = true;
    first.y = between;
    convolve(convolutions_[2 * i + 1], in, first, stream);
    Epilogue second;
    second.add0 = last && !weights_.tail_skip ? l2 : in;
    if (last && weights_.tail_skip) second.add1 = l2;
    second.y = sums[(pairs - 1 - i) % 2];
    convolve(convolutions_[2 * i + 2], between, second, stream);
    in = second.y;
  }

  Epilogue l33;
  l33.relu = true;
  l33.y = wide;
  convolve(convolutions_[2 * pairs + 1], in, l33, stream);
  Epilogue l34;
  l34.relu = true;
  l34.tap_weights = weights_.taps;
  l34.taps = static_cast<float*>(workspace);  // L33 was the last to read the map that lay here
  convolve(convolutions_[2 * pairs + 2], wide, l34, stream);
  sum_taps(l34.taps, 9 * chunks(shape_.tail), x.n, x.h, x.w, weights_.tap_bias, y, Kind::f32, stream);
}

}  // namespace dblr
