// bf16_amx.cpp with its matrices in plain C++ and each 64-byte vector held as two of AVX2, for tests: see
// kernels_avx512_model.cpp.
#define DBLR_BYTES 64
#define DBLR_NATIVE 32
#include "kernels.h"

#include "vec.h"

#include "half.h"

#include "k_maps.h"

#include "k_amx.h"

namespace dblr {

const AmxKernels* bf16_amx_model() { return &kAmxKernels; }

}  // namespace dblr
