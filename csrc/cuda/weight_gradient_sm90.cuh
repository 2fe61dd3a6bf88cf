// The weight gradient on Hopper, 16 bits: dw[o][i][tap] = sum over pixels p of dy[p][o] * x[p + tap][i].
//
// Out channels are M, in channels N, pixels K: A is 64 out x 16 pixels of dy, B 16 pixels x 64 in of x. A pixel's 64
// channels are one row of 128 bytes, so both operands lie depth by depth in shared memory (wgmma's transposed, 16-bit
// form), and the tap kx is the row of x read from its pixel kx on, as in conv3x3_sm90.cuh.
//
// A block owns a share of the picture's strips of 128 columns, for one pair of chunks of 64 channels, and walks down
// them. Warpgroup 0 has the copy engine fill two rings, rows of x and rows of dy, with zeros outside the picture, so
// that edges are no case of their own. Warpgroup 1 + ky multiplies every row of dy by the row of x that its three taps
// read, and holds 64 x 64 sums of each (96 registers a thread); at the end they go to `partial`, for reduce_gradient.
//
// One product of 64 x 192 gives a row's three taps: N's three blocks of 64 channels are x from its pixels 0, 1 and 2
// on, so they lie 128 bytes apart and two of them start in mid-atom (seen right on an H200, on every tap).
//
// Clocks of an SM for a row of 128 pixels (counted): products 2304 (64 x 576 x 128 / 2048). Shared memory at 128 bytes
// a clock: A 384, B 1152, rows' arrival 258, in all 1794: products set the pace. (With a product for each tap A would
// be read three times, 2304 + 258: 11 % slower by count, measured 18.7 us against 18.2.)
// 64 -> 64 at 4 x 128 x 128: 128 blocks of 4 rows, 9200 clocks (5.3 us); 147 KB of sums a block, 19 MB to L2 (4 us) and
// back (4 us); two starts and first rows 3 us: 16-17 us predicted, 18.2 us measured on an H200.
#pragma once

#include "conv3x3_sm90_ring.cuh"
#include "weight_gradient_sums.cuh"

namespace dblr {
namespace sm90 {

struct WeightGradientParams {
  TensorMap x, dy;
  float* partial;             // [block x][chunk of out][chunk of in][tap][64][64]
  int height, strips, units;  // rows of a picture, strips of 128 columns, rows of all strips
};

constexpr int kGradientWarps = 12;  // of the three warpgroups that multiply
constexpr int kRowsOfDy = 5;        // of its ring: what there is room for beside the 8 of x, which begin two ahead
using RingOfX = Ring<1, kGradientWarps>;
using RingOfDy = Ring<1, kGradientWarps, kRowsOfDy, 0>;

constexpr int kGradientDy = kRing * RingOfX::kPitch;
constexpr int kGradientBarriers = kGradientDy + kRowsOfDy * RingOfDy::kPitch;
constexpr int kGradientSharedBytes = kGradientBarriers + 256;

// A row of dy by one of x, 128 pixels: adds to sums[kx] = 64 out x 64 in.
template <class E>
__device__ __forceinline__ void multiply_row(float (&sums)[3][32], SharedAddress dy, SharedAddress x) {
  const std::uint64_t a = depths_descriptor(dy, kPixel), b = depths_descriptor(x, kPixel);
#pragma unroll
  for (int k = 0; k < kColumns; k += 16) {
    products_64x192x16<E>(sums, a + k * kPixel / 16, b + k * kPixel / 16);
  }
}

// Block (x, y, z): share x of the rows; chunk y of out channels, chunk z of in channels.
// registers: 128, spills: 0 (sm_90a; at launch, then 24 for those that fetch and 160 for those that multiply)
template <class E>
__global__ void __launch_bounds__(512, 1) weight_gradient_sm90_kernel(const __grid_constant__ WeightGradientParams p) {
#if defined(DBLR_EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const SharedAddress shared = shared_address(dynamic_shared()), barriers = shared + kGradientBarriers;
  const RingOfX xs{shared, barriers, barriers + 8 * kRing};
  const RingOfDy dys{shared + kGradientDy, barriers + 16 * kRing, barriers + 16 * kRing + 8 * kRowsOfDy};
  const int warp = shuffle(threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    xs.init();
    dys.init();
    fence_barrier_init();
  }
  sync_threads();
  Walk walk = share_of(p.units, p.height, p.strips, blockIdx.x, gridDim.x);

  if (warp < 4) {
    registers_down<24>();
    if (threadIdx.x == 0) {
      prefetch_map(p.x);
      prefetch_map(p.dy);
      const int out = blockIdx.y * kChunk, in = blockIdx.z * kChunk;
      for (int s = 0, t = 0; walk.advance();) {
        const int last = walk.first + walk.count;
        for (int y = walk.first - 1; y <= last; y++) {
          xs.load(s++, p.x, in, walk.x, y, walk.n, 0);
          if (y + 1 < last) dys.load(t++, p.dy, out, walk.x, y + 1, walk.n, 0);  // ky = 0 can begin
        }
      }
    }
  } else {
    registers_up<160>();
    const int ky = warp / 4 - 1;
    float sums[3][32];
#pragma unroll
    for (int i = 0; i < 96; i++) sums[i / 32][i % 32] = 0;

    int start = 0, rows = 0;  // ring rows of x and of dy before the run
    for (; walk.advance(); start += walk.count + 2, rows += walk.count) {
      for (int s = 0; s < ky; s++) xs.release(start + s, lane);  // read by the others alone
      for (int i = 0; i < walk.count; i++) {
        xs.wait(start + i + ky);
        dys.wait(rows + i);
        products_fence();
        multiply_row<E>(sums, dys.row(rows + i), xs.row(start + i + ky));
        products_commit();
        if (i == 0) continue;
        products_wait<1>();
        xs.release(start + i - 1 + ky, lane);
        dys.release(rows + i - 1, lane);
      }
      products_wait<0>();
      for (int s = walk.count - 1 + ky; s < walk.count + 2; s++) xs.release(start + s, lane);
      dys.release(rows + walk.count - 1, lane);
    }

    // Channels out 16 w + g (+ 8), in 8 j + 2 t (+ 1) lie in sums[kx][4 j + 0, 1] (+ 2, 3): full sectors of 32 bytes.
    struct alignas(8) Two {
      float first, second;
    };
    const Index chunk = (static_cast<Index>(blockIdx.x) * gridDim.y + blockIdx.y) * gridDim.z + blockIdx.z;
    float* const to = p.partial + chunk * kGradientSums + ky * 3 * kChunk * kChunk +
                      (warp % 4 * 16 + lane / 4) * kChunk + lane % 4 * 2;
#pragma unroll
    for (int kx = 0; kx < 3; kx++) {
#pragma unroll
      for (int j = 0; j < 8; j++) {
        float* const at = to + kx * kChunk * kChunk + j * 8;
        *reinterpret_cast<Two*>(at) = {sums[kx][4 * j], sums[kx][4 * j + 1]};
        *reinterpret_cast<Two*>(at + 8 * kChunk) = {sums[kx][4 * j + 2], sums[kx][4 * j + 3]};
      }
    }
  }
#endif
}

}  // namespace sm90
}  // namespace dblr
