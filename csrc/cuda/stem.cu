#include "stem.cuh"

namespace dblr {

namespace {

void require(bool right, const char* what) {
  if (!right) throw std::invalid_argument(std::string("stem: ") + what);
}

int words_of(Index frames, Kind kind) {
  return kind == Kind::f32 ? words_per_pixel<float>(frames) : words_per_pixel<F16>(frames);
}

void check_sizes(Index frames, Index channels, Kind kind) {
  require(frames >= 1 && frames <= 32, "wanted 1 to 32 frames.");
  require(channels >= 1 && channels * size_of(kind) % 16 == 0, "channels must fill a multiple of 16 bytes.");
}

}  // namespace

std::size_t stem_bytes(Index frames, Index channels, Kind kind) {
  return static_cast<std::size_t>(chunks(channels) * steps_of(words_of(frames, kind))) * 128 * sizeof(Vector16);
}

StemWeights pack_stem(const void* from, Kind from_kind, Index in, Index frames, Index channels, Kind kind, void* to,
                      Stream stream) {
  require_capability(80);
  check_sizes(frames, channels, kind);
  require(frames <= in, "it has no weights for so many frames.");
  PackStemParams p{};
  p.from = from;
  p.from_kind = from_kind;
  p.in = in;
  p.frames = frames;
  p.channels = channels;
  p.total = static_cast<Index>(stem_bytes(frames, channels, kind) / sizeof(std::uint32_t));
  p.words = words_of(frames, kind);
  p.steps = steps_of(p.words);
  p.to = static_cast<std::uint32_t*>(to);
  Launch how;
  how.x = static_cast<unsigned>((p.total + 127) / 128);
  const auto kernel = kind == Kind::f32   ? pack_stem_kernel<float>
                      : kind == Kind::f16 ? pack_stem_kernel<F16>
                                          : pack_stem_kernel<BF16>;
  launch("pack_stem", kernel, how, p, stream);
  return {to, frames, channels, kind};
}

void stem(const Strided& x, const StemWeights& weights, const float* bias, const Map& y, Products products,
          Stream stream) {
  require_capability(80);
  check_sizes(weights.frames, weights.channels, weights.kind);
  require(x.c == weights.frames, "x must have the weights' number of frames.");
  require(y.data && y.kind == weights.kind && y.n == x.n && y.h == x.h && y.w == x.w && y.c == weights.channels,
          "y must have x's size, the weights' type and their channels.");
  require(bias, "it needs a bias.");

  StemParams p{};
  p.x = x;
  p.weights = static_cast<const Vector16*>(weights.data);
  p.bias = bias;
  p.y = y.data;
  p.channels = static_cast<int>(y.c);
  p.pitch = y.w * y.c;
  p.words = words_of(weights.frames, weights.kind);
  p.steps = steps_of(p.words);
  p.chunks = static_cast<int>(chunks(y.c));
  p.tiles_x = static_cast<int>((x.w + kStemColumns - 1) / kStemColumns);
  p.tiles_y = static_cast<int>((x.h + kStemRows - 1) / kStemRows);
  const Index blocks = x.n * p.tiles_y * p.tiles_x;
  require(blocks < Index{1} << 31, "the map has more than 2^31 tiles.");

  Launch how;
  how.x = static_cast<unsigned>(blocks);
  how.threads = kStemThreads;
  how.shared = stem_shared(p.words, p.chunks);
  const auto kernel = weights.kind == Kind::f16      ? stem_kernel<F16, false>
                      : weights.kind == Kind::bf16   ? stem_kernel<BF16, false>
                      : products == Products::tf32   ? stem_kernel<float, false>
                                                     : stem_kernel<float, true>;
  launch("stem", kernel, how, p, stream);
}

}  // namespace dblr
