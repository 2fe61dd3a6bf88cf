#include "tensor_map.h"

namespace dblr {

#ifdef DBLR_EMULATED

TensorMap tensor_map(const Map& map, int box_c, int box_x, int box_y) {
  return {map.data, {map.c, map.w, map.h, map.n}, {box_c, box_x, box_y, 1}, 2};
}

#else

namespace {

// Looked up at run time, so that importing this library needs no driver.
using Encode = decltype(&cuTensorMapEncodeTiled);
Encode encoder() {
  static const Encode found = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check("looking up cuTensorMapEncodeTiled",
          cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result));
    if (!entry || result != cudaDriverEntryPointSuccess) {
      throw DeviceError("the driver has no cuTensorMapEncodeTiled; install one for CUDA 12 or later");
    }
    return reinterpret_cast<Encode>(entry);
  }();
  return found;
}

}  // namespace

TensorMap tensor_map(const Map& map, int box_c, int box_x, int box_y) {
  TensorMap made;
  const cuuint64_t dims[4] = {static_cast<cuuint64_t>(map.c), static_cast<cuuint64_t>(map.w),
                              static_cast<cuuint64_t>(map.h), static_cast<cuuint64_t>(map.n)};
  const cuuint64_t strides[3] = {dims[0] * 2, dims[0] * dims[1] * 2, dims[0] * dims[1] * dims[2] * 2};
  const cuuint32_t box[4] = {static_cast<cuuint32_t>(box_c), static_cast<cuuint32_t>(box_x),
                             static_cast<cuuint32_t>(box_y), 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const CUresult result = encoder()(
      &made, map.kind == Kind::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4, map.data,
      dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw DeviceError("the driver refused to describe a map of " + std::to_string(map.n) + " x " +
                      std::to_string(map.h) + " x " + std::to_string(map.w) + " x " + std::to_string(map.c) +
                      " to the copy engine (CUresult " + std::to_string(result) + ")");
  }
  return made;
}

#endif

}  // namespace dblr
