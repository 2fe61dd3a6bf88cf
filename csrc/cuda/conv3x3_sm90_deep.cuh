// The 3x3 convolution of many channels on Hopper (256 -> 256, chunks of 64): weights streamed, sums in registers.
//
// A block computes 64 out channels of 4 rows x 128 columns; each of its two multiplying warpgroups has two rows
// (2 x 64 sums a thread). For every chunk of 64 in channels six rows of pixels pass through the ring (as in
// conv3x3_sm90.cuh), for every tap of it 8 KiB of weights through a second ring, and from there into registers as
// fragments of A: three sets of 16 registers, so that one is loaded while the products of two are under way.
// Warpgroup 0 fetches: its warp 0 pixels, its warp 1 weights. Warpgroup 2 starts kLead taps after warpgroup 1, so that
// one's epilogue runs beside the other's products. Blocks of a cluster share pixels and differ in out channels.
// The tap planes of L35 are products too (mma.sync): pixels x channels as the row lies staged for its store, rounded to
// the map's type, times channels x taps. So they see what L35 alone would read.
//
// Clocks of an SM for a pixel and 64 out channels (counted): products 72 (64 x 2304 / 2048); shared memory: B 36,
// fragments 4.5, arrivals 8: 48. Bytes an SM draws from L2 in a clock: weights 8 (295 KB for 512 pixels, 36864 clocks),
// pixels 10.8 alone, 5.4 in a cluster of 2: 13.4, and 132 SMs together 1770 of the L2's about 3000.
// At 1280x720, 256 -> 256, on an H200: floor 1376 us; shares of 54 or 55 tiles lose 1 %: 1.42-1.5 ms predicted, 1.55
// measured in clusters of 2. Without clusters 1.29, but not always the same bits: see conv3x3_sm90_takes.
// Epilogue of a warpgroup's two rows: 800 instructions a thread with tap planes (a warp each scheduler, so as many
// clocks), and about 600 clocks of waiting for barriers, ldmatrix and mma.sync: 1400. A warpgroup alone takes 512 for a
// tap, so that a lead of 4 taps (2048) hides it, even if mma.sync has to wait for the other's products.
// Weights' ring: the stage that warpgroup 2 frees, once it has issued a tap's products, is wanted by warpgroup 1
// kStages - kLead - 1 = 2 taps later, 2048 clocks for a copy's about 1000. Measured with one tap between them, and tap planes by multiply-adds and shuffles (7000 to
// 8000 clocks a tile): 60300 clocks a tile instead of 36864, 1.87 ms for L34 and L35 in float16 at 1280x720.
// Mask and sums (training): the lower row's mask arrives during the products and stays as bits in two registers, the
// upper's takes its place. 128 bytes more a pixel and 64 channels; 500 instructions more, of which the lead hides most.
#pragma once

#include "conv3x3_sm90_ring.cuh"

namespace dblr {
namespace sm90 {

struct DeepParams {
  TensorMap x, y, mask, weights;  // weights as a map of 128-byte rows, 64 of them a tap and pair of chunks
  const float *scale, *shift;
  const float* tap_weights;  // (9, out), null: no tap planes
  float* taps;
  std::int64_t plane;  // pixels of all pictures
  int h, w;
  int height, strips, units;  // groups of four rows: of a picture; strips of 128 columns; groups of all strips
  int chunks, chunks_in;
  float* partial;  // null: no sums
  bool relu, stored, masked;  // stored: y is wanted
};

constexpr int kRowsOfTile = 4;
constexpr int kStages = 7, kLead = 4;  // of the weights' ring: taps, and by how many warpgroup 1 leads
constexpr int kStageBytes = 64 * 128;
constexpr int kDeepWeights = kRing * kRowPitch;
constexpr int kDeepTiles = kDeepWeights + kStages * kStageBytes;  // a row of results of each multiplying warpgroup
constexpr int kDeepTaps = kDeepTiles + 2 * kTileBytes;            // tap weights as fragments of B
constexpr int kDeepBarriers = kDeepTaps + 64 * 16 * 2;
constexpr int kDeepSharedBytes = kDeepBarriers + 8 * (2 * kRing + 2 * kStages + 1 + 2);
static_assert(kDeepTiles % 1024 == 0, "tiles are swizzled");
static_assert(kLead + 1 < kStages && kLead <= 9, "warpgroup 1 must reach its lead alone, within the first chunk");
static_assert(kDeepSharedBytes <= 227 * 1024, "more than a block may have");

__device__ __forceinline__ Walk walk_of(const DeepParams& p) {
  return share_of(p.units, p.height, p.strips, blockIdx.x / p.chunks, gridDim.x / p.chunks);
}

// The tap weights of this block's channels, rounded: word ((k * 32 + lane) * 2 + half) * 2 + i holds what mma_16x8x16
// wants of that lane in b0 or b1 (i), of channels 16 k to + 15 and taps 8 half to + 7; those from 9 on are zero. By all
// threads.
template <class E>
__device__ __forceinline__ void stage_tap_weights(const DeepParams& p, int chunk, std::uint32_t* to) {
  for (int word = threadIdx.x; word < 4 * 32 * 4; word += 384) {
    const int lane = word / 4 % 32, tap = word / 2 % 2 * 8 + lane / 4;
    const int channel = word / 128 * 16 + word % 2 * 8 + lane % 4 * 2;
    const float* const from = p.tap_weights + tap * p.chunks * 64 + chunk * 64 + channel;
    to[word] = tap < 9 ? pack<E>(from[0], from[1]) : 0;
  }
}

// The nine tap planes of one row, from its 128 pixels x 64 channels in `tile`: 32 pixels a warp.
template <class E>
__device__ __forceinline__ void contract_taps(SharedAddress tile, const Vector16* weights, const DeepParams& p,
                                              int chunk, int n, int y, int x0, int warp, int lane) {
  if (y >= p.h) return;
  // This lane's row of four 8x8 matrices: pixels 0 to 15 of the warp's, channels 0 to 15; 32 k turns over bits of its
  // vector, which lies swizzled.
  const SharedAddress pixels = tile + (warp * 32 + lane % 16) * kPixel + (lane / 16 ^ lane % 8) * 16;
  float sums[2][2][4] = {};
#pragma unroll
  for (int k = 0; k < 4; k++) {
    const Vector16 b = weights[k * 32 + lane];
#pragma unroll
    for (int m = 0; m < 2; m++) {
      std::uint32_t a[4];
      load_matrices(a, (pixels ^ k * 32) + m * 16 * kPixel);
      mma_16x8x16<E>(sums[m][0], a, b.word[0], b.word[1]);
      mma_16x8x16<E>(sums[m][1], a, b.word[2], b.word[3]);
    }
  }
  const int x = x0 + warp * 32 + lane / 4, tap = lane % 4 * 2;
  float* const even = p.taps + (chunk * 9 + tap) * p.plane + (static_cast<std::int64_t>(n) * p.h + y) * p.w + x;
  float *const odd = even + p.plane, *const last = even + 8 * p.plane;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (x + 8 * i < p.w) {
      even[8 * i] = sums[i / 2][0][i % 2 * 2];
      odd[8 * i] = sums[i / 2][0][i % 2 * 2 + 1];
      if (tap == 0) last[8 * i] = sums[i / 2][1][i % 2 * 2];
    }
  }
}

// Which of a thread's 64 values of a row are kept by the mask staged at `at`: a bit each.
template <class E> __device__ __forceinline__ void kept_of(SharedAddress at, std::uint32_t (&kept)[2]) {
  kept[0] = kept[1] = 0;
#pragma unroll
  for (int j = 0; j < 16; j += 2) {
    float v[8] = {};
    add_staged<E>(v, at + j * 1024);
#pragma unroll
    for (int i = 0; i < 8; i++) kept[j / 8] |= static_cast<std::uint32_t>(v[i] > 0.0f) << (j % 8 * 4 + i);
  }
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
  const SharedAddress masks = turn + 8;  // one for each multiplying warpgroup
  const int warp = shuffle(threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    ring.init();
    for (int i = 0; i < kStages; i++) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, kWarps);
    }
    barrier_init(turn, 4);
    for (int i = 0; i < 2; i++) barrier_init(masks + 8 * i, 1);
    fence_barrier_init();
  }
  const int chunk = blockIdx.x % p.chunks;
  if (p.tap_weights) stage_tap_weights<E>(p, chunk, reinterpret_cast<std::uint32_t*>(memory + kDeepTaps));
  sync_blocks<cluster>();

  if (warp < 4) {
    registers_down<40>();
    if (warp == 0 && lane == 0) {
      const int rank = cluster > 1 ? cluster_rank() : 0;
      Walk walk = walk_of(p);
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
      const Walk walk = walk_of(p);
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
    Walk walk = walk_of(p);
    const int me = warp / 4 - 1, part = warp % 4, thread = threadIdx.x % 128;
    const SharedAddress results = shared + kDeepTiles + me * kTileBytes, mine = staged(results, part, lane);
    const int channel = chunk * 64 + part * 16 + lane / 4;
    // This lane's vector of a fragment in a stage: rows of 128 bytes, swizzled by the copy engine.
    const int line = part * 4 + lane / 8;
    const SharedAddress fragments = shared + kDeepWeights + line * 128 + (lane % 8 ^ line % 8) * 16;

    std::uint32_t a[3][4][4];
    int slot = 0, parity = 0;  // of the weights' ring: the stage to be loaded next
    const auto load = [&](std::uint32_t (&to)[4][4]) {
      barrier_wait(full + 8 * slot, parity);
#pragma unroll
      for (int k = 0; k < 4; k++) load_vector(to[k], fragments + slot * kStageBytes + k * 2048);
      if (++slot == kStages) slot = 0, parity ^= 1;
    };
    // Frees the stage that was loaded last, once the products of its weights have been issued, which waits for the loads:
    // an arrival alone does not hold the copy engine's next write behind loads that are still under way.
    const auto release_stage = [&] {
      fence_proxy_async();
      sync_warp();
      if (lane == 0) barrier_arrive(empty + 8 * (slot > 0 ? slot - 1 : kStages - 1));
    };

    const auto fetch_mask = [&](int row) {  // by one thread, once the tile of results is free
      barrier_arrive_expect(masks + 8 * me, kTileBytes);
      load_box(results, p.mask, chunk * 64, walk.x, row, walk.n, masks + 8 * me);
    };

    // A row's results. At the end the tile is free for whoever writes there next.
    const auto finish = [&](float (&v)[64], const Affine& affine, const std::uint32_t (&kept)[2], int row) {
#pragma unroll
      for (int j = 0; j < 64; j++) v[j] = j & 2 ? affine.second(v[j]) : affine.first(v[j]);
      if (p.masked) {
#pragma unroll
        for (int j = 0; j < 64; j++) v[j] = kept[j / 32] >> j % 32 & 1 ? v[j] : 0.0f;
      }
      float sum[2] = {};  // of both channels, as stored; outside the picture the mask arrives as zeros
#pragma unroll
      for (int j = 0; j < 64; j += 8) {
        const std::uint32_t r[4] = {pack<E>(v[j], v[j + 1]), pack<E>(v[j + 2], v[j + 3]), pack<E>(v[j + 4], v[j + 5]),
                                    pack<E>(v[j + 6], v[j + 7])};
        store_matrices_transposed(mine + j * 256, r);
        if (p.partial) {
#pragma unroll
          for (int i = 0; i < 4; i++) {
            sum[i % 2] += widen(E{static_cast<std::uint16_t>(r[i] & 0xffff)});
            sum[i % 2] += widen(E{static_cast<std::uint16_t>(r[i] >> 16)});
          }
        }
      }
      if (p.stored) fence_proxy_async();
      sync_some(1 + me, 128);  // all is staged
      if (p.stored && thread == 0) {
        dblr::store_box(p.y, chunk * 64, walk.x, row, walk.n, results);
        store_commit();
      }
      if (p.partial) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
          sum[i] += shuffle_xor(sum[i], 1);
          sum[i] += shuffle_xor(sum[i], 2);
        }
        if (lane % 4 == 0 && row < p.h) {
          const std::int64_t line = static_cast<std::int64_t>(walk.n) * p.h + row;
          float* const to = p.partial + (line * p.strips + walk.x / kColumns) * 2 * p.chunks * 64 + channel;
          to[0] = sum[0];
          to[8] = sum[1];
        }
      }
      if (p.tap_weights) {
        contract_taps<E>(results, reinterpret_cast<const Vector16*>(memory + kDeepTaps), p, chunk, walk.n, row, walk.x,
                         part, lane);
      }
      if (p.stored && thread == 0) store_wait_read<0>();
      sync_some(1 + me, 128);  // the tile is free
    };

    int s = 0, tile = 0;  // ring row of the chunk's first; tiles so far
    for (; walk.advance();) {
      for (int i = walk.first; i < walk.first + walk.count; i++, tile++) {
        float upper[64], lower[64];  // sums of the warpgroup's two rows
#pragma unroll
        for (int j = 0; j < 64; j++) upper[j] = lower[j] = 0;
        const int y = i * kRowsOfTile + 2 * me;
        std::uint32_t kept[2][2] = {};
        if (p.masked && thread == 0) fetch_mask(y + 1);
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
              release_stage();
              if (ky * 3 + kx + 1 == kLead && from == 0 && me == 0 && lane == 0) barrier_arrive(turn);
              if (ky == 1 && kx == 0 && p.masked && from + 1 == p.chunks_in) {  // the lower row's mask to the upper's
                barrier_wait(masks + 8 * me, 0);
                kept_of<E>(mine, kept[1]);
                fence_proxy_async();
                sync_some(1 + me, 128);  // the lower row's mask is read
                if (thread == 0) fetch_mask(y);
              }
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
        if (p.masked) {
          barrier_wait(masks + 8 * me, 1);
          kept_of<E>(mine, kept[0]);
        }
        finish(upper, affine, kept[0], y);
        finish(lower, affine, kept[1], y + 1);
      }
    }
    if (p.stored && thread == 0) store_wait<0>();
  }
  if constexpr (cluster > 1) sync_blocks<cluster>();  // none leaves while another may still tell it that a row is read
#endif
}

}  // namespace sm90
}  // namespace dblr
