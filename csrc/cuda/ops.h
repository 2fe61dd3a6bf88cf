// The four ops and their gradients as rows of launches on one stream, over memory that the caller gives.
#pragma once

#include "kernels.h"

namespace dblr {

// Memory between the launches of an op, handed out from the front. One without memory counts what is needed: every op
// takes all it needs first and launches nothing over such a one.
class Workspace {
 public:
  Workspace() = default;
  Workspace(void* data, std::size_t bytes) : data_(static_cast<char*>(data)), size_(bytes), measuring_(false) {}

  bool measuring() const { return measuring_; }
  std::size_t used() const { return used_; }

  void* bytes(std::size_t count);
  float* floats(std::size_t count) { return static_cast<float*>(bytes(count * sizeof(float))); }
  Map map(const Map& like, Index channels);

 private:
  char* data_ = nullptr;
  std::size_t size_ = 0, used_ = 0;
  bool measuring_ = true;
};

struct Call {
  Stream stream = nullptr;
  Products products = Products::exact;
  bool sm90 = false;  // conv3x3_sm90 and weight_gradient_sm90 where they take the layer
};

// Weights of a 3x3 convolution as torch holds them: contiguous (out, in, 3, 3).
struct Weights {
  const void* data = nullptr;
  Kind kind = Kind::f32;
  Index out = 0, in = 0;
};

// A convolution and its batch norm; vectors are float32 (out,). mean and var: the batch's of the convolution without its
// bias (backward of training), or the running ones (evaluation); not read in training's forward.
struct ConvNorm {
  Weights weight;
  const float *bias, *gamma, *beta, *mean, *var;
};

// All float32. scale: gamma / sqrt(var + eps), with which the bias's gradient in evaluation is scale * beta's.
struct ConvNormGradient {
  float *weight, *gamma, *beta, *scale;
};

// y = act(norm(conv(x))) + residual. z: unless null receives the convolution without its bias. mean, var: in training.
void conv_bn_act(const Call& call, Workspace& workspace, const Map& x, const ConvNorm& layer, const Map& residual,
                 bool relu, bool training, float eps, const Map& y, const Map& z, float* mean, float* var);
// dx may be null.
void conv_bn_act_backward(const Call& call, Workspace& workspace, const Map& grad, const Map& x, const ConvNorm& layer,
                          const Map& z, bool relu, bool training, float eps, const Map& dx,
                          const ConvNormGradient& gradient);

// mean and var of the two layers: statistics[0..3] = mean1, var1, mean2, var2, in training. z1, z2 both or neither.
void residual_block(const Call& call, Workspace& workspace, const Map& x, const ConvNorm& first, const ConvNorm& second,
                    bool training, float eps, const Map& y, const Map& z1, const Map& z2, float* const (&statistics)[4]);
void residual_block_backward(const Call& call, Workspace& workspace, const Map& grad, const Map& x,
                             const ConvNorm& first, const Map& z1, const ConvNorm& second, const Map& z2, bool training,
                             float eps, const Map& dx, const ConvNormGradient& gradient1,
                             const ConvNormGradient& gradient2);

// x: planes (n, frames, h, w) in any strides. Weights are planar (w1.in may be more than there are frames); biases
// float32.
struct Stem {
  Weights w1, w2;
  const float *b1, *b2;
};
void stem_forward(const Call& call, Workspace& workspace, const Strided& x, const Stem& weights, const Map& y);
// frames: x's planes as a map, w1.in of them (more than x has: the rest is zero). dx, may be null, has w1.in channels.
struct StemGradient {
  float *w1, *b1, *w2, *b2;
};
void stem_backward(const Call& call, Workspace& workspace, const Map& grad, const Strided& x, const Map& y,
                   const Stem& weights, const Map& dx, const StemGradient& gradient);

// taps: L35's weights, float32 (9, channels of L34). y: (n, h, w) of y_kind. h1, h2: unless null are kept.
struct Tail {
  Weights w1, w2;
  const float *b1, *b2, *taps, *b3;
};
void reconstruct(const Call& call, Workspace& workspace, const Map& x, const Tail& tail, void* y, Kind y_kind,
                 const Map& h1, const Map& h2);
// grad: dense (n, h, w). gradient.taps: (9, channels of L34).
struct TailGradient {
  float *w1, *b1, *w2, *b2, *taps, *b3;
};
void reconstruct_backward(const Call& call, Workspace& workspace, const void* grad, Kind grad_kind, const Map& x,
                          const Map& h1, const Map& h2, const Tail& tail, const Map& dx, const TailGradient& gradient);

}  // namespace dblr
