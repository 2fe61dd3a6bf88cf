// The 3x3 convolution of many channels on Hopper (256 -> 256, chunks of 64): weights streamed, sums in registers.
//
// A block computes 64 out channels of 4 rows x 128 columns; each of its two multiplying warpgroups has two rows
// (2 x 64 sums a thread). For every chunk of 64 in channels six rows of pixels pass through the ring (as in
// conv3x3_sm90.cuh), for every tap of it 8 KiB of weights through a second ring, and from there into registers as
// fragments of A: three sets of 16 registers, so that one is loaded while the products of two are under way.
// Warpgroup 0 fetches: its warp 0 pixels, its warp 1 weights. Warpgroup 2 starts kLead taps after warpgroup 1, so that
// one's epilogue runs beside the other's products. Blocks of a cluster share pixels and differ in out channels.
//
// Clocks of an SM for a pixel and 64 out channels (counted): products 72 (64 x 2304 / 2048); shared memory: B 36,
// fragments 4.5, arrivals 8: 48. Bytes an SM draws from L2 in a clock: weights 8 (295 KB for 512 pixels, 36864 clocks),
// pixels 10.8 alone, 5.4 in a cluster of 2: 13.4, and 132 SMs together 1770 of the L2's about 3000.
// At 1280x720, 256 -> 256, on an H200: floor 1376 us; shares of 54 or 55 tiles lose 1 %: 1.5-1.7 ms predicted.
// Tap planes: 576 multiply-adds and 252 shuffles a thread and row, 15 % of the issue slots, hidden by the lead.
#pragma once

#include "conv3x3_sm90_ring.cuh"

namespace dblr {
namespace sm90 {

struct DeepParams {
  TensorMap x, y, weights;  // weights as a map of 128-byte rows, 64 of them a tap and pair of chunks
  const float *scale, *shift;
  const float* tap_weights;  // (9, out), null: no tap planes
  float* taps;
  std::int64_t plane;  // pixels of all pictures
  int h, w;
  int height, strips, units;  // groups of four rows: of a picture; strips of 128 columns; groups of all strips
  int chunks, chunks_in;
  bool relu, stored;  // stored: y is wanted
};

constexpr int kRowsOfTile = 4;
constexpr int kStages = 6, kLead = 5;  // of the weights' ring: taps, and by how many warpgroup 1 leads
constexpr int kStageBytes = 64 * 128;
constexpr int kScratchBytes = 4 * 9 * kColumns * 4;  // partial tap sums of four warps; a tile of results fits too
constexpr int kDeepWeights = kRing * kRowPitch;
constexpr int kDeepScratch = kDeepWeights + kStages * kStageBytes;
constexpr int kDeepBarriers = kDeepScratch + 2 * kScratchBytes;
constexpr int kDeepSharedBytes = kDeepBarriers + 256;
static_assert(kScratchBytes >= kTileBytes && kScratchBytes % 1024 == 0, "tiles are swizzled");
static_assert(kLead < kStages, "warpgroup 1 must reach its lead alone");

// Sums of eight lanes that differ in bits 2 to 4, for eight values at once: each lane returns the one whose index its
// bits spell (bit 4 the highest). Seven shuffles, always in the same order.
__device__ __forceinline__ float sum_over_rows(const float (&v)[8], int lane) {
  float four[4], two[2];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float keep = lane & 16 ? v[i + 4] : v[i], give = lane & 16 ? v[i] : v[i + 4];
    four[i] = keep + shuffle_xor(give, 16);
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const float keep = lane & 8 ? four[i + 2] : four[i], give = lane & 8 ? four[i] : four[i + 2];
    two[i] = keep + shuffle_xor(give, 8);
  }
  const float keep = lane & 4 ? two[1] : two[0], give = lane & 4 ? two[0] : two[1];
  return keep + shuffle_xor(give, 4);
}

// The nine tap planes of one row: sums over the 64 channels of `values` (results, laid out as the products').
// scratch: [warp][tap][pixel] of this warpgroup, whose barrier is `id`.
__device__ __forceinline__ void contract_taps(const float (&values)[64], const DeepParams& p, int chunk, int n, int y,
                                              int x0, float* scratch, int id, int warp, int lane) {
  const int channel = chunk * 64 + warp * 16 + lane / 4, out = p.chunks * 64;
  // The pixel of each 32 whose sums end in this lane.
  const int pixel = (lane / 8 * 8) + 2 * (lane % 4) + lane / 4 % 2;
#pragma unroll
  for (int tap = 0; tap < 9; tap++) {
    const float w0 = p.tap_weights[tap * out + channel], w1 = p.tap_weights[tap * out + channel + 8];
#pragma unroll
    for (int q = 0; q < 4; q++) {
      float v[8];
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const int at = 16 * q + i / 2 * 4 + i % 2;
        v[i] = fmaf(values[at], w0, values[at + 2] * w1);
      }
      scratch[(warp * 9 + tap) * kColumns + q * 32 + pixel] = sum_over_rows(v, lane);
    }
  }
  sync_some(id, 128);
  const int x = x0 + warp * 32 + lane;
#pragma unroll
  for (int tap = 0; tap < 9; tap++) {
    const float* from = scratch + tap * kColumns + warp * 32 + lane;
    float sum = from[0];
#pragma unroll
    for (int i = 1; i < 4; i++) sum += from[i * 9 * kColumns];
    if (x < p.w && y < p.h) {
      p.taps[(chunk * 9 + tap) * p.plane + (static_cast<std::int64_t>(n) * p.h + y) * p.w + x] = sum;
    }
  }
  sync_some(id, 128);  // the scratch is free again
}

// registers: 168, spills: 0 (sm_90a; at launch, then 40 for those that fetch and 232 for those that multiply)
template <class E, int cluster>
__global__ void __launch_bounds__(384, 1) conv3x3_sm90_deep_kernel(const __grid_constant__ DeepParams p) {
#if defined(DBLR_EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  unsigned char* const memory = dynamic_shared();
  const SharedAddress shared = shared_address(memory);
  const SharedAddress barriers = shared + kDeepBarriers;
  const Ring<cluster> ring{shared, barriers, barriers + 8 * kRing};
  const SharedAddress full = barriers + 16 * kRing, empty = full + 8 * kStages, turn = empty + 8 * kStages;
  const int warp = shuffle(threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    ring.init();
    for (int i = 0; i < kStages; i++) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, kWarps);
    }
    barrier_init(turn, 4);
    fence_barrier_init();
  }
  sync_blocks<cluster>();
  const int chunk = blockIdx.x % p.chunks;
  Walk walk = share_of(p.units, p.height, p.strips, blockIdx.x / p.chunks, gridDim.x / p.chunks);

  if (warp < 4) {
    registers_down<40>();
    if (warp == 0 && lane == 0) {
      const int rank = cluster > 1 ? cluster_rank() : 0;
      for (int s = 0; walk.advance();) {
        for (int i = walk.first; i < walk.first + walk.count; i++) {
          for (int from = 0; from < p.chunks_in; from++) {
            for (int row = 0; row < kRowsOfTile + 2; row++) {
              ring.load(s++, p.x, from * 64, walk.x, i * kRowsOfTile + row - 1, walk.n, rank);
            }
          }
        }
      }
    }
    if (warp == 1 && lane == 0) {
      const int tiles = walk.last - walk.next, taps = p.chunks_in * 9;
      int slot = 0, parity = 1;  // of the phase that frees the slot; the first round finds all free
      for (int i = 0; i < tiles; i++) {
        for (int tap = 0; tap < taps; tap++) {
          barrier_wait(empty + 8 * slot, parity);
          barrier_arrive_expect(full + 8 * slot, kStageBytes);
          load_box(shared + kDeepWeights + slot * kStageBytes, p.weights, 0, (chunk * taps + tap) * 64, 0, 0,
                   full + 8 * slot);
          if (++slot == kStages) slot = 0, parity ^= 1;
        }
      }
    }
  } else {
    registers_up<232>();
    const int me = warp / 4 - 1, part = warp % 4, thread = threadIdx.x % 128;
    const int scratch = kDeepScratch + me * kScratchBytes;
    const SharedAddress mine = staged(shared + scratch, part, lane);
    const int channel = chunk * 64 + part * 16 + lane / 4;
    // This lane's vector of a fragment in a stage: rows of 128 bytes, swizzled by the copy engine.
    const int line = part * 4 + lane / 8;
    const unsigned char* const fragments = memory + kDeepWeights + line * 128 + (lane % 8 ^ line % 8) * 16;

    std::uint32_t a[3][4][4];
    int slot = 0, parity = 0;  // of the weights' ring
    const auto load = [&](std::uint32_t (&to)[4][4]) {
      barrier_wait(full + 8 * slot, parity);
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const Vector16 v = *reinterpret_cast<const Vector16*>(fragments + slot * kStageBytes + k * 2048);
#pragma unroll
        for (int j = 0; j < 4; j++) to[k][j] = v.word[j];
      }
      sync_warp();
      if (lane == 0) barrier_arrive(empty + 8 * slot);
      if (++slot == kStages) slot = 0, parity ^= 1;
    };

    int s = 0, tile = 0;  // ring row of the chunk's first; tiles so far
    for (; walk.advance();) {
      for (int i = walk.first; i < walk.first + walk.count; i++, tile++) {
        float upper[64], lower[64];  // sums of the warpgroup's two rows
#pragma unroll
        for (int j = 0; j < 64; j++) upper[j] = lower[j] = 0;
        if (me == 1) barrier_wait(turn, tile & 1);
        load(a[0]);
        for (int from = 0; from < p.chunks_in; from++, s += kRowsOfTile + 2) {
          const int first = s + 2 * me;
          if (me == 1) {  // rows that only the other reads
            ring.release(s, lane);
            ring.release(s + 1, lane);
          }
#pragma unroll
          for (int ky = 0; ky < 3; ky++) {
            ring.wait(first + ky);
            ring.wait(first + ky + 1);
            const std::uint64_t row0 = rows_descriptor(ring.row(first + ky));
            const std::uint64_t row1 = rows_descriptor(ring.row(first + ky + 1));
#pragma unroll
            for (int kx = 0; kx < 3; kx++) {
              products_fence();
#pragma unroll
              for (int k = 0; k < 4; k++) {
                products_64x128x16<E>(upper, a[kx][k], row0 + (kx * kPixel + k * 32) / 16);
                products_64x128x16<E>(lower, a[kx][k], row1 + (kx * kPixel + k * 32) / 16);
              }
              products_commit();
              if (ky * 3 + kx + 1 == kLead && from == 0 && me == 0 && lane == 0) barrier_arrive(turn);
              if (ky * 3 + kx < 8) {
                load(a[(kx + 1) % 3]);
                products_wait<1>();
              }
              if (ky > 0 && kx == 0) ring.release(first + ky - 1, lane);
            }
          }
          if (from + 1 < p.chunks_in) load(a[0]);
          products_wait<0>();
          ring.release(first + 2, lane);
          ring.release(first + 3, lane);
          if (me == 0) {
            ring.release(s + 4, lane);
            ring.release(s + 5, lane);
          }
        }

        const Affine affine(p.scale, p.shift, p.relu, channel);
#pragma unroll
        for (int j = 0; j < 64; j++) {
          upper[j] = j & 2 ? affine.second(upper[j]) : affine.first(upper[j]);
          lower[j] = j & 2 ? affine.second(lower[j]) : affine.first(lower[j]);
        }
        const int y = i * kRowsOfTile + 2 * me;
        if (p.stored) {
          const auto store = [&](const float (&values)[64], int row) {
#pragma unroll
            for (int j = 0; j < 16; j += 2) {
              const float v[8] = {values[4 * j],     values[4 * j + 1], values[4 * j + 2], values[4 * j + 3],
                                  values[4 * j + 4], values[4 * j + 5], values[4 * j + 6], values[4 * j + 7]};
              stage<E>(v, mine + j * 1024);
            }
            fence_proxy_async();
            sync_some(1 + me, 128);
            if (thread == 0) {
              dblr::store_box(p.y, chunk * 64, walk.x, row, walk.n, shared + scratch);
              store_commit();
              store_wait_read<0>();
            }
            sync_some(1 + me, 128);
          };
          store(upper, y);
          store(lower, y + 1);
        }
        if (p.tap_weights) {
          float* const partial = reinterpret_cast<float*>(memory + scratch);
          contract_taps(upper, p, chunk, walk.n, y, walk.x, partial, 1 + me, part, lane);
          contract_taps(lower, p, chunk, walk.n, y + 1, walk.x, partial, 1 + me, part, lane);
        }
      }
    }
    if (p.stored && thread == 0) store_wait<0>();
  }
  if constexpr (cluster > 1) sync_blocks<cluster>();  // none leaves while another may still tell it that a row is read
#endif
}

}  // namespace sm90
}  // namespace dblr
