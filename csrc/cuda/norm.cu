#include "norm.cuh"

namespace dblr {

namespace {

void require(bool right, const char* what) {
  if (!right) throw std::invalid_argument(what);
}

bool alike(const Map& a, const Map& b) {
  return a.kind == b.kind && a.n == b.n && a.h == b.h && a.w == b.w && a.c == b.c;
}

Launch grid(Index blocks, const char* what) {
  require(blocks < Index{1} << 31, what);
  Launch how;
  how.x = static_cast<unsigned>(blocks);
  how.threads = kNormThreads;
  return how;
}

// Two sums of each channel.
Launch merging(Index channels) {
  Launch how = grid((channels + kMergeChannels - 1) / kMergeChannels, "batch norm: too many channels.");
  how.threads = kMergeThreads;
  how.shared = merge_shared(2);
  return how;
}

// Blocks of 128 pixels x 32 vectors of channels.
Launch by_pixels(const Map& map, Index blocks) {
  Launch how = grid(blocks, "batch norm: the map has more than 2^31 tiles.");
  const Index vectors = map.c * size_of(map.kind) / 16;
  how.y = static_cast<unsigned>((vectors + kSlabVectors - 1) / kSlabVectors);
  return how;
}

template <class P>
void launch_by_kind(const char* name, Kind kind, void (*f32)(P), void (*f16)(P), void (*bf16)(P), const Launch& how,
                    const P& p, Stream stream) {
  launch(name, kind == Kind::f32 ? f32 : kind == Kind::f16 ? f16 : bf16, how, p, stream);
}

Index blocks_of_pixels(const Map& map) { return (map.pixels() + kBlockPixels - 1) / kBlockPixels; }

NormBackwardParams backward(const Map& grad, const Map& z, const float* scale, const float* shift, const float* invstd,
                            const float* offset, bool relu) {
  require(alike(grad, z), "batch norm: the gradient must have z's type and size.");
  NormBackwardParams p{};
  p.grad = grad.data;
  p.z = z.data;
  p.scale = scale;
  p.shift = shift;
  p.invstd = invstd;
  p.offset = offset;
  p.relu = relu;
  p.n = z.n;
  p.h = z.h;
  p.w = z.w;
  p.c = z.c;
  p.tiles_x = static_cast<int>(Tiling{}.across(z.w));
  p.tiles_y = static_cast<int>(Tiling{}.down(z.h));
  return p;
}

}  // namespace

void norm_apply(const Map& z, const float* scale, const float* shift, bool relu, const Map& add, const Map& y,
                Stream stream) {
  require_capability(80);
  require(alike(z, y) && (!add.data || alike(z, add)), "norm_apply: all maps must have one type and size.");
  const NormApplyParams p{z.data, scale, shift, relu, add.data, y.data, z.pixels(), z.c};
  launch_by_kind("norm_apply", z.kind, norm_apply_kernel<float>, norm_apply_kernel<F16>, norm_apply_kernel<BF16>,
                 by_pixels(z, blocks_of_pixels(z)), p, stream);
}

void norm_backward_sums(const Map& grad, const Map& z, const float* scale, const float* shift, const float* invstd,
                        const float* offset, bool relu, float* partial, Stream stream) {
  require_capability(80);
  NormBackwardParams p = backward(grad, z, scale, shift, invstd, offset, relu);
  p.partial = partial;
  Launch how = by_pixels(z, tiles_of(z.n, z.h, z.w));
  how.shared = kNormThreads * (16 / size_of(z.kind)) * 2 * sizeof(float);
  launch_by_kind("norm_backward_sums", z.kind, norm_backward_sums_kernel<float>, norm_backward_sums_kernel<F16>,
                 norm_backward_sums_kernel<BF16>, how, p, stream);
}

void norm_backward_apply(const Map& grad, const Map& z, const float* scale, const float* shift, const float* invstd,
                         const float* offset, const float* dbeta, const float* dgamma, bool relu, bool training,
                         const Map& dz, Stream stream) {
  require_capability(80);
  require(alike(z, dz), "norm_backward_apply: dz must have z's type and size.");
  NormBackwardParams p = backward(grad, z, scale, shift, invstd, offset, relu);
  p.dbeta = dbeta;
  p.dgamma = dgamma;
  p.training = training;
  p.dz = dz.data;
  launch_by_kind("norm_backward_apply", z.kind, norm_backward_apply_kernel<float>, norm_backward_apply_kernel<F16>,
                 norm_backward_apply_kernel<BF16>, by_pixels(z, blocks_of_pixels(z)), p, stream);
}

void merge_statistics(const float* partial, Index n, Index h, Index w, Index c, const float* gamma, const float* beta,
                      float eps, float* mean, float* var, const NormCoefficients& to, Stream stream,
                      const Tiling& tiling) {
  require_capability(80);
  MergeStatisticsParams p{};
  p.partial = partial;
  p.tiles = tiles_of(n, h, w, tiling);
  require(p.tiles < Index{1} << 31, "merge_statistics: more than 2^31 tiles.");
  p.c = c;
  p.tiles_x = static_cast<unsigned>(tiling.across(w));
  p.tiles_y = static_cast<unsigned>(tiling.down(h));
  p.rows = tiling.rows;
  p.columns = tiling.columns;
  p.last_rows = static_cast<int>(h - (tiling.down(h) - 1) * tiling.rows);
  p.last_columns = static_cast<int>(w - (tiling.across(w) - 1) * tiling.columns);
  p.share = 1.0 / (static_cast<double>(n) * static_cast<double>(h) * static_cast<double>(w));
  p.gamma = gamma;
  p.beta = beta;
  p.eps = eps;
  p.mean = mean;
  p.var = var;
  p.to = to;
  const bool whole = p.last_rows == p.rows && p.last_columns == p.columns;
  launch("merge_statistics", whole ? merge_statistics_kernel<true> : merge_statistics_kernel<false>, merging(c), p,
         stream);
}

void merge_sums(const float* partial, Index tiles, Index c, float* first, float* second, Stream stream) {
  require_capability(80);
  require(tiles < Index{1} << 31, "merge_sums: more than 2^31 tiles.");
  launch("merge_sums", merge_sums_kernel, merging(c), MergeSumsParams{partial, tiles, c, first, second}, stream);
}

void norm_coefficients(const NormVectors& norm, Index c, const NormCoefficients& to, Stream stream) {
  require_capability(80);
  launch("norm_coefficients", norm_coefficients_kernel,
         grid((c + kNormThreads - 1) / kNormThreads, "norm_coefficients: too many channels."),
         NormCoefficientsParams{norm, c, to}, stream);
}

void copy_map(const Strided& from, const Map& to, Stream stream) {
  require_capability(80);
  require(from.n == to.n && from.h == to.h && from.w == to.w && from.c <= to.c,
          "copy_map: the map must have the source's size and at least its channels.");
  const Index vectors = to.c * size_of(to.kind) / 16;
  const CopyMapParams p{from, to.data, to.c, vectors, from.sc != 1};
  launch_by_kind("copy_map", to.kind, copy_map_kernel<float>, copy_map_kernel<F16>, copy_map_kernel<BF16>,
                 grid((to.pixels() * vectors + kNormThreads - 1) / kNormThreads,
                      "copy_map: the map is too large for one launch."),
                 p, stream);
}

}  // namespace dblr
