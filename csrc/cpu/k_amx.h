// Convolutions in bf16 by AMX: products of matrices of 16 pixels x 32 channels with matrices of 32 channels x 16 output
// channels, in tile registers of 16 rows of 64 bytes. Included by the bf16_amx files alone.
namespace dblr {
namespace {

#if defined(__AMX_BF16__)
// Names of registers must be literal, hence macros. The compiler is not told that a load reads memory: see `fence`.
#define DBLR_TILES
#define tile_zero(t) _tile_zero(t)
#define tile_load(t, p, bytes) _tile_loadd(t, p, bytes)
#define tile_store(t, p, bytes) _tile_stored(t, p, bytes)
#define tile_dot(t, a, b) _tile_dpbf16ps(t, a, b)
DBLR_INLINE void fence() { __asm__ volatile("" ::: "memory"); }

void amx_begin() {
  struct {
    std::uint8_t palette = 1, start = 0, unused[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  fence();
  _tile_loadconfig(&config);
}
void amx_end() { _tile_release(); }
#else
// A model of the instructions, for tests where there is no AMX.
struct TileModel {
  std::uint32_t words[16][16];
};
DBLR_INLINE float float_of(std::uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
inline void load_model(TileModel& t, const void* p, Index bytes) {
  for (int r = 0; r < 16; r++) __builtin_memcpy(t.words[r], static_cast<const char*>(p) + r * bytes, 64);
}
inline void store_model(const TileModel& t, void* p, Index bytes) {
  for (int r = 0; r < 16; r++) __builtin_memcpy(static_cast<char*>(p) + r * bytes, t.words[r], 64);
}
inline void dot_model(TileModel& sum, const TileModel& a, const TileModel& b) {
  for (int m = 0; m < 16; m++) {
    float row[16];
    __builtin_memcpy(row, sum.words[m], sizeof row);
    for (int k = 0; k < 16; k++) {
      const float even = float_of(a.words[m][k] << 16), odd = float_of(a.words[m][k] & 0xffff0000u);
      for (int n = 0; n < 16; n++) row[n] += even * float_of(b.words[k][n] << 16);
      for (int n = 0; n < 16; n++) row[n] += odd * float_of(b.words[k][n] & 0xffff0000u);
    }
    __builtin_memcpy(sum.words[m], row, sizeof row);
  }
}
#define DBLR_TILES TileModel tiles[8]
#define tile_zero(t) tiles[t] = TileModel{}
#define tile_load(t, p, bytes) load_model(tiles[t], p, bytes)
#define tile_store(t, p, bytes) store_model(tiles[t], p, bytes)
#define tile_dot(t, a, b) dot_model(tiles[t], tiles[a], tiles[b])
DBLR_INLINE void fence() {}
void amx_begin() {}
void amx_end() {}
#endif

constexpr Index kTileRow = 64;        // bytes
constexpr Index kTileBf16 = 16 * 32;  // a tile of weights, in elements

constexpr int kMasked = 3;  // instead of a number of maps

// What follows the sums of one pixel, all its channels; A: how many maps are added, or kMasked.
template <int A> DBLR_INLINE void finish_pixel(const AmxProduct& p, const float* sums, Index pixel) {
  constexpr int kMaps = A == kMasked ? 1 : A;
  const Index r = pixel / 16, x = pixel % 16;
  if (x >= p.cols) return;
  Bf16* const out = p.out[r] + x * p.out_pixel;
  const Bf16* maps[2] = {out, out};  // those that there are take these places
  for (int i = 0; i < kMaps; i++) {
    maps[i] = A == kMasked ? p.mask[r] + x * p.mask_pixel : p.add[i][r] + x * p.add_pixel[i];
  }
  const Vec<float> least = broadcast(p.least);
  const auto finish = [&](Index c, const Bf16* first, const Bf16* second, Bf16* to) {
    Vec<float> v = larger(load(sums + AmxProduct::at(r, x, c)) + load(p.bias + c), least);
    if (A == kMasked) v = gate(load(first), v);
    if (A == 1 || A == 2) v = v + load(first);
    if (A == 2) v = v + load(second);
    keep(to, v);
  };
  Index c = 0;
  for (; c + kLanes<float> <= p.channels; c += kLanes<float>) finish(c, maps[0] + c, maps[1] + c, out + c);
  if (c == p.channels) return;
  const Index left = p.channels - c;
  Bf16 rest[3][kLanes<float>] = {};
  for (int i = 0; i < kMaps; i++) __builtin_memcpy(rest[i], maps[i] + c, left * sizeof(Bf16));
  finish(c, rest[0], rest[1], rest[2]);
  __builtin_memcpy(out + c, rest[2], left * sizeof(Bf16));
}

// The sums of `now`, and between its products, which leave the vector units idle, what is to be done with those of
// `before`, which is another 16 pixels of the same map.
template <int R, int A>
void multiply_amx(const AmxProduct& now, float* sums, const AmxProduct& before, const float* sums_before,
                  Index pixels) {
  DBLR_TILES;
  const Index bytes = now.pixel * static_cast<Index>(sizeof(Bf16));
  const Index steps = now.kernel_rows * now.steps, each = (pixels + steps - 1) / steps;
  const Bf16* w = now.weights;
  Index done = 0;
  fence();
  tile_zero(0);
  tile_zero(1);
  if (R == 2) {
    tile_zero(2);
    tile_zero(3);
  }
  for (Index dy = 0; dy < now.kernel_rows; dy++) {
    const Bf16 *a = now.rows[dy], *below = now.rows[dy + R - 1];
    for (Index k = 0; k < now.steps; k++, a += 32, below += 32, w += 2 * kTileBf16) {
      tile_load(4, a, bytes);
      if (R == 2) tile_load(5, below, bytes);
      tile_load(6, w, kTileRow);
      tile_load(7, w + kTileBf16, kTileRow);
      tile_dot(0, 4, 6);
      tile_dot(1, 4, 7);
      if (R == 2) {
        tile_dot(2, 5, 6);
        tile_dot(3, 5, 7);
      }
      for (const Index end = done + each < pixels ? done + each : pixels; done < end; done++) {
        finish_pixel<A>(before, sums_before, done);
      }
    }
  }
  tile_store(0, sums, kTileRow);
  tile_store(1, sums + AmxProduct::at(0, 0, 16), kTileRow);
  if (R == 2) {
    tile_store(2, sums + AmxProduct::at(1, 0, 0), kTileRow);
    tile_store(3, sums + AmxProduct::at(1, 0, 16), kTileRow);
  }
}

template <int A>
void product_with(const AmxProduct* now, float* sums, const AmxProduct* before, const float* sums_before) {
  const Index pixels = before ? before->out_rows * 16 : 0;
  if (now) {
    const AmxProduct& last = before ? *before : *now;
    now->out_rows == 2 ? multiply_amx<2, A>(*now, sums, last, sums_before, pixels)
                       : multiply_amx<1, A>(*now, sums, last, sums_before, pixels);
  } else {
    for (Index pixel = 0; pixel < pixels; pixel++) finish_pixel<A>(*before, sums_before, pixel);
  }
}

void amx_product(const AmxProduct* now, float* sums, const AmxProduct* before, const float* sums_before) {
  if (before && before->mask[0]) return product_with<kMasked>(now, sums, before, sums_before);
  if (!before || !before->add[0][0]) return product_with<0>(now, sums, before, sums_before);
  before->add[1][0] ? product_with<2>(now, sums, before, sums_before)
                    : product_with<1>(now, sums, before, sums_before);
}

void narrow_row(const float* from, Bf16* to, Index count) {
  Index i = 0;
  for (; i + kLanes<float> <= count; i += kLanes<float>) keep(to + i, load(from + i));
  if (i == count) return;
  Bf16 rest[kLanes<float>];
  keep(rest, fetch_lanes(from + i, count - i));
  for (Index j = 0; i < count; i++, j++) to[i] = rest[j];
}

// I, O: times 16 channels in and out.
template <int I, int O> void gradient_tiles(const AmxGradient& g) {
  DBLR_TILES;
  const Index bytes = g.x_channel * static_cast<Index>(sizeof(Bf16));
  fence();
  tile_load(0, g.sums[0][0], kTileRow);
  if (O == 2) tile_load(1, g.sums[0][1], kTileRow);
  if (I == 2) tile_load(2, g.sums[1][0], kTileRow);
  if (I == 2 && O == 2) tile_load(3, g.sums[1][1], kTileRow);
  for (Index row = 0; row < g.rows; row++) {
    const Bf16 *x = g.x[row], *dz = g.dz[row];
    for (Index k = 0; k < g.steps; k++, x += 32, dz += kTileBf16) {
      tile_load(4, x, bytes);
      if (I == 2) tile_load(5, x + 16 * g.x_channel, bytes);
      tile_load(6, dz, kTileRow);
      if (O == 2) tile_load(7, dz + g.dz_tile, kTileRow);
      tile_dot(0, 4, 6);
      if (O == 2) tile_dot(1, 4, 7);
      if (I == 2) tile_dot(2, 5, 6);
      if (I == 2 && O == 2) tile_dot(3, 5, 7);
    }
  }
  tile_store(0, g.sums[0][0], kTileRow);
  if (O == 2) tile_store(1, g.sums[0][1], kTileRow);
  if (I == 2) tile_store(2, g.sums[1][0], kTileRow);
  if (I == 2 && O == 2) tile_store(3, g.sums[1][1], kTileRow);
  fence();
}

void amx_gradient(const AmxGradient& g) {
  if (g.two_in) return g.two_out ? gradient_tiles<2, 2>(g) : gradient_tiles<2, 1>(g);
  g.two_out ? gradient_tiles<1, 2>(g) : gradient_tiles<1, 1>(g);
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
void pair(const Bf16* from, Index pixel, Bf16* to) {
  for (Index p = 0; p < 16; p++) store(to + p * 32, paired(from, pixel, p));
}
// 16 x 16 pairs are turned as words of 32 bits.
void transpose(const Bf16* from, Index pixel, Bf16* to, Index stride) {
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
    store(to + c * stride, even128(even0, even1));
    store(to + (c + 4) * stride, even128(odd0, odd1));
    store(to + (c + 8) * stride, odd128(even0, even1));
    store(to + (c + 12) * stride, odd128(odd0, odd1));
  }
}
#else
void pair(const Bf16* from, Index pixel, Bf16* to) {
  for (Index x = 0; x < 32; x++) {
    for (Index c = 0; c < 16; c++) to[(x / 2 * 16 + c) * 2 + x % 2] = from[x * pixel + c];
  }
}
void transpose(const Bf16* from, Index pixel, Bf16* to, Index stride) {
  for (Index x = 0; x < 32; x++) {
    for (Index c = 0; c < 16; c++) to[c * stride + x] = from[x * pixel + c];
  }
}
#endif

constexpr AmxKernels kAmxKernels = {amx_begin, amx_end, amx_product, narrow_row, amx_gradient, pair, transpose,
                                    map_kernels<float, Bf16>()};

}  // namespace
}  // namespace dblr
