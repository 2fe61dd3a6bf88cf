// bf16_avx512.cpp with each 64-byte vector held as two of AVX2, for tests: see kernels_avx512_model.cpp.
#define DBLR_BYTES 64
#define DBLR_NATIVE 32
#define DBLR_PIXELS 12
#include "kernels.h"

#include "vec.h"

#include "half.h"

#include "k_maps.h"
#include "k_multiply.h"
#include "k_pairs.h"
#include "k_winograd.h"
#include "k_winograd_product.h"
#include "k_winograd_gradient.h"

#include "k_bf16.h"

namespace dblr {

const Bf16Kernels* bf16_avx512_model() { return &kBf16Kernels; }

}  // namespace dblr
