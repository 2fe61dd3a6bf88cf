#include "conv3x3_sm90.cuh"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <string>
#include <utility>

#include "conv3x3_sm90_deep.cuh"
#include "tensor_map.h"

namespace dblr {

namespace {

constexpr Index kMost = 1 << 30;  // of any count that kernels hold in 32 bits

void require(bool right, const char* what) {
  if (!right) throw std::invalid_argument(std::string("conv3x3_sm90: ") + what);
}

bool like(const Map& map, const Map& x, Index out) {
  return map.kind == x.kind && map.n == x.n && map.h == x.h && map.w == x.w && map.c == out;
}

Index strips_of(const Map& x) { return (x.w + sm90::kColumns - 1) / sm90::kColumns; }

// How the work is cut: shares of the picture, each done by a block for every chunk of out channels, `cluster` of which
// work side by side on the same pixels.
struct Cut {
  Index shares;
  int cluster;
};

// The cut that keeps the most multiprocessors busy. A cluster lies within one group of the GPU's multiprocessors, so
// the wider it is the more of them may be left over: clusters of 4 leave 4 to 16 of an H100's 132 idle, 2 none. Among
// equals the widest, which reads pixels from L2 the fewest times. `at_once` tells how many clusters of a size run.
template <class AtOnce> Cut cut_of(Index units, int chunks, std::initializer_list<int> sizes, const AtOnce& at_once) {
  Cut best{0, 1};  // a block by itself, where no cluster of the sizes can run
  for (const int size : sizes) {
    if (chunks % size != 0) continue;
    const Index shares = static_cast<Index>(size > 1 ? at_once(size) : device_facts().multiprocessors) * size / chunks;
    if (shares > 0 && shares >= best.shares) best = {shares, size};
  }
  best.shares = std::min(units, std::max<Index>(1, best.shares));
  return best;
}

// A kernel for each size of cluster, as indices of its exponent of 2.
template <class P> using Kernels = std::array<void (*)(P), 3>;

template <class E> Kernels<sm90::Params> wide_kernels(bool training) {
  if (training) return {sm90::conv3x3_sm90_kernel<E, 1, true>, nullptr, nullptr};
  return {sm90::conv3x3_sm90_kernel<E, 1, false>, sm90::conv3x3_sm90_kernel<E, 2, false>,
          sm90::conv3x3_sm90_kernel<E, 4, false>};
}

template <class E> Kernels<sm90::DeepParams> deep_kernels() {
  return {sm90::conv3x3_sm90_deep_kernel<E, 1>, sm90::conv3x3_sm90_deep_kernel<E, 2>, nullptr};
}

template <class P>
void start(const char* name, const Kernels<P>& kernels, std::initializer_list<int> sizes, std::size_t shared,
           const P& p, Stream stream) {
  Launch how;
  how.threads = 384;
  how.shared = shared;
  const Cut cut = cut_of(p.units, p.chunks, sizes, [&](int size) {
    how.cluster = size;
    return clusters_at_once(name, kernels[size / 2], how);
  });
  how.cluster = cut.cluster;
  how.x = static_cast<unsigned>(cut.shares * p.chunks);  // blocks of one share lie side by side
  launch(name, kernels[cut.cluster / 2], how, p, stream);
}

void wide(const Map& x, const PackedWeights90& weights, const Epilogue& e, Stream stream) {
  sm90::Params p{};
  p.masked = e.mask.data != nullptr;
  p.sums = e.sums;
  const Map& first = p.masked ? e.mask : e.add0.data ? e.add0 : e.add1;
  p.adds = p.masked + (e.add0.data != nullptr) + (e.add1.data != nullptr);
  p.x = tensor_map(x, kChunk, sm90::kColumns + 2, 1);
  p.y = tensor_map(e.y, kChunk, sm90::kColumns, 1);
  if (p.adds > 0) p.add0 = tensor_map(first, kChunk, sm90::kColumns, 1);
  if (p.adds > 1) p.add1 = tensor_map(e.add1, kChunk, sm90::kColumns, 1);
  p.weights = static_cast<const Vector16*>(weights.data);
  p.scale = e.scale;
  p.shift = e.shift;
  p.relu = e.relu;
  p.height = static_cast<int>(x.h);
  p.strips = static_cast<int>(strips_of(x));
  p.units = static_cast<int>(x.n * strips_of(x) * x.h);
  p.chunks = static_cast<int>(weights.out / kChunk);
  p.width = static_cast<int>(x.w);
  p.mask_scale = e.mask_scale;
  p.mask_shift = e.mask_shift;
  p.norm_scale = e.norm_scale;
  p.norm_shift = e.norm_shift;
  p.partial = e.partial;

  const bool training = p.masked || p.sums != Sums::none;
  const auto kernels = x.kind == Kind::f16 ? wide_kernels<F16>(training) : wide_kernels<BF16>(training);
  if (training) {  // 64 -> 64 alone gains from it, where there is nothing to share
    start("conv3x3_sm90", kernels, {1}, sm90::kSharedBytes, p, stream);
  } else {
    start("conv3x3_sm90", kernels, {1, 2, 4}, sm90::kSharedBytes, p, stream);
  }
}

void deep(const Map& x, const PackedWeights90& weights, const Epilogue& e, Stream stream) {
  sm90::DeepParams p{};
  p.x = tensor_map(x, kChunk, sm90::kColumns + 2, 1);
  p.stored = e.y.data != nullptr;
  if (p.stored) p.y = tensor_map(e.y, kChunk, sm90::kColumns, 1);
  p.masked = e.mask.data != nullptr;
  if (p.masked) p.mask = tensor_map(e.mask, kChunk, sm90::kColumns, 1);
  p.partial = e.sums == Sums::total ? e.partial : nullptr;
  const Index lines = weights.out * weights.in / kChunk * 9;
  p.weights = tensor_map({const_cast<void*>(weights.data), 1, 1, lines, kChunk, weights.kind}, kChunk, kChunk, 1);
  p.scale = e.scale;
  p.shift = e.shift;
  p.relu = e.relu;
  p.tap_weights = e.taps ? e.tap_weights : nullptr;
  p.taps = e.taps;
  p.plane = x.pixels();
  p.h = static_cast<int>(x.h);
  p.w = static_cast<int>(x.w);
  p.height = static_cast<int>((x.h + sm90::kRowsOfTile - 1) / sm90::kRowsOfTile);
  p.strips = static_cast<int>(strips_of(x));
  p.units = static_cast<int>(x.n * strips_of(x) * p.height);
  p.chunks = static_cast<int>(weights.out / kChunk);
  p.chunks_in = static_cast<int>(weights.in / kChunk);

  start("conv3x3_sm90_deep", x.kind == Kind::f16 ? deep_kernels<F16>() : deep_kernels<BF16>(), {2},
        sm90::kDeepSharedBytes, p, stream);
}

}  // namespace

std::size_t conv3x3_sm90_bytes(Index out, Index in) { return static_cast<std::size_t>(out * in * 9) * 2; }

PackedWeights90 pack_weights_sm90(const void* from, Kind from_kind, Index out, Index in, bool adjoint, Kind kind,
                                  void* to, Stream stream) {
  if (adjoint) std::swap(out, in);
  require(out > 0 && in > 0 && out % kChunk == 0 && in % kChunk == 0 && kind != Kind::f32,
          "weights must be 16-bit and both their channels multiples of 64.");
  require_capability(80);
  sm90::PackParams90 p{};
  p.from = from;
  p.kind = from_kind;
  p.to = static_cast<Vector16*>(to);
  const std::size_t vectors = conv3x3_sm90_bytes(out, in) / sizeof(Vector16);
  require(vectors < kMost, "there are too many channels.");
  p.vectors = static_cast<unsigned>(vectors);
  p.out = out;
  p.in = in;
  p.adjoint = adjoint;
  Launch how;
  how.x = static_cast<unsigned>((p.vectors + 127) / 128);
  const auto kernel =
      kind == Kind::f16 ? sm90::pack_weights_sm90_kernel<F16> : sm90::pack_weights_sm90_kernel<BF16>;
  launch("pack_weights_sm90", kernel, how, p, stream);
  return {to, out, in, kind};
}

// A source that is read as it is. Residuals only where all in channels are one chunk, tap planes only without them. For
// training, without either: of one chunk statistics, or a mask, normalised or not, with the sums of what it keeps; of
// several a mask as it is, with their total or without.
bool conv3x3_sm90_takes(const Source& source, Index out, const Epilogue& e) {
  const Map& x = source.x;
  const bool adds = e.add0.data || e.add1.data, training = e.mask.data || e.sums != Sums::none;
  if (x.kind == Kind::f32 || x.c < kChunk || x.c % kChunk || out < kChunk || out % kChunk) return false;
  const bool deep = x.c > kChunk;
  // In pairs of blocks alone: without clusters the deep kernel has given other bits from run to run on an H200. What it
  // then did, freeing a stage of weights while it was being read, is mended, but not seen on a GPU since.
  if ((deep || e.taps) && out / kChunk % 2) return false;
  if (source.scale || source.shift || source.relu) return false;
  if ((adds || training) && (e.taps || !e.y.data)) return false;
  if (adds && (deep || training)) return false;
  if (!e.mask.data && e.sums != Sums::none && (deep || e.sums != Sums::statistics)) return false;
  if (e.mask.data && e.sums == Sums::statistics) return false;
  if (e.sums == Sums::normalised && e.norm_z.data != e.mask.data) return false;
  if (deep && (e.mask_scale || e.mask_shift || e.sums == Sums::normalised)) return false;
  if (!deep && training && (e.scale || e.shift || e.relu)) return false;
  return (e.y.data || e.taps) && x.h < kMost && x.w < kMost && x.n * strips_of(x) * x.h < kMost;
}

void conv3x3_sm90(const Source& source, const PackedWeights90& weights, const Epilogue& epilogue, Stream stream) {
  require_hopper("conv3x3_sm90", "conv3x3");
  const Map& x = source.x;
  require(conv3x3_sm90_takes(source, weights.out, epilogue), "it does not compute this (see conv3x3_sm90_takes).");
  require(x.kind == weights.kind && x.c == weights.in, "the source must have the weights' type and channels.");
  require(!epilogue.y.data || like(epilogue.y, x, weights.out),
          "y must have the source's type and size, and the weights' channels.");
  require(!epilogue.add0.data || like(epilogue.add0, x, weights.out), "what is added must be like y.");
  require(!epilogue.add1.data || like(epilogue.add1, x, weights.out), "what is added must be like y.");
  require(!epilogue.mask.data || like(epilogue.mask, x, weights.out), "what masks must be like y.");
  require(!epilogue.taps || epilogue.tap_weights, "tap planes need their weights.");
  require(epilogue.sums == Sums::none || epilogue.partial, "sums need a place.");
  if (x.pixels() == 0) return;
  if (x.c == kChunk && !epilogue.taps) {
    wide(x, weights, epilogue, stream);
  } else {
    deep(x, weights, epilogue, stream);
  }
}

}  // namespace dblr
