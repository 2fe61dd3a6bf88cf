// The arithmetic, once. A kernels_*.cpp file sets the vector's bytes, the register tile and the table's name,
// and includes this file. Everything but the table's accessor has internal linkage: see kernels.h.
#include "kernels.h"

#include "vec.h"

#include "half.h"

#include "k_gradient.h"
#include "k_maps.h"
#include "k_multiply.h"
#include "k_winograd.h"
#include "k_winograd_product.h"
#include "k_winograd_gradient.h"

namespace dblr {
namespace {

template <class T> constexpr Kernels<T> kernels() {
  return {kLanes<T>, DBLR_PIXELS, DBLR_GROUP, map_kernels<T, T>(), multiply<T>, gradient<T>,
          winograd<T, T, 4>(), winograd<T, T, 6>(), winograd<T, T, 8>(), winograd<T, Half, 8>(), winograd_product,
          winograd_dz<T, T, T, 4, Singly<T, T>>, winograd_gradient<T, T>, winograd_taps<T, 4>};
}

constexpr Table kTable = {kernels<float>(), kernels<double>()};

}  // namespace

const Table* DBLR_TABLE() { return &kTable; }

}  // namespace dblr
