#include "weight_gradient.cuh"

namespace dblr {

namespace {

void require(bool right, const char* what) {
  if (!right) throw std::invalid_argument(std::string("weight_gradient: ") + what);
}

// Blocks that walk over the tiles for each pair of chunks. About 108 blocks in all, as an A100 has SMs (each of which
// holds one), every block with the same number of tiles but for the last few; never by what the device is, so that
// sums come out alike on all.
constexpr Index kGradientBlocks = 108;
Index partials_of(Index n, Index h, Index w, Index out, Index in) {
  const Index tiles = tiles_of(n, h, w), pairs = chunks(out) * chunks(in);
  const Index most = pairs < kGradientBlocks ? kGradientBlocks / pairs : 1;
  const Index each = (tiles + most - 1) / most;
  return (tiles + each - 1) / each;
}

Index groups(Index size, int by) { return (size + by - 1) / by; }

}  // namespace

std::size_t weight_gradient_partial_floats(Index n, Index h, Index w, Index out, Index in) {
  return static_cast<std::size_t>(partials_of(n, h, w, out, in) * chunks(out) * chunks(in)) * kGradientSums;
}

void weight_gradient(const Source& source, const Map& dy, float* dw, float* partial, Products products, Stream stream) {
  require_capability(80);
  const Map& x = source.x;
  require(dy.kind == x.kind && dy.n == x.n && dy.h == x.h && dy.w == x.w, "dy must have the source's type and size.");
  require(x.c * size_of(x.kind) % 16 == 0 && dy.c * size_of(x.kind) % 16 == 0,
          "channels must fill a multiple of 16 bytes.");
  require(!source.scale == !source.shift, "scale and shift go together.");

  const Index out_chunks = chunks(dy.c), in_chunks = chunks(x.c), partials = partials_of(x.n, x.h, x.w, dy.c, x.c);
  require(out_chunks < 65536 && in_chunks < 65536 && out_chunks * in_chunks < 65536, "there are too many channels.");
  const int rows = x.kind == Kind::f32 ? GradientTiles<float>::kRows : GradientTiles<F16>::kRows;
  WeightGradientParams p{};
  p.source = source;
  p.dy = dy.data;
  p.out = dy.c;
  p.tiles_x = static_cast<int>(groups(x.w, kGradientColumns));
  p.tiles_y = static_cast<int>(groups(x.h, rows));
  p.partial = partial;
  const Index tiles = x.n * p.tiles_x * p.tiles_y;
  require(tiles < Index{1} << 31, "the map has more than 2^31 tiles.");
  p.tiles = static_cast<unsigned>(tiles);

  Launch how;
  how.x = static_cast<unsigned>(partials);
  how.y = static_cast<unsigned>(out_chunks);
  how.z = static_cast<unsigned>(in_chunks);
  how.threads = kGradientThreads;
  how.shared = x.kind == Kind::f32 ? GradientTiles<float>::kShared : GradientTiles<F16>::kShared;
  const auto kernel = x.kind == Kind::f16          ? weight_gradient_kernel<F16, TensorGradient<F16>>
                      : x.kind == Kind::bf16       ? weight_gradient_kernel<BF16, TensorGradient<BF16>>
                      : products == Products::tf32 ? weight_gradient_kernel<float, TensorGradient<float>>
                                                   : weight_gradient_kernel<float, ExactGradient>;
  launch("weight_gradient", kernel, how, p, stream);
  reduce_gradient(partial, partials, dy.c, x.c, dw, stream);
}

void reduce_gradient(const float* partial, Index partials, Index out, Index in, float* dw, Stream stream) {
  const Index pairs = chunks(out) * chunks(in);
  ReduceGradientParams r{};
  r.partial = partial;
  r.partials = partials;
  r.out = out;
  r.in = in;
  r.in_chunks = chunks(in);
  r.stride = pairs * kGradientSums;
  r.dw = dw;
  Launch reduce;
  reduce.x = 9 * kChunk;
  reduce.y = static_cast<unsigned>(pairs);
  reduce.threads = kGradientThreads;
  reduce.shared = kGradientThreads * sizeof(double);
  launch("reduce_gradient", reduce_gradient_kernel, reduce, r, stream);
}

}  // namespace dblr
