// The weight gradient by AMX, and how its operands are laid out. Included by k_amx.h.
#include "k_amx_tiles.h"

namespace dblr {
namespace {

constexpr Index kTileSums = 16 * 16;

// Of a tap, I x O times 16 channels in and out from `sums` on; the next tap's sums are brought near meanwhile.
template <int I, int O>
DBLR_INLINE void gradient_tap(const AmxGradient& g, const Bf16* const* x, Index x_from, Index dz_from, float* const* sums,
                              Fetches& fetches) {
  DBLR_TILES;
  const Index near = (kTileSums / 16 + g.rows * g.steps - 1) / (g.rows * g.steps);  // lines of each tile beside a step
  Index line = 0;
  fence();
  if (g.first) {
    tile_zero(0);
    if (I == 2) tile_zero(1);
    if (O == 2) tile_zero(2);
    if (I == 2 && O == 2) tile_zero(3);
  } else {
    tile_load(0, sums[0], kTileRow);
    if (I == 2) tile_load(1, sums[1], kTileRow);
    if (O == 2) tile_load(2, sums[2], kTileRow);
    if (I == 2 && O == 2) tile_load(3, sums[3], kTileRow);
  }
  for (Index row = 0; row < g.rows; row++) {
    const Bf16 *b = x[row] + x_from, *a = g.dz[row] + dz_from;
    for (Index k = 0; k < g.steps; k++, a += kTileBf16, b += kTileBf16) {
      tile_load(4, a, kTileRow);
      if (O == 2) tile_load(5, a + g.dz_tile, kTileRow);
      tile_load(6, b, kTileRow);
      if (I == 2) tile_load(7, b + g.x_tile, kTileRow);
      tile_dot(0, 4, 6);
      if (I == 2) tile_dot(1, 4, 7);
      if (O == 2) tile_dot(2, 5, 6);
      if (I == 2 && O == 2) tile_dot(3, 5, 7);
      for (const Index end = line + near; line < end; line++) {
        for (int t = 0; t < 4; t++) __builtin_prefetch(sums[t] + kTileSums + line * 16, 1);
      }
      fetches.fetch();
    }
  }
  tile_store(0, sums[0], kTileRow);
  if (I == 2) tile_store(1, sums[1], kTileRow);
  if (O == 2) tile_store(2, sums[2], kTileRow);
  if (I == 2 && O == 2) tile_store(3, sums[3], kTileRow);
  fence();
}

template <int I, int O> void gradient_tiles(const AmxGradient& g, Index in, Index out, Fetches& fetches) {
  float* sums[4];
  for (Index t = 0; t < 4; t++) {  // those that there are take all places
    const Index i = I == 2 ? in + t % 2 : in, o = O == 2 ? out + t / 2 : out;
    sums[t] = g.sums + (i * g.out_tiles + o) * AmxGradient::kTaps * kTileSums;
  }
  for (Index turn = 0; turn < AmxGradient::kTaps; turn++) {
    const Index dy = AmxGradient::kTurns[turn] / 3, dx = AmxGradient::kTurns[turn] % 3;
    const Index from = dx == 1 ? 0 : g.odd + dx / 2 * 32;  // the pairs from a pixel to the right are one on
    gradient_tap<I, O>(g, g.x + dy, in * g.x_tile + from, out * g.dz_tile, sums, fetches);
    for (float*& s : sums) s += kTileSums;
  }
}

void amx_gradient(const AmxGradient& g) {
  Fetches fetches = {g.ahead, g.ahead_end, g.lines};
  for (Index in = 0; in < g.in_tiles; in += 2) {
    for (Index out = 0; out < g.out_tiles; out += 2) {
      const bool two_in = in + 1 < g.in_tiles, two_out = out + 1 < g.out_tiles;
      if (two_in) {
        two_out ? gradient_tiles<2, 2>(g, in, out, fetches) : gradient_tiles<2, 1>(g, in, out, fetches);
      } else {
        two_out ? gradient_tiles<1, 2>(g, in, out, fetches) : gradient_tiles<1, 1>(g, in, out, fetches);
      }
    }
  }
}

#if DBLR_NATIVE == 64
// With masks that take all, for GCC 12 warns of its own definitions of the others.
DBLR_INLINE __m512i low32(__m512i a, __m512i b) { return _mm512_maskz_unpacklo_epi32(0xffff, a, b); }
DBLR_INLINE __m512i high32(__m512i a, __m512i b) { return _mm512_maskz_unpackhi_epi32(0xffff, a, b); }
DBLR_INLINE __m512i low64(__m512i a, __m512i b) { return _mm512_maskz_unpacklo_epi64(0xff, a, b); }
DBLR_INLINE __m512i high64(__m512i a, __m512i b) { return _mm512_maskz_unpackhi_epi64(0xff, a, b); }
// Of four times 128 bits each, the even ones, and the odd ones.
DBLR_INLINE __m512i even128(__m512i a, __m512i b) { return _mm512_maskz_shuffle_i32x4(0xffff, a, b, 0x88); }
DBLR_INLINE __m512i odd128(__m512i a, __m512i b) { return _mm512_maskz_shuffle_i32x4(0xffff, a, b, 0xdd); }

// Channels 0 to 15 of pixels 2 p and 2 p + 1 in pairs.
DBLR_INLINE __m512i paired(const Bf16* from, Index pixel, Index p) {
  const __m512i even = _mm512_maskz_cvtepu16_epi32(0xffff, fetch<__m256i>(from + 2 * p * pixel));
  const __m512i odd = _mm512_maskz_cvtepu16_epi32(0xffff, fetch<__m256i>(from + (2 * p + 1) * pixel));
  return _mm512_or_si512(even, _mm512_maskz_slli_epi32(0xffff, odd, 16));
}
void pair(const Bf16* from, Index pixel, Index pairs, Bf16* to) {
  for (Index p = 0; p < pairs; p++) store(to + p * 32, paired(from, pixel, p));
}
// 16 x 16 pairs are turned as words of 32 bits.
void transpose(const Bf16* from, Index pixel, Bf16* to) {
  __m512i a[16], b[16];
#pragma GCC unroll 16
  for (int p = 0; p < 16; p++) a[p] = paired(from, pixel, p);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = low32(a[i], a[i + 1]);
    b[i + 1] = high32(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    a[i] = low64(b[i], b[i + 2]);
    a[i + 1] = high64(b[i], b[i + 2]);
    a[i + 2] = low64(b[i + 1], b[i + 3]);
    a[i + 3] = high64(b[i + 1], b[i + 3]);
  }
  // a[4 q + c] holds, of pairs 4 q to 4 q + 3, channels c, c + 4, c + 8, c + 12.
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    const __m512i even0 = even128(a[c], a[4 + c]), odd0 = odd128(a[c], a[4 + c]);
    const __m512i even1 = even128(a[8 + c], a[12 + c]), odd1 = odd128(a[8 + c], a[12 + c]);
    store(to + c * 32, even128(even0, even1));
    store(to + (c + 4) * 32, even128(odd0, odd1));
    store(to + (c + 8) * 32, odd128(even0, even1));
    store(to + (c + 12) * 32, odd128(odd0, odd1));
  }
}
#else
void pair(const Bf16* from, Index pixel, Index pairs, Bf16* to) {
  for (Index x = 0; x < 2 * pairs; x++) {
    for (Index c = 0; c < 16; c++) to[(x / 2 * 16 + c) * 2 + x % 2] = from[x * pixel + c];
  }
}
void transpose(const Bf16* from, Index pixel, Bf16* to) {
  for (Index x = 0; x < 32; x++) {
    for (Index c = 0; c < 16; c++) to[c * 32 + x] = from[x * pixel + c];
  }
}
#endif

}  // namespace
}  // namespace dblr
