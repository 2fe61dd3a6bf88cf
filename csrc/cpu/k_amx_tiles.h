// The matrix unit: tile registers of 16 rows of 64 bytes. A product takes 16 pixels x 32 channels and 32 channels x 16
// output channels in bf16, with sums in float. Included by k_amx.h and k_amx_gradient.h.
#pragma once

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

}  // namespace
}  // namespace dblr
