// Maps and products in bf16, for CPUs with AVX512-BF16. Kept apart from kernels_avx512.cpp, which runs on others too.
#define DBLR_BYTES 64
#define DBLR_NATIVE 64
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

const Bf16Kernels* bf16_avx512() { return &kBf16Kernels; }

}  // namespace dblr
