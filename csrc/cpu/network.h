// A whole DBLRNet in evaluation mode, batch norm folded, in float32: weights packed once, run many times.
#pragma once

#include <memory>
#include <vector>

#include "amx.h"
#include "ops.h"
#include "strips.h"

namespace dblr {

class Network {
 public:
  // Channels of the window, the stem's middle, the body and the tail; the body is a list of (weight, bias).
  struct Shape {
    Index frames, middle, width, tail;
  };
  struct Layer {
    const float *weight, *bias;
  };
  // exact: tiles of 4 outputs a side; fast: of 6; half: of 8 and maps within residual blocks in 16 bits, or where the CPU
  // has AMX directly with split maps (see AmxProduct); bf16: maps and products in bf16, with tiles of 4, or directly
  // where the CPU has AMX. The last two turn into fast and exact where some width does not suit. Throws
  // std::invalid_argument for bf16 on a CPU that makes no such products.
  enum class Level { exact, fast, half, bf16 };
  Network(int threads, const Shape& shape, const ConvPair<float>& stem, const std::vector<Layer>& body,
          const ConvPair<float>& tail, const float* w3, float b3, bool tail_skip, Level level);

  // What run takes of a workspace of `most` bytes to give `valid` of an h x w picture: the lower its strips, the less, and
  // the more time. More than `most` where not even the lowest fit. And what each thread takes beside it.
  std::size_t workspace_bytes(Index h, Index w, const Rect& valid, std::size_t most) const;
  std::size_t thread_bytes(Index h, Index w, const Rect& valid) const;

  // x: (1, frames, h, w); y: (1, 1, ...) of which `valid` is written. Layer k computes what the layers after
  // it read: `valid` grown by the 35 - k of them, and clipped at the picture. workspace: of `bytes`, as many as
  // workspace_bytes says of them; results do not depend on how many. Throws std::range_error where a value does not fit
  // into 16 bits.
  void run(int threads, Map<const float> x, const Rect& valid, float* workspace, std::size_t bytes, Map<float> y) const;

  Index layers() const { return static_cast<Index>(amx_.empty() ? body_.size() + 5 : amx_.size() + 1); }
  const Shape& shape() const { return shape_; }

 private:
  Tail<float> tail() const { return {&tail_[0], &tail_[1], &tail_[2], b3_}; }

  bool split() const { return level_ == Level::half && !amx_.empty(); }

  // How the layers' strips follow one another, no layers in them yet: of skewed ones the highest whose maps fit.
  Strips strips_of(Index h, Index w, const Rect& valid, std::size_t most) const;
  std::size_t maps_bytes(const Strips& strips, Index h, Index w, const Rect& valid) const;
  void taps_later(std::vector<Strips::Strip>& order) const;
  void let_begin_early(const std::vector<Strips::Strip>& order, std::size_t i, bool skewed, Stage& stage) const;
  // The maps between the layers, of type S, of which a few rows are kept: where each lies in the workspace.
  template <class S> struct Maps;
  template <class S>
  void run_with(int threads, Map<const float> x, const Rect& valid, Strips strips, float* workspace, Map<float> y) const;

  Shape shape_;
  const Kernels<float>& kernels_;
  const Bf16Kernels* bf16_;
  Level level_;
  int tile_;
  bool skewed_;  // strips, where all layers but the first go by Winograd; others take whole strips of what they add
  std::vector<Weights<float>> stem_, body_, tail_;
  std::vector<AmxWeights> amx_;  // with AMX instead of these: of all layers but the first
  float b3_;
  bool tail_skip_;
};

}  // namespace dblr
