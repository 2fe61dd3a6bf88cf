// What is done to maps around the convolutions, for maps of type S and arithmetic in T.
#include "k_elementwise.h"
#include "k_sums.h"

namespace dblr {
namespace {

template <class T, class S> constexpr MapKernels<T, S> map_kernels() {
  return {load_row<T, S>, sums<T, S>, normalise<T, S>};
}

}  // namespace
}  // namespace dblr
