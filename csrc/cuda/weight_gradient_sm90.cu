#include "weight_gradient_sm90.cuh"

#include <algorithm>
#include <string>

#include "tensor_map.h"

namespace dblr {

namespace {

constexpr Index kMost = 1 << 30;  // of any count that kernels hold in 32 bits

void require(bool right, const char* what) {
  if (!right) throw std::invalid_argument(std::string("weight_gradient_sm90: ") + what);
}

Index strips_of(Index w) { return (w + sm90::kColumns - 1) / sm90::kColumns; }

// Blocks for each pair of chunks, of `blocks` for all.
Index shares_of(Index units, Index pairs, Index blocks) {
  return std::min(units, std::max<Index>(1, blocks / pairs));
}

}  // namespace

bool weight_gradient_sm90_takes(const Map& x, const Map& dy) {
  const auto whole = [](Index c) { return c > 0 && c % kChunk == 0 && c / kChunk < 256; };
  return x.kind != Kind::f32 && dy.kind == x.kind && dy.n == x.n && dy.h == x.h && dy.w == x.w && whole(x.c) &&
         whole(dy.c) && x.pixels() > 0 && x.h < kMost && x.w < kMost && x.n * strips_of(x.w) * x.h < kMost;
}

std::size_t weight_gradient_sm90_partial_floats(Index n, Index h, Index w, Index out, Index in, Index blocks) {
  const Index pairs = chunks(out) * chunks(in);
  return static_cast<std::size_t>(shares_of(n * strips_of(w) * h, pairs, blocks) * pairs) * kGradientSums;
}

void weight_gradient_sm90(const Map& x, const Map& dy, float* dw, float* partial, Stream stream, Index blocks) {
  require_hopper("weight_gradient_sm90", "weight_gradient");
  require(weight_gradient_sm90_takes(x, dy), "it does not take these maps (see weight_gradient_sm90_takes).");
  sm90::WeightGradientParams p{};
  p.x = tensor_map(x, kChunk, sm90::kColumns + 2, 1);
  p.dy = tensor_map(dy, kChunk, sm90::kColumns, 1);
  p.partial = partial;
  p.height = static_cast<int>(x.h);
  p.strips = static_cast<int>(strips_of(x.w));
  p.units = static_cast<int>(x.n * strips_of(x.w) * x.h);

  const Index shares = shares_of(p.units, chunks(dy.c) * chunks(x.c), blocks);
  Launch how;
  how.x = static_cast<unsigned>(shares);
  how.y = static_cast<unsigned>(chunks(dy.c));
  how.z = static_cast<unsigned>(chunks(x.c));
  how.threads = 512;
  how.shared = sm90::kGradientSharedBytes;
  const auto kernel =
      x.kind == Kind::f16 ? sm90::weight_gradient_sm90_kernel<F16> : sm90::weight_gradient_sm90_kernel<BF16>;
  launch("weight_gradient_sm90", kernel, how, p, stream);
  reduce_gradient(partial, shares, dy.c, x.c, dw, stream);
}

}  // namespace dblr
