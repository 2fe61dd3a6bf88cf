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

// Deals out what is wanted ahead, so many lines a call.
struct Fetches {
  const Ahead *at, *end;
  Index lines, done = 0;
  DBLR_INLINE void fetch() {
    if (at == end) return;
    const char* const from = at->data + done * at->stride;
    if (at->write) {
      for (Index i = 0; i < lines; i++) __builtin_prefetch(from + i * at->stride, 1);
    } else {
      for (Index i = 0; i < lines; i++) __builtin_prefetch(from + i * at->stride, 0, 2);
    }
    done += lines;
    if (done >= at->lines) at++, done = 0;
  }
};

// 16 pixels a row of a product, from pixel x on.
struct Part {
  const AmxProduct* product;
  Index x;
};

// A float as bf16 and what that leaves of it.
DBLR_INLINE Vec<float> load_split(const Bf16* p, Index low) { return load(p) + load(p + low); }
DBLR_INLINE void keep_split(Bf16* p, Index low, const Vec<float>& v) {
#if defined(__AVX512BF16__)  // not by way of memory
  const __m256i high = (__m256i)_mm512_cvtneps_pbh(v);
  store(p, high);
  keep(p + low, v - _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, high), 16)));
#else
  keep(p, v);
  keep(p + low, v - load(p));
#endif
}

// What follows the sums of a part, pixel by pixel. A: how many maps are added, or kMasked. It shares the processor's
// window with products that wait for their operands, so every instruction counts here.
template <int A, bool split> class Finish {
 public:
  DBLR_INLINE bool left() const { return rows_ != 0; }

  DBLR_INLINE void begin(const Part& part, const float* sums) {
    part_ = part;
    const AmxProduct& p = *part.product;
    const Index cols = p.pixels - part.x;
    cols_ = cols < AmxProduct::kPixels ? cols : AmxProduct::kPixels;
    whole_ = p.channels == 2 * kLanes<float>;
    rows_ = p.out_rows;
    least_ = broadcast(p.least);
    low_ = p.out_low;
    for (Index half = 0; half < 2; half++) bias_[half] = fetch<Vec<float>>(p.bias + half * 16);
    begin_row(0, sums);
  }

  DBLR_INLINE void pixel() {
    if (whole_) {
      for (Index half = 0; half < 2; half++) {
        const Index c = half * 16;
        const float* const sums = sums_ + AmxProduct::at(0, 0, c);
        const Vec<float> v = finished(sums, bias_[half], least_, maps_[0] + c, maps_[1] + c, low_);
        split ? keep_split(out_ + c, low_, v) : keep(out_ + c, v);
      }
    } else {
      pixel_of_fewer(*part_.product, sums_, maps_[0], maps_[1], out_);
    }
    const AmxProduct& p = *part_.product;
    sums_ += 16;
    out_ += p.out_pixel;
    for (int m = 0; m < kMaps; m++) maps_[m] += A == kMasked ? p.mask_pixel : p.add_pixel[m];
    if (--columns_left_ == 0 && --rows_ != 0) begin_row(1, sums_ - cols_ * 16 + AmxProduct::at(1, 0, 0));
  }

 private:
  static constexpr int kMaps = A == kMasked ? 1 : A;

  DBLR_INLINE void begin_row(Index r, const float* sums) {
    const AmxProduct& p = *part_.product;
    sums_ = sums;
    columns_left_ = cols_;
    out_ = p.out[r] + part_.x * p.out_pixel;
    maps_[0] = maps_[1] = out_;  // those that there are take these places
    for (int m = 0; m < kMaps; m++) {
      maps_[m] = A == kMasked ? p.mask[r] + part_.x * p.mask_pixel : p.add[m][r] + part_.x * p.add_pixel[m];
    }
  }

  static DBLR_INLINE Vec<float> finished(const float* sums, Vec<float> bias, Vec<float> least, const Bf16* first,
                                         const Bf16* second, Index low) {
    Vec<float> v = larger(fetch<Vec<float>>(sums) + bias, least);
    if (A == kMasked) v = gate(load(first), v);
    if (A == 1 || A == 2) v = v + (split ? load_split(first, low) : load(first));
    if (A == 2) v = v + (split ? load_split(second, low) : load(second));
    return v;
  }

  // Where there are not 32 channels, which is in maps that are not split. Apart, for then all else stays in registers.
  __attribute__((noinline)) static void pixel_of_fewer(const AmxProduct& p, const float* sums, const Bf16* first,
                                                       const Bf16* second, Bf16* out) {
    for (Index c = 0; c < p.channels; c += 16) {
      const Index count = p.channels - c < 16 ? p.channels - c : 16;
      Bf16 padded[3][16] = {};
      if (kMaps > 0) __builtin_memcpy(padded[0], first + c, count * sizeof(Bf16));
      if (kMaps > 1) __builtin_memcpy(padded[1], second + c, count * sizeof(Bf16));
      keep(padded[2], finished(sums + AmxProduct::at(0, 0, c), fetch<Vec<float>>(p.bias + c), broadcast(p.least),
                               padded[0], padded[1], 0));
      __builtin_memcpy(out + c, padded[2], count * sizeof(Bf16));
    }
  }

  Part part_;
  Vec<float> bias_[2], least_;
  const float* sums_;
  Bf16* out_;
  const Bf16* maps_[2];
  Index cols_, columns_left_ = 0, rows_ = 0, low_ = 0;
  bool whole_ = false;
};

// The sums of a part, and between its products, which leave the vector units idle: beside().
template <int R, bool split, class Beside>
DBLR_INLINE void multiply_amx(const Part& now, float* sums, const Beside& beside) {
  DBLR_TILES;
#define load_rows(from)                                  \
  tile_load(4, a + (from), bytes);                       \
  if (R == 2) tile_load(5, below + (from), bytes)
#define load_weights(from)                               \
  tile_load(6, w + (from) * kTileBf16, kTileRow);        \
  tile_load(7, w + ((from) + 1) * kTileBf16, kTileRow)
#define multiply()                                       \
  tile_dot(0, 4, 6);                                     \
  tile_dot(1, 4, 7);                                     \
  if (R == 2) {                                          \
    tile_dot(2, 5, 6);                                   \
    tile_dot(3, 5, 7);                                   \
  }
  const AmxProduct& p = *now.product;
  const Index bytes = p.pixel * static_cast<Index>(sizeof(Bf16)), each = split ? 4 * kTileBf16 : 2 * kTileBf16;
  const Bf16* w = p.weights;
  fence();
  tile_zero(0);
  tile_zero(1);
  if (R == 2) {
    tile_zero(2);
    tile_zero(3);
  }
  for (Index dy = 0; dy < p.kernel_rows; dy++) {
    const Bf16 *a = p.rows[dy] + now.x * p.pixel, *below = p.rows[dy + R - 1] + now.x * p.pixel;
    for (Index k = 0, channel = 0; k < p.steps; k++, a += 32, below += 32, w += each) {
      load_rows(0);
      load_weights(0);
      multiply();
      if (split) {
        load_weights(2);
        multiply();
        load_rows(p.low);
        multiply();
        if ((channel += 32) == p.low) channel = 0, a += p.low, below += p.low;
      }
      beside();
    }
  }
#undef load_rows
#undef load_weights
#undef multiply
  tile_store(0, sums, kTileRow);
  tile_store(1, sums + AmxProduct::at(0, 0, 16), kTileRow);
  if (R == 2) {
    tile_store(2, sums + AmxProduct::at(1, 0, 0), kTileRow);
    tile_store(3, sums + AmxProduct::at(1, 0, 16), kTileRow);
  }
}

template <bool split, class Beside>
DBLR_INLINE void multiply_part(const Part& now, float* sums, const Beside& beside) {
  now.product->out_rows == 2 ? multiply_amx<2, split>(now, sums, beside) : multiply_amx<1, split>(now, sums, beside);
}

// Each part is finished while the next one's products are made.
template <int A, bool split> void products_with(const AmxProducts& all) {
  alignas(kTileRow) float sums[2][AmxProduct::kSums];
  Fetches fetches = {all.ahead, all.ahead_end, all.lines};
  Finish<A, split> before;
  int turn = 0;
  for (const AmxProduct* p = all.first; p != all.last; p++) {
    const Index steps = p->kernel_rows * p->steps, each = (p->out_rows * AmxProduct::kPixels + steps - 1) / steps;
    for (Index x = 0; x < p->pixels; x += AmxProduct::kPixels, turn = 1 - turn) {
      multiply_part<split>({p, x}, sums[turn], [&] {
        for (Index i = 0; i < each && before.left(); i++) before.pixel();
        fetches.fetch();
      });
      while (before.left()) before.pixel();
      before.begin({p, x}, sums[turn]);
    }
  }
  while (before.left()) before.pixel();
}

template <bool split> void products_of(const AmxProducts& all) {
  if (all.first->mask[0]) return products_with<kMasked, split>(all);
  if (!all.first->add[0][0]) return products_with<0, split>(all);
  all.first->add[1][0] ? products_with<2, split>(all) : products_with<1, split>(all);
}

void amx_products(const AmxProducts& all) {
  if (all.first == all.last) return;
  all.first->low ? products_of<true>(all) : products_of<false>(all);
}

void amx_sums(const AmxProduct& p, float* sums) {
  p.low ? multiply_part<true>({&p, 0}, sums, [] {}) : multiply_part<false>({&p, 0}, sums, [] {});
}

void split_pixels(const float* from, Index pixels, Index channels, Bf16* to, Index low) {
  for (Index i = 0; i < pixels; i++, from += channels, to += 2 * low) {
    for (Index c = 0; c < low; c += kLanes<float>) {
      const Index left = channels - c;
      keep_split(to + c, low, left > 0 ? fetch_lanes(from + c, left) : broadcast(0.0f));
    }
  }
}

void narrow_row(const float* from, Bf16* to, Index count) {
  Index i = 0;
  for (; i + kLanes<float> <= count; i += kLanes<float>) keep(to + i, load(from + i));
  if (i == count) return;
  Bf16 rest[kLanes<float>];
  keep(rest, fetch_lanes(from + i, count - i));
  for (Index j = 0; i < count; i++, j++) to[i] = rest[j];
}

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
    const Index dy = AmxGradient::tap(turn) / 3, dx = AmxGradient::tap(turn) % 3;
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

constexpr AmxKernels kAmxKernels = {amx_begin, amx_end, amx_products, amx_sums, narrow_row, split_pixels, amx_gradient, pair, transpose,
                                    map_kernels<float, Bf16>()};

}  // namespace
}  // namespace dblr
