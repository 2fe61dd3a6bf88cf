// A whole DBLRNet in evaluation mode, batch norm folded: weights packed once, each run one row of launches.
#pragma once

#include <vector>

#include "kernels.h"

namespace dblr {

class CudaNetwork {
 public:
  // Channels of the window, of L1, the body and the tail.
  struct Shape {
    Index frames, middle, width, tail;
  };
  // Contiguous float32 on the device. Weights are read by pack alone, biases and taps by every run.
  struct Layer {
    const float *weight, *bias;
  };
  struct Weights {
    Layer stem[2];
    std::vector<Layer> body;  // pairs, the second of which adds what the first one read
    Layer tail[2];
    const float *taps, *tap_bias;  // L35: (9, tail), (1,)
    bool tail_skip;
  };
  // sm90: conv3x3_sm90 where it takes a layer.
  CudaNetwork(Kind kind, Products products, bool sm90, const Shape& shape, const Weights& weights);

  std::size_t packed_bytes() const;
  void pack(void* memory, Stream stream);

  std::size_t workspace_bytes(Index n, Index h, Index w) const;
  // x: (n, frames, h, w); y: dense (n, h, w). Nothing is allocated or waited for: capturable in a CUDA graph.
  void run(const Strided& x, void* workspace, float* y, Stream stream) const;

  const Shape& shape() const { return shape_; }

 private:
  struct Convolution {
    Index out, in;
    const float *weight, *bias;
    PackedWeights portable;
    PackedWeights90 sm90;  // data null: there is none
  };
  bool packs_sm90(const Convolution& c) const;
  std::size_t portable_bytes(const Convolution& c) const;
  void convolve(const Convolution& c, const Map& x, Epilogue epilogue, Stream stream) const;
  std::size_t map_bytes(Index pixels, Index channels) const;
  std::size_t first_bytes(Index pixels) const;

  Kind kind_;
  Products products_;
  bool sm90_;
  Shape shape_;
  Weights weights_;
  StemWeights stem_;
  std::vector<Convolution> convolutions_;  // L2, the body's, L33 and L34
};

}  // namespace dblr
