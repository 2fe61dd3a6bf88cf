#include "pack.cuh"

namespace dblr {

PackedWeights pack_weights(const void* from, Kind from_kind, Index out, Index in, bool adjoint, Kind kind, void* to,
                           Stream stream) {
  require_capability(80);
  PackParams p{};
  p.from = from;
  p.from_kind = from_kind;
  p.from_in = in;
  p.out = adjoint ? in : out;
  p.in = adjoint ? out : in;
  p.adjoint = adjoint;
  p.in_chunks = chunks(p.in);
  p.vectors = static_cast<Index>(packed_bytes(p.out, p.in, kind) / sizeof(Vector16));
  p.to = to;
  Launch how;
  how.x = static_cast<unsigned>((p.vectors + 127) / 128);
  const auto kernel = kind == Kind::f32   ? pack_weights_kernel<float>
                      : kind == Kind::f16 ? pack_weights_kernel<F16>
                                          : pack_weights_kernel<BF16>;
  launch("pack_weights", kernel, how, p, stream);
  return {to, p.out, p.in, kind};
}

}  // namespace dblr
