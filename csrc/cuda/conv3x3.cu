#include "conv3x3.cuh"

namespace dblr {

namespace {

void require(bool right, const char* what) {
  if (!right) throw std::invalid_argument(std::string("conv3x3: ") + what);
}

void check_map(const Map& map, const Source& source, Index out, const char* what) {
  const Map& x = source.x;
  require(!map.data || (map.kind == x.kind && map.n == x.n && map.h == x.h && map.w == x.w && map.c == out), what);
}

}  // namespace

void conv3x3(const Source& source, const PackedWeights& weights, const Epilogue& epilogue, Products products,
             Stream stream) {
  require_capability(80);
  const Map& x = source.x;
  const Index out = weights.out;
  require(x.kind == weights.kind && x.c == weights.in, "the source must have the weights' type and channels.");
  require(x.c * size_of(x.kind) % 16 == 0 && out * size_of(x.kind) % 16 == 0,
          "channels must fill a multiple of 16 bytes.");
  require(epilogue.y.data || epilogue.taps, "it needs a map or tap planes to write to.");
  check_map(epilogue.y, source, out, "y must have the source's type and size, and the weights' channels.");
  check_map(epilogue.add0, source, out, "what is added must be like y.");
  check_map(epilogue.add1, source, out, "what is added must be like y.");
  check_map(epilogue.mask, source, out, "the mask must be like y.");
  check_map(epilogue.norm_z, source, out, "norm_z must be like y.");
  require(epilogue.sums == Sums::none || epilogue.partial, "sums need memory for partial sums.");
  require(epilogue.sums != Sums::normalised || epilogue.norm_z.data, "normalised sums need norm_z.");
  require(!epilogue.taps || epilogue.tap_weights, "tap planes need their weights.");

  ConvParams p{};
  p.source = source;
  p.weights = weights.data;
  p.epilogue = epilogue;
  if (epilogue.sums != Sums::normalised) p.epilogue.norm_z = Map{};  // not to be fetched
  p.out = out;
  p.in_chunks = chunks(x.c);
  p.out_chunks = chunks(out);
  p.halves = static_cast<int>((x.c * size_of(x.kind) + 63) / 64);
  p.tiles_x = static_cast<int>((x.w + kTileColumns - 1) / kTileColumns);
  p.tiles_y = static_cast<int>((x.h + kTileRows - 1) / kTileRows);
  const Index blocks = tiles_of(x.n, x.h, x.w) * p.out_chunks;
  require(blocks < Index{1} << 31, "the map has more than 2^31 tiles.");

  Launch how;
  how.x = static_cast<unsigned>(blocks);
  how.threads = kConvThreads;
  how.shared = kConvShared;
  const auto kernel = x.kind == Kind::f16        ? conv3x3_kernel<F16, TensorSums<F16>>
                      : x.kind == Kind::bf16     ? conv3x3_kernel<BF16, TensorSums<BF16>>
                      : products == Products::tf32 ? conv3x3_kernel<float, TensorSums<float>>
                                                   : conv3x3_kernel<float, ExactSums>;
  launch("conv3x3", kernel, how, p, stream);
}

}  // namespace dblr
