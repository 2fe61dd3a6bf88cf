#include "ops.h"

#include <algorithm>

namespace dblr {

void* Workspace::bytes(std::size_t count) {
  void* const at = data_ + used_;
  used_ += (count + 255) / 256 * 256;
  if (measuring_) return nullptr;
  if (used_ > size_) throw std::invalid_argument("the workspace is too small for this op.");
  return at;
}

Map Workspace::map(const Map& like, Index channels) {
  Map m = like;
  m.c = channels;
  m.data = bytes(m.bytes());
  return m;
}

namespace {

// A convolution's weights, packed into the workspace when they are first used. adjoint: those of the data gradient.
class Filter {
 public:
  Filter(Workspace& workspace, const Weights& weights, Kind kind, bool adjoint = false)
      : weights_(weights), kind_(kind), adjoint_(adjoint) {
    const std::size_t portable = packed_bytes(adjoint ? weights.in : weights.out, adjoint ? weights.out : weights.in, kind);
    memory_ = workspace.bytes(std::max(portable, conv3x3_sm90_bytes(weights.out, weights.in)));
  }

  // Returns how the partial sums of the epilogue lie. space: where a source that is normalised as it is read may be
  // written first, for the kernels of sm_90a read maps as they are; see space_for.
  Tiling convolve(const Call& call, const Source& source, const Epilogue& epilogue, const Map& space = {}) const {
    const Weights& w = weights_;
    Source read = source;
    if (source.scale && space.data) read = {space, nullptr, nullptr, false};
    if (call.sm90 && conv3x3_sm90_takes(read, adjoint_ ? w.in : w.out, epilogue)) {
      if (source.scale) norm_apply(source.x, source.scale, source.shift, source.relu, {}, space, call.stream);
      const PackedWeights90 packed =
          pack_weights_sm90(w.data, w.kind, w.out, w.in, adjoint_, kind_, memory_, call.stream);
      conv3x3_sm90(read, packed, epilogue, call.stream);
      return kTiling90;
    }
    const PackedWeights packed = pack_weights(w.data, w.kind, w.out, w.in, adjoint_, kind_, memory_, call.stream);
    conv3x3(source, packed, epilogue, call.products, call.stream);
    return {};
  }

 private:
  Weights weights_;
  Kind kind_;
  bool adjoint_;
  void* memory_;
};

// Batch norm of one layer as vectors on the device: y = z * scale + shift, xhat = z * invstd + offset.
struct Coefficients : NormCoefficients {
  Coefficients(Workspace& workspace, Index channels, bool normalised) {
    scale = workspace.floats(channels);
    shift = workspace.floats(channels);
    if (!normalised) return;
    invstd = workspace.floats(channels);
    offset = workspace.floats(channels);
  }

  void compute(const Call& call, const ConvNorm& layer, const float* mean, const float* var, bool training, float eps) {
    norm_coefficients({layer.gamma, layer.beta, layer.bias, mean, var, eps, training}, layer.weight.out, *this,
                      call.stream);
  }
};

// A map of so many channels like x where the kernels of sm_90a may want one, else none.
Map space_for(const Call& call, Workspace& workspace, const Map& x, Index channels) {
  return call.sm90 && x.kind != Kind::f32 ? workspace.map(x, channels) : Map{};
}

Source plain(const Map& x) {
  Source source;
  source.x = x;
  return source;
}

// What the next convolution reads of z: act(z * scale + shift).
Source normalised(const Map& z, const Coefficients& c) {
  Source source;
  source.x = z;
  source.scale = c.scale;
  source.shift = c.shift;
  source.relu = true;
  return source;
}

// y = ReLU(L1(x)); its weights are packed into `memory`.
void first_layer(const Call& call, const Strided& x, const Stem& s, void* memory, const Map& y) {
  const StemWeights packed =
      pack_stem(s.w1.data, s.w1.kind, s.w1.in, x.c, s.w1.out, y.kind, memory, call.stream);
  stem(x, packed, s.b1, y, call.products, call.stream);
}

std::size_t partial_floats(const Map& x, Index channels) { return conv_partial_floats(x.n, x.h, x.w, channels); }
Index tiles(const Map& x, const Tiling& tiling = {}) { return tiles_of(x.n, x.h, x.w, tiling); }

std::size_t gradient_floats(const Map& x, const Weights& w) {
  return std::max(weight_gradient_partial_floats(x.n, x.h, x.w, w.out, w.in),
                  weight_gradient_sm90_partial_floats(x.n, x.h, x.w, w.out, w.in));
}

// dw by the kernel that takes these maps. spare: like the source's map, for the kernel that reads a normalised source
// as a map; what it holds is lost.
void gradient_of_weights(const Call& call, Source source, const Map& dy, float* dw, float* sums,
                         const Map& spare = {}) {
  if (!call.sm90 || !weight_gradient_sm90_takes(source.x, dy)) {
    weight_gradient(source, dy, dw, sums, call.products, call.stream);
    return;
  }
  if (source.scale) {
    norm_apply(source.x, source.scale, source.shift, source.relu, {}, spare, call.stream);
    source = plain(spare);
  }
  weight_gradient_sm90(source.x, dy, dw, sums, call.stream);
}

// z = conv(source) with the batch's statistics -> mean, var and the layer's coefficients.
void conv_with_statistics(const Call& call, const Source& source, const Filter& filter, const ConvNorm& layer,
                          float eps, const Map& z, float* partial, float* mean, float* var,
                          const Coefficients& coefficients, const Map& space = {}) {
  Epilogue epilogue;
  epilogue.y = z;
  epilogue.sums = Sums::statistics;
  epilogue.partial = partial;
  const Tiling tiling = filter.convolve(call, source, epilogue, space);
  merge_statistics(partial, z.n, z.h, z.w, z.c, layer.gamma, layer.beta, eps, mean, var, coefficients, call.stream,
                   tiling);
}

}  // namespace

void conv_bn_act(const Call& call, Workspace& workspace, const Map& x, const ConvNorm& layer, const Map& residual,
                 bool relu, bool training, float eps, const Map& y, const Map& z, float* mean, float* var) {
  const Filter filter(workspace, layer.weight, x.kind);
  Coefficients norm(workspace, layer.weight.out, false);
  float* const partial = training ? workspace.floats(partial_floats(x, layer.weight.out)) : nullptr;
  if (workspace.measuring()) return;

  if (training) {
    const Map kept = z.data ? z : y;
    conv_with_statistics(call, plain(x), filter, layer, eps, kept, partial, mean, var, norm);
    norm_apply(kept, norm.scale, norm.shift, relu, residual, y, call.stream);
    return;
  }
  norm.compute(call, layer, layer.mean, layer.var, false, eps);
  Epilogue epilogue;
  if (z.data) {
    epilogue.y = z;
    filter.convolve(call, plain(x), epilogue);
    norm_apply(z, norm.scale, norm.shift, relu, residual, y, call.stream);
    return;
  }
  epilogue.scale = norm.scale;
  epilogue.shift = norm.shift;
  epilogue.relu = relu;
  epilogue.add0 = residual;
  epilogue.y = y;
  filter.convolve(call, plain(x), epilogue);
}

void conv_bn_act_backward(const Call& call, Workspace& workspace, const Map& grad, const Map& x, const ConvNorm& layer,
                          const Map& z, bool relu, bool training, float eps, const Map& dx,
                          const ConvNormGradient& gradient) {
  const Index out = layer.weight.out;
  const Filter adjoint(workspace, layer.weight, x.kind, true);
  Coefficients norm(workspace, out, true);
  float* const partial = workspace.floats(partial_floats(x, out));
  const Map dz = workspace.map(x, out);
  float* const sums = workspace.floats(gradient_floats(x, layer.weight));
  if (workspace.measuring()) return;

  norm.scale = gradient.scale;
  norm.compute(call, layer, layer.mean, layer.var, training, eps);
  norm_backward_sums(grad, z, norm.scale, norm.shift, norm.invstd, norm.offset, relu, partial, call.stream);
  merge_sums(partial, tiles(x), out, gradient.beta, gradient.gamma, call.stream);
  norm_backward_apply(grad, z, norm.scale, norm.shift, norm.invstd, norm.offset, gradient.beta, gradient.gamma, relu,
                      training, dz, call.stream);
  gradient_of_weights(call, plain(x), dz, gradient.weight, sums);
  if (!dx.data) return;
  Epilogue epilogue;
  epilogue.y = dx;
  adjoint.convolve(call, plain(dz), epilogue);
}

void residual_block(const Call& call, Workspace& workspace, const Map& x, const ConvNorm& first, const ConvNorm& second,
                    bool training, float eps, const Map& y, const Map& z1, const Map& z2, float* const (&statistics)[4]) {
  const Filter filter1(workspace, first.weight, x.kind), filter2(workspace, second.weight, x.kind);
  Coefficients norm1(workspace, first.weight.out, false), norm2(workspace, second.weight.out, false);
  float* const partial =
      training ? workspace.floats(partial_floats(x, std::max(first.weight.out, second.weight.out))) : nullptr;
  const Map middle = z1.data ? z1 : workspace.map(x, first.weight.out);
  const bool save = z1.data != nullptr;
  const Map space = training || save ? space_for(call, workspace, x, first.weight.out) : Map{};
  if (workspace.measuring()) return;
  const Map kept = save ? z2 : y;  // the second layer before its batch norm, which may be applied in place

  Epilogue epilogue;
  if (training) {
    conv_with_statistics(call, plain(x), filter1, first, eps, middle, partial, statistics[0], statistics[1], norm1);
    conv_with_statistics(call, normalised(middle, norm1), filter2, second, eps, kept, partial, statistics[2],
                         statistics[3], norm2, space);
    norm_apply(kept, norm2.scale, norm2.shift, false, x, y, call.stream);
    return;
  }
  norm1.compute(call, first, first.mean, first.var, false, eps);
  norm2.compute(call, second, second.mean, second.var, false, eps);
  epilogue.y = middle;
  if (save) {
    filter1.convolve(call, plain(x), epilogue);
    epilogue.y = kept;
    filter2.convolve(call, normalised(middle, norm1), epilogue, space);
    norm_apply(kept, norm2.scale, norm2.shift, false, x, y, call.stream);
    return;
  }
  epilogue.scale = norm1.scale;
  epilogue.shift = norm1.shift;
  epilogue.relu = true;
  filter1.convolve(call, plain(x), epilogue);
  epilogue.scale = norm2.scale;
  epilogue.shift = norm2.shift;
  epilogue.relu = false;
  epilogue.add0 = x;
  epilogue.y = y;
  filter2.convolve(call, plain(middle), epilogue);
}

void residual_block_backward(const Call& call, Workspace& workspace, const Map& grad, const Map& x,
                             const ConvNorm& first, const Map& z1, const ConvNorm& second, const Map& z2, bool training,
                             float eps, const Map& dx, const ConvNormGradient& gradient1,
                             const ConvNormGradient& gradient2) {
  const Index middle = first.weight.out, out = second.weight.out;
  const Filter adjoint1(workspace, first.weight, x.kind, true), adjoint2(workspace, second.weight, x.kind, true);
  Coefficients norm1(workspace, middle, true), norm2(workspace, out, true);
  float* const partial = workspace.floats(partial_floats(x, std::max(middle, out)));
  const Map dz2 = workspace.map(x, out), g1 = workspace.map(x, middle);
  const Map dz1 = workspace.map(x, middle);
  float* const sums = workspace.floats(std::max(gradient_floats(x, first.weight), gradient_floats(x, second.weight)));
  if (workspace.measuring()) return;

  norm1.scale = gradient1.scale;
  norm2.scale = gradient2.scale;
  norm1.compute(call, first, first.mean, first.var, training, eps);
  norm2.compute(call, second, second.mean, second.var, training, eps);
  norm_backward_sums(grad, z2, norm2.scale, norm2.shift, norm2.invstd, norm2.offset, false, partial, call.stream);
  merge_sums(partial, tiles(x), out, gradient2.beta, gradient2.gamma, call.stream);
  norm_backward_apply(grad, z2, norm2.scale, norm2.shift, norm2.invstd, norm2.offset, gradient2.beta, gradient2.gamma,
                      false, training, dz2, call.stream);
  // The map between the convolutions was not kept: it is read as act(norm(z1)), or made again where g1 comes to lie.
  gradient_of_weights(call, normalised(z1, norm1), dz2, gradient2.weight, sums, g1);

  // The data gradient leaves masked by the ReLU, with both sums that the first batch norm's gradient needs.
  Epilogue epilogue;
  epilogue.mask = z1;
  epilogue.mask_scale = norm1.scale;
  epilogue.mask_shift = norm1.shift;
  epilogue.y = g1;
  epilogue.sums = Sums::normalised;
  epilogue.partial = partial;
  epilogue.norm_z = z1;
  epilogue.norm_scale = norm1.invstd;
  epilogue.norm_shift = norm1.offset;
  const Tiling tiling = adjoint2.convolve(call, plain(dz2), epilogue);
  merge_sums(partial, tiles(x, tiling), middle, gradient1.beta, gradient1.gamma, call.stream);
  norm_backward_apply(g1, z1, norm1.scale, norm1.shift, norm1.invstd, norm1.offset, gradient1.beta, gradient1.gamma,
                      false, training, dz1, call.stream);
  gradient_of_weights(call, plain(x), dz1, gradient1.weight, sums);
  if (!dx.data) return;
  Epilogue last;
  last.add0 = grad;
  last.y = dx;
  adjoint1.convolve(call, plain(dz1), last);
}

void stem_forward(const Call& call, Workspace& workspace, const Strided& x, const Stem& s, const Map& y) {
  void* const first = workspace.bytes(stem_bytes(x.c, s.w1.out, y.kind));
  const Filter second(workspace, s.w2, y.kind);
  const Map middle = workspace.map(y, s.w1.out);
  if (workspace.measuring()) return;

  first_layer(call, x, s, first, middle);
  Epilogue epilogue;
  epilogue.shift = s.b2;
  epilogue.relu = true;
  epilogue.y = y;
  second.convolve(call, plain(middle), epilogue);
}

void stem_backward(const Call& call, Workspace& workspace, const Map& grad, const Strided& x, const Map& y,
                   const Stem& s, const Map& dx, const StemGradient& gradient) {
  void* const first = workspace.bytes(stem_bytes(x.c, s.w1.out, y.kind));
  const Filter adjoint1(workspace, s.w1, y.kind, true), adjoint2(workspace, s.w2, y.kind, true);
  const Map frames = workspace.map(y, s.w1.in), middle = workspace.map(y, s.w1.out), d1 = workspace.map(y, s.w1.out),
            d2 = workspace.map(y, s.w2.out);
  float* const partial = workspace.floats(partial_floats(y, std::max(s.w1.out, s.w2.out)));
  float* const sums = workspace.floats(std::max(gradient_floats(y, s.w1), gradient_floats(y, s.w2)));
  if (workspace.measuring()) return;

  first_layer(call, x, s, first, middle);  // its output was not kept
  relu_backward(grad, y, d2, call.stream);
  channel_sums(d2, partial, call.stream);
  merge_sums(partial, tiles(y), s.w2.out, gradient.b2, nullptr, call.stream);
  gradient_of_weights(call, plain(middle), d2, gradient.w2, sums);

  Epilogue epilogue;
  epilogue.mask = middle;
  epilogue.y = d1;
  epilogue.sums = Sums::total;
  epilogue.partial = partial;
  const Tiling tiling = adjoint2.convolve(call, plain(d2), epilogue);
  merge_sums(partial, tiles(y, tiling), s.w1.out, gradient.b1, nullptr, call.stream);
  copy_map(x, frames, call.stream);
  gradient_of_weights(call, plain(frames), d1, gradient.w1, sums);
  if (!dx.data) return;
  Epilogue last;
  last.y = dx;
  adjoint1.convolve(call, plain(d1), last);
}

void reconstruct(const Call& call, Workspace& workspace, const Map& x, const Tail& tail, void* y, Kind y_kind,
                 const Map& h1, const Map& h2) {
  const Filter filter1(workspace, tail.w1, x.kind), filter2(workspace, tail.w2, x.kind);
  const Map middle = h1.data ? h1 : workspace.map(x, tail.w1.out);
  const Index planes = 9 * chunks(tail.w2.out);
  float* const taps = workspace.floats(static_cast<std::size_t>(planes * x.pixels()));
  if (workspace.measuring()) return;

  Epilogue epilogue;
  epilogue.shift = tail.b1;
  epilogue.relu = true;
  epilogue.y = middle;
  filter1.convolve(call, plain(x), epilogue);
  epilogue.shift = tail.b2;
  epilogue.y = h2;
  epilogue.tap_weights = tail.taps;
  epilogue.taps = taps;
  filter2.convolve(call, plain(middle), epilogue);
  sum_taps(taps, planes, x.n, x.h, x.w, tail.b3, y, y_kind, call.stream);
}

void reconstruct_backward(const Call& call, Workspace& workspace, const void* grad, Kind grad_kind, const Map& x,
                          const Map& h1, const Map& h2, const Tail& tail, const Map& dx, const TailGradient& gradient) {
  const Index middle = tail.w1.out, last_channels = tail.w2.out;
  const Filter adjoint1(workspace, tail.w1, x.kind, true), adjoint2(workspace, tail.w2, x.kind, true);
  const Map dh1 = workspace.map(x, middle), dh2 = workspace.map(x, last_channels);
  const std::size_t partial_size = std::max(partial_floats(x, std::max(middle, last_channels)),
                                            taps_gradient_partial_floats(x.n, x.h, x.w, last_channels));
  float* const partial = workspace.floats(partial_size);
  float* const sums = workspace.floats(std::max(gradient_floats(x, tail.w1), gradient_floats(x, tail.w2)));
  if (workspace.measuring()) return;

  taps_gradient(grad, grad_kind, h2, gradient.taps, gradient.b3, partial, call.stream);
  taps_backward(grad, grad_kind, tail.taps, h2, dh2, call.stream);
  channel_sums(dh2, partial, call.stream);
  merge_sums(partial, tiles(x), last_channels, gradient.b2, nullptr, call.stream);
  gradient_of_weights(call, plain(h1), dh2, gradient.w2, sums);

  Epilogue epilogue;
  epilogue.mask = h1;
  epilogue.y = dh1;
  epilogue.sums = Sums::total;
  epilogue.partial = partial;
  const Tiling tiling = adjoint2.convolve(call, plain(dh2), epilogue);
  merge_sums(partial, tiles(x, tiling), middle, gradient.b1, nullptr, call.stream);
  gradient_of_weights(call, plain(x), dh1, gradient.w1, sums);
  if (!dx.data) return;
  Epilogue last;
  last.y = dx;
  adjoint1.convolve(call, plain(dh1), last);
}

}  // namespace dblr
