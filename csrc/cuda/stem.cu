#include "stem.cuh"

namespace dblr {

namespace {

void require(bool right, const char* what) {
  if (!right) throw std::invalid_argument(std::string("stem: ") + what);
}

int words_of(Index frames, Kind kind) {
  return kind == Kind::f32 ? words_per_pixel<float>(frames) : words_per_pixel<F16>(frames);
}

// Words of w1, which is packed first; w2 follows as pack_weights gives it.
Index first_words(Index frames, Index middle, Kind kind) { return middle * padded_words(words_of(frames, kind)); }

void check_sizes(Index frames, Index middle, Index width, Kind kind) {
  require(frames >= 1 && frames <= 32, "wanted 1 to 32 frames.");
  require(middle >= 8 && middle % 8 == 0, "the channels between L1 and L2 must be a multiple of 8.");
  require(width >= 1 && width * size_of(kind) % 16 == 0, "the width must fill a multiple of 16 bytes.");
}

}  // namespace

std::size_t stem_bytes(Index frames, Index middle, Index width, Kind kind) {
  return static_cast<std::size_t>(first_words(frames, middle, kind)) * 4 + packed_bytes(width, middle, kind);
}

StemWeights pack_stem(const void* w1, const void* w2, Kind from_kind, const float* b1, const float* b2, Index frames,
                      Index middle, Index width, Kind kind, void* to, Stream stream) {
  require_capability(80);
  check_sizes(frames, middle, width, kind);
  PackStemParams p{};
  p.from = w1;
  p.from_kind = from_kind;
  p.frames = frames;
  p.total = first_words(frames, middle, kind);
  p.words = words_of(frames, kind);
  p.to = static_cast<std::uint32_t*>(to);
  Launch how;
  how.x = static_cast<unsigned>((p.total + 127) / 128);
  const auto kernel = kind == Kind::f32   ? pack_stem_kernel<float>
                      : kind == Kind::f16 ? pack_stem_kernel<F16>
                                          : pack_stem_kernel<BF16>;
  launch("pack_stem", kernel, how, p, stream);
  pack_weights(w2, from_kind, width, middle, false, kind, p.to + p.total, stream);
  return {to, b1, b2, frames, middle, width, kind};
}

void stem(const Strided& x, const StemWeights& weights, const Map& y, const Map& middle_out, Products products,
          Stream stream) {
  require_capability(80);
  check_sizes(weights.frames, weights.middle, weights.width, weights.kind);
  require(x.c == weights.frames, "x must have the weights' number of frames.");
  const auto like = [&](const Map& map, Index c) {
    return map.kind == weights.kind && map.n == x.n && map.h == x.h && map.w == x.w && map.c == c;
  };
  require(y.data && like(y, weights.width), "y must have x's size, the weights' type and their width.");
  require(!middle_out.data || like(middle_out, weights.middle), "middle_out must have x's size and L1's channels.");
  require(weights.b1 && weights.b2, "it needs both biases.");

  StemParams p{};
  p.x = x;
  p.w1 = static_cast<const std::uint32_t*>(weights.data);
  p.b1 = weights.b1;
  p.words = words_of(x.c, weights.kind);
  p.middle_out = middle_out.data;
  ConvParams& conv = p.conv;
  conv.source.x = {nullptr, x.n, x.h, x.w, weights.middle, weights.kind};
  conv.weights = p.w1 + first_words(weights.frames, weights.middle, weights.kind);
  conv.epilogue.shift = weights.b2;
  conv.epilogue.relu = true;
  conv.epilogue.y = y;
  conv.out = weights.width;
  conv.in_chunks = chunks(weights.middle);
  conv.out_chunks = chunks(weights.width);
  conv.halves = static_cast<int>((weights.middle * size_of(weights.kind) + 63) / 64);
  conv.tiles_x = static_cast<int>((x.w + kTileColumns - 1) / kTileColumns);
  conv.tiles_y = static_cast<int>((x.h + kTileRows - 1) / kTileRows);
  const Index blocks = tiles_of(x.n, x.h, x.w) * conv.out_chunks;
  require(blocks < Index{1} << 31, "the map has more than 2^31 tiles.");

  Launch how;
  how.x = static_cast<unsigned>(blocks);
  how.threads = kConvThreads;
  how.shared = stem_shared(p.words);
  const auto kernel = weights.kind == Kind::f16      ? stem_kernel<F16, TensorSums<F16>>
                      : weights.kind == Kind::bf16   ? stem_kernel<BF16, TensorSums<BF16>>
                      : products == Products::tf32   ? stem_kernel<float, TensorSums<float>>
                                                     : stem_kernel<float, ExactSums>;
  launch("stem", kernel, how, p, stream);
}

}  // namespace dblr
