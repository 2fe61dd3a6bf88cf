// Convolutions in bf16 for CPUs with AMX-BF16 (and AVX512-BF16, which all of them have).
#define DBLR_BYTES 64
#define DBLR_NATIVE 64
#include "kernels.h"

#include "vec.h"

#include "half.h"

#include "k_maps.h"

#include "k_amx.h"

namespace dblr {

const AmxKernels* bf16_amx() { return &kAmxKernels; }

}  // namespace dblr
