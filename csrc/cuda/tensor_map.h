// Descriptions of maps for the copy engine (sm_90).
#pragma once

#include "kernels.h"
#include "ptx.cuh"

namespace dblr {

// A dense map (N, H, W, C) of 16-bit elements, moved in boxes of (1, box_y, box_x, box_c) with the 128-byte swizzle:
// box_c * 2 bytes must be 128. Coordinates may lie outside the map (zeros are read, nothing is written).
// Throws DeviceError when the driver refuses.
TensorMap tensor_map(const Map& map, int box_c, int box_x, int box_y);

}  // namespace dblr
