// The 3x3 convolution of 64 channels on Hopper: weights in registers, pixels from a ring of rows in shared memory.
//
// Channels are M, pixels are N: y (64 x 128 pixels) = sum over 36 steps (9 taps x 4 x 16 channels) of A (64 x 16, the
// weights: 36 fragments, 144 registers a thread, loaded once) times B (16 x 128 pixels). A pixel's 64 channels are one
// row of 128 bytes, so the tap (ky, kx) is row y + ky - 1 of the ring read from its pixel kx on: a descriptor that
// starts in the middle of a swizzle atom.
//
// A block owns a share of the picture's strips of 128 columns and walks down them. Warpgroup 0 has the copy engine fill
// the ring; warpgroups 1 and 2 take rows by turns. A turn starts when the other is two thirds through its products, so
// that one's epilogue runs beside the other's products. Residuals are fetched during the products into the tile that
// the results leave from.
//
// Clocks of an SM for a pixel (counted): products 18 (64 x 576 / 2048); shared memory 12-14 at 128 bytes a clock:
// B 9, the row's arrival 1.1, results in and out 2, each residual 2. So the products set the pace. L2 and memory: 128
// bytes in (+ halo 2 rows a share), 128 out, 128 a residual.
// At 1280x720 on an H200 (790 TFLOP/s and 4.3 TB/s measured): floor 86 us (82 us of bytes with a residual); shares of
// 54 or 55 rows lose 1 %, start and first rows about 4 us, the last epilogue 1 us: 92-100 us predicted. 64 -> 256:
// floor 344 us, four chunks of 33 blocks, 365-385 us predicted.
// 64 -> 256 in clusters of blocks that differ in out channels: each row comes from L2 once for the cluster. L2 then gives
// 3.6 (of 2) or 1.8 (of 4) bytes in a clock and SM instead of 7.2, beside 7.1 out; 132 SMs draw 1890, 1410 or 1180 of its
// about 3000, so that it pays only where something else wants L2. See cluster_of in conv3x3_sm90.cu.
// Measured on an H200, float16: 82-85 us, with a residual 100-102 (bytes bound it then), at a clock that the power limit
// holds at 1.6 GHz, tensor cores 87 % busy; the descriptor that starts in mid-atom is right. 64 -> 256 in pairs 447 us
// (297 without clusters: blocks of a pair wait for one another more than L2 would cost, see benchmarks/results).
#pragma once

#include "conv3x3_sm90_ring.cuh"

namespace dblr {
namespace sm90 {

struct Params {
  TensorMap x, y, add0, add1;  // add0: what masks, where something does
  const Vector16* weights;
  const float *scale, *shift;
  int height, strips, units;  // rows of a picture, strips of 128 columns, rows of all strips
  int chunks;                 // of 64 out channels
  int adds;
  bool relu;
  // Training: see Epilogue. The map that masks is the one that `norm` normalises.
  bool masked;
  Sums sums;
  const float *mask_scale, *mask_shift, *norm_scale, *norm_shift;
  float* partial;
  int width;
};

// Shared memory: the ring, two tiles for each multiplying warpgroup (results or first residual; second), barriers.
constexpr int kTiles = kRing * kRowPitch;
constexpr int kBarriers = kTiles + 4 * kTileBytes;
constexpr int kSharedBytes = kBarriers + 256;

// Sums over the pixels of a row that a thread shares with the three next to it: two channels, two sums of each.
struct RowSums {
  float first[2] = {}, second[2] = {};

  __device__ __forceinline__ static float shared_by_four(float v) {
    v += shuffle_xor(v, 1);
    return v + shuffle_xor(v, 2);
  }
  // To row `tile` of the partial sums.
  __device__ __forceinline__ void store(const Params& p, int tile, int channel, int lane) const {
    if (lane % 4 != 0) return;
    float* const to = p.partial + static_cast<std::int64_t>(tile) * (2 * 64 * p.chunks) + channel;
    to[0] = first[0];
    to[8] = first[1];
    to[64 * p.chunks] = second[0];
    to[64 * p.chunks + 8] = second[1];
  }
};

// What follows reads a row's values from where they are staged, eight pixels x two channels at a time: the weights leave
// no registers for more. A warp reads what it staged itself.

template <class E> __device__ __forceinline__ void stage_row(const float (&sums)[64], SharedAddress staged) {
#pragma unroll
  for (int j = 0; j < 16; j += 2) {
    float v[8];
#pragma unroll
    for (int e = 0; e < 8; e++) v[e] = sums[4 * j + e];
    stage<E>(v, staged + j * 1024);
  }
  sync_warp();
}

// Whether the value e of pixels 8 j to 8 j + 15 is of a pixel below `count`.
__device__ __forceinline__ bool counts(int j, int e, int count, int lane) {
  return 8 * j + e / 4 * 8 + lane % 4 * 2 + e % 2 < count;
}

// Mean and sum of squared deviations over a staged row's first `count` pixels.
template <class E> __device__ __forceinline__ RowSums statistics_of(SharedAddress staged, int count, int lane) {
  RowSums row;
#pragma unroll 1
  for (int j = 0; j < 16; j += 2) {
    float v[8];
    read_staged<E>(v, staged + j * 1024);
#pragma unroll
    for (int e = 0; e < 8; e++) row.first[e / 2 % 2] += counts(j, e, count, lane) ? v[e] : 0.0f;
  }
  const float pixels = static_cast<float>(count < kColumns ? count : kColumns);
#pragma unroll
  for (int i = 0; i < 2; i++) row.first[i] = RowSums::shared_by_four(row.first[i]) / pixels;
#pragma unroll 1
  for (int j = 0; j < 16; j += 2) {
    float v[8];
    read_staged<E>(v, staged + j * 1024);
#pragma unroll
    for (int e = 0; e < 8; e++) {
      const float apart = counts(j, e, count, lane) ? v[e] - row.first[e / 2 % 2] : 0.0f;
      row.second[e / 2 % 2] = fmaf(apart, apart, row.second[e / 2 % 2]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; i++) row.second[i] = RowSums::shared_by_four(row.second[i]);
  return row;
}

// The row staged kTileBytes further, masked by the map that is staged here and put in its place; the sums of what is
// kept, over the first `count` pixels.
template <class E>
__device__ __forceinline__ RowSums mask_row(const Params& p, int channel, SharedAddress staged, int count, int lane) {
  const auto both = [&](const float* from, float missing, float (&v)[2]) {
    v[0] = from ? from[channel] : missing;
    v[1] = from ? from[channel + 8] : missing;
  };
  float mask_scale[2], mask_shift[2], norm_scale[2], norm_shift[2];
  both(p.mask_scale, 1.0f, mask_scale);
  both(p.mask_shift, 0.0f, mask_shift);
  both(p.norm_scale, 1.0f, norm_scale);
  both(p.norm_shift, 0.0f, norm_shift);
  RowSums row;
#pragma unroll 1
  for (int j = 0; j < 16; j += 2) {
    float v[8], z[8];
    read_staged<E>(v, staged + kTileBytes + j * 1024);
    read_staged<E>(z, staged + j * 1024);
#pragma unroll
    for (int e = 0; e < 8; e++) {
      const int c = e / 2 % 2;
      if (!(fmaf(z[e], mask_scale[c], mask_shift[c]) > 0.0f)) v[e] = 0.0f;
      const float kept = counts(j, e, count, lane) ? v[e] : 0.0f;
      row.first[c] += kept;
      row.second[c] = fmaf(kept, fmaf(z[e], norm_scale[c], norm_shift[c]), row.second[c]);
    }
    sync_warp();  // all lanes have read what they are about to overwrite
    stage<E>(v, staged + j * 1024);
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    row.first[i] = RowSums::shared_by_four(row.first[i]);
    row.second[i] = RowSums::shared_by_four(row.second[i]);
  }
  return row;
}

// training: with partial sums and masks.
// registers: 168, spills: 0 (sm_90a; at launch, then 24 for those that fetch and 240 for those that multiply)
template <class E, int cluster, bool training>
__global__ void __launch_bounds__(384, 1) conv3x3_sm90_kernel(const __grid_constant__ Params p) {
#if defined(DBLR_EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const SharedAddress shared = shared_address(dynamic_shared());
  const SharedAddress barriers = shared + kBarriers;
  const Ring<cluster> ring{shared, barriers, barriers + 8 * kRing};
  const SharedAddress added = barriers + 16 * kRing, turns = added + 16;  // one for each multiplying warpgroup
  const int warp = shuffle(threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    ring.init();
    for (int i = 0; i < 2; i++) {
      barrier_init(added + 8 * i, 1);
      barrier_init(turns + 8 * i, 4);
    }
    fence_barrier_init();
  }
  sync_blocks<cluster>();
  Walk walk = share_of(p.units, p.height, p.strips, blockIdx.x / p.chunks, gridDim.x / p.chunks);

  if (warp < 4) {
    registers_down<24>();
    if (threadIdx.x == 0) {
      dblr::prefetch_map(p.x);
      dblr::prefetch_map(p.y);
      const int rank = cluster > 1 ? cluster_rank() : 0;
      for (int s = 0; walk.advance();) {
        for (int y = walk.first - 1; y <= walk.first + walk.count; y++) ring.load(s++, p.x, 0, walk.x, y, walk.n, rank);
      }
    }
  } else {
    registers_up<240>();
    const int chunk = blockIdx.x % p.chunks, thread = threadIdx.x % 128;
    const int me = warp / 4 - 1;  // which of the two
    const SharedAddress tile = shared + kTiles + me * 2 * kTileBytes, mine = staged(tile, warp % 4, lane);
    const Affine affine(training ? nullptr : p.scale, training ? nullptr : p.shift, !training && p.relu,
                        chunk * 64 + warp % 4 * 16 + lane / 4);
    std::uint32_t a[36][4];
#pragma unroll
    for (int i = 0; i < 36; i++) {
      const Vector16 v = p.weights[(chunk * 36 + i) * 128 + thread];
#pragma unroll
      for (int j = 0; j < 4; j++) a[i][j] = v.word[j];
    }

    int start = 0, rows = 0;  // ring row of the run's first, rows of all runs so far
    for (; walk.advance(); start += walk.count + 2, rows += walk.count) {
      for (int i = (me + rows) & 1; i < walk.count; i += 2) {
        const int turn = (rows + i) / 2;  // of this warpgroup
        float sums[64];
#pragma unroll
        for (int j = 0; j < 64; j++) sums[j] = 0;
        barrier_wait(turns + 8 * me, (me == 0 ? turn + 1 : turn) & 1);
#pragma unroll
        for (int ky = 0; ky < 3; ky++) {
          ring.wait(start + i + ky);
          products_fence();
          const std::uint64_t row = rows_descriptor(ring.row(start + i + ky));
#pragma unroll
          for (int kx = 0; kx < 3; kx++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
              products_64x128x16<E>(sums, a[(ky * 3 + kx) * 4 + k], row + (kx * kPixel + k * 32) / 16);
            }
          }
          products_commit();
          if (ky == 0 && thread == 0) {  // the tile's last results have had a third of the products to leave
            store_wait_read<0>();
            if (p.adds > 0) {
              const int y = walk.first + i, c = chunk * 64;
              barrier_arrive_expect(added + 8 * me, p.adds * kTileBytes);
              load_box(tile, p.add0, c, walk.x, y, walk.n, added + 8 * me);
              if (p.adds > 1) load_box(tile + kTileBytes, p.add1, c, walk.x, y, walk.n, added + 8 * me);
            }
          }
          if (ky == 1) {  // once no lane waits for its own turn any more
            sync_warp();
            if (lane == 0) barrier_arrive(turns + 8 * (1 - me));
          }
        }
        products_wait<0>();
        const int until = i + 2 < walk.count ? start + i + 2 : start + walk.count + 2;
        for (int row = i < 2 ? start : start + i; row < until; row++) ring.release(row, lane);

        if (p.adds > 0) {
          barrier_wait(added + 8 * me, turn & 1);
        } else {
          sync_some(1 + me, 128);  // the tile is free once its first thread has waited
        }
        if constexpr (training) {
          const int channel = chunk * 64 + warp % 4 * 16 + lane / 4;
          RowSums of_row;
          stage_row<E>(sums, p.masked ? mine + kTileBytes : mine);
          if (p.masked) {
            of_row = mask_row<E>(p, channel, mine, p.width - walk.x, lane);
          } else {
            of_row = statistics_of<E>(mine, p.width - walk.x, lane);
          }
          if (p.sums != Sums::none) {
            of_row.store(p, ((walk.n * p.height + walk.first + i) * p.strips + walk.x / kColumns), channel, lane);
          }
        } else {
#pragma unroll
          for (int j = 0; j < 16; j += 2) {
            float v[8];
#pragma unroll
            for (int e = 0; e < 8; e++) v[e] = e & 2 ? affine.second(sums[4 * j + e]) : affine.first(sums[4 * j + e]);
            if (p.adds > 0) add_staged<E>(v, mine + j * 1024);
            if (p.adds > 1) add_staged<E>(v, mine + kTileBytes + j * 1024);
            stage<E>(v, mine + j * 1024);
          }
        }
        fence_proxy_async();
        sync_some(1 + me, 128);
        if (thread == 0) {
          dblr::store_box(p.y, chunk * 64, walk.x, walk.first + i, walk.n, tile);
          store_commit();
        }
      }
      if (((me + rows) & 1) >= walk.count) {  // a run of one row, which is the other's
        for (int row = start; row < start + walk.count + 2; row++) ring.release(row, lane);
      }
    }
    if (thread == 0) store_wait<0>();
  }
  if constexpr (cluster > 1) sync_blocks<cluster>();  // none leaves while another may still tell it that a row is read
#endif
}

}  // namespace sm90
}  // namespace dblr
