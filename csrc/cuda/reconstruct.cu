#include "reconstruct.cuh"

namespace dblr {

namespace {

void require(bool right, const char* what) {
  if (!right) throw std::invalid_argument(what);
}

bool alike(const Map& a, const Map& b) {
  return a.kind == b.kind && a.n == b.n && a.h == b.h && a.w == b.w && a.c == b.c;
}

Index groups(Index size, Index by) { return (size + by - 1) / by; }

Launch grid(Index blocks) {
  require(blocks < Index{1} << 31, "reconstruct: the map is too large for one launch.");
  Launch how;
  how.x = static_cast<unsigned>(blocks);
  how.threads = kNormThreads;
  return how;
}

// Blocks x share the pixels, blocks y are slabs of 32 vectors of channels.
Launch by_pixels(const Map& map, Index blocks) {
  require(map.c * size_of(map.kind) % 16 == 0, "reconstruct: channels must fill a multiple of 16 bytes.");
  Launch how = grid(blocks);
  how.y = static_cast<unsigned>(groups(map.c * size_of(map.kind) / 16, kSlabVectors));
  return how;
}

template <class P>
void launch_by_kind(const char* name, Kind kind, void (*f32)(P), void (*f16)(P), void (*bf16)(P), const Launch& how,
                    const P& p, Stream stream) {
  launch(name, kind == Kind::f32 ? f32 : kind == Kind::f16 ? f16 : bf16, how, p, stream);
}

// Each with runs of kBlockPixels pixels; two for each SM of an A100, and no more, for each leaves 9 c + 1 sums.
Index gradient_blocks(Index pixels) {
  const Index runs = groups(pixels, kBlockPixels);
  return runs < 216 ? runs : 216;
}

}  // namespace

void sum_taps(const float* taps, Index planes, Index n, Index h, Index w, const float* bias, void* y, Kind kind,
              Stream stream) {
  require_capability(80);
  require(planes > 0 && planes % 9 == 0, "sum_taps: wanted nine planes for each chunk of channels.");
  const SumTapsParams p{taps, planes / 9, n, h, w, bias, y};
  launch_by_kind("sum_taps", kind, sum_taps_kernel<float>, sum_taps_kernel<F16>, sum_taps_kernel<BF16>,
                 grid(groups(n * h * w, kNormThreads)), p, stream);
}

void taps_backward(const void* grad, Kind grad_kind, const float* w3, const Map& h, const Map& dh, Stream stream) {
  require_capability(80);
  require(alike(h, dh), "taps_backward: dh must have h's type and size.");
  const TapsParams p{grad, grad_kind, w3, h.data, dh.data, nullptr, h.n, h.h, h.w, h.c};
  launch_by_kind("taps_backward", h.kind, taps_backward_kernel<float>, taps_backward_kernel<F16>,
                 taps_backward_kernel<BF16>, by_pixels(h, groups(h.pixels(), kBlockPixels)), p, stream);
}

std::size_t taps_gradient_partial_floats(Index n, Index h, Index w, Index c) {
  return static_cast<std::size_t>(gradient_blocks(n * h * w)) * (9 * c + 1);
}

void taps_gradient(const void* grad, Kind grad_kind, const Map& h, float* dw3, float* db3, float* partial,
                   Stream stream) {
  require_capability(80);
  const TapsParams p{grad, grad_kind, nullptr, h.data, nullptr, partial, h.n, h.h, h.w, h.c};
  const Index blocks = gradient_blocks(h.pixels());
  Launch how = by_pixels(h, blocks);
  how.shared = kNormThreads * (16 / size_of(h.kind)) * sizeof(float);
  launch_by_kind("taps_gradient", h.kind, taps_gradient_kernel<float>, taps_gradient_kernel<F16>,
                 taps_gradient_kernel<BF16>, how, p, stream);
  const AddPartialsParams add{partial, blocks, 9 * h.c + 1, dw3, db3};
  how = grid(groups(add.size, kMergeChannels));
  how.threads = kMergeThreads;
  how.shared = merge_shared(1);
  launch("add_partials", add_partials_kernel, how, add, stream);
}

void channel_sums(const Map& map, float* partial, Stream stream) {
  require_capability(80);
  const ChannelSumsParams p{map.data, partial, map.h, map.w, map.c, static_cast<int>(groups(map.w, kTileColumns)),
                            static_cast<int>(groups(map.h, kTileRows))};
  Launch how = by_pixels(map, tiles_of(map.n, map.h, map.w));
  how.shared = kNormThreads * (16 / size_of(map.kind)) * sizeof(float);
  launch_by_kind("channel_sums", map.kind, channel_sums_kernel<float>, channel_sums_kernel<F16>,
                 channel_sums_kernel<BF16>, how, p, stream);
}

void relu_backward(const Map& grad, const Map& y, const Map& out, Stream stream) {
  require_capability(80);
  require(alike(grad, y) && alike(grad, out), "relu_backward: all maps must have one type and size.");
  const Index elements = grad.pixels() * grad.c;
  require(elements * size_of(grad.kind) % 16 == 0, "relu_backward: maps must fill a multiple of 16 bytes.");
  const ReluBackwardParams p{grad.data, y.data, out.data, elements * size_of(grad.kind) / 16};
  launch_by_kind("relu_backward", grad.kind, relu_backward_kernel<float>, relu_backward_kernel<F16>,
                 relu_backward_kernel<BF16>, grid(groups(p.vectors, kNormThreads)), p, stream);
}

}  // namespace dblr
