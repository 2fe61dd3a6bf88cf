// Convolutions in bf16 by AMX, and the table of all that is done by it. Included by the bf16_amx files alone.
#include "k_amx_gradient.h"

namespace dblr {
namespace {

constexpr int kMasked = 3;  // instead of a number of maps

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

constexpr AmxKernels kAmxKernels = {amx_begin,    amx_end,      amx_products, amx_sums,  narrow_row,
                                    split_pixels, amx_gradient, pair,         transpose, map_kernels<float, Bf16>()};

}  // namespace
}  // namespace dblr
