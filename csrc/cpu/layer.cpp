#include "layer.h"

#include "winograd.h"

namespace dblr {

Bf16Weights::Bf16Weights(const Run<float>& run, const Filter<float>& filter, const float* bias, const double* scale,
                         bool gradient)
    : out(filter.out) {
  if (run.amx) {
    amx.emplace(*run.amx, run.threads, filter, bias, scale);
  } else {
    const int tile = winograd_tile(run.kernels, filter, gradient ? 4 : 8);
    plain.emplace(run, filter, bias, scale, tile, tile && gradient);
  }
}

void convolve(const Run<float>& run, const Bf16Weights& w, const Convolution<float, Bf16, Bf16>& c) {
  w.amx ? run_stage(run.threads, amx_stage(run, *w.amx, c)) : convolve(run, *w.plain, c);
}

}  // namespace dblr
