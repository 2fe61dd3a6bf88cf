// Numbers in bf16 that are multiplied in pairs: two input channels, or two tiles, at a time, sums in float.
namespace dblr {
namespace {

// sum + a[0] * b[0] + a[1] * b[1] in each lane; a: one pair for all lanes, b: a pair a lane.
#if defined(__AVX512BF16__)
typedef __m512bh Pairs;
DBLR_INLINE Pairs one_pair(const Bf16* p) {
  int pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
}
DBLR_INLINE Pairs pairs(const Bf16* p) { return fetch<Pairs>(p); }
DBLR_INLINE Vec<float> dot(Pairs a, Pairs b, Vec<float> sum) { return _mm512_dpbf16_ps(sum, a, b); }
// Pairs of a number from each.
DBLR_INLINE void keep_pairs(Bf16* p, const Vec<float>& first, const Vec<float>& second) {
  alignas(64) static constexpr std::uint16_t kTurns[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
  store(p, _mm512_permutexvar_epi16(_mm512_load_si512(kTurns), both));
}
#else
struct Pairs {
  NativeBits part[DBLR_BYTES / DBLR_NATIVE];
};
DBLR_INLINE Pairs one_pair(const Bf16* p) {
  std::uint32_t pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  Pairs all;
  for (NativeBits& part : all.part) part = pair - NativeBits{};
  return all;
}
DBLR_INLINE Pairs pairs(const Bf16* p) { return fetch<Pairs>(p); }
DBLR_INLINE Vec<float> dot(const Pairs& a, const Pairs& b, Vec<float> sum) {
  using Native = typename NativeOf<float>::type;
  const auto upper = [](NativeBits bits) { return bits & 0xffff0000u; };
  for (int i = 0; i < DBLR_BYTES / DBLR_NATIVE; i++) {
    const NativeBits a1 = upper(a.part[i]), b1 = upper(b.part[i]), a0 = a.part[i] << 16, b0 = b.part[i] << 16;
    sum.part[i] = fma(fetch<Native>(&a1), fetch<Native>(&b1), sum.part[i]);
    sum.part[i] = fma(fetch<Native>(&a0), fetch<Native>(&b0), sum.part[i]);
  }
  return sum;
}
DBLR_INLINE void keep_pairs(Bf16* p, const Vec<float>& first, const Vec<float>& second) {
  const auto narrowed = [](const typename NativeOf<float>::type& v) {
    const NativeBits bits = fetch<NativeBits>(&v), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return v == v ? rounded : bits >> 16 | 0x40;
  };
  for (int i = 0; i < DBLR_BYTES / DBLR_NATIVE; i++) {
    store(p + i * (DBLR_NATIVE / 2), narrowed(second.part[i]) << 16 | narrowed(first.part[i]));
  }
}
#endif

// Transforms of two tiles, position by position, as [tile / 2][channel][tile % 2].
struct InPairs {
  static constexpr int kTiles = 2;
  template <class S>
  DBLR_INLINE InPairs(const WinogradInput<Bf16, S>& a, Index tile, Index c)
      : to(a.out + (a.first + tile) * a.channels + 2 * c), position(a.position) {}
  template <int N> DBLR_INLINE void operator()(const Vec<float> (&v)[2][N], int x) {
    keep_pairs(to, v[0][x], v[1][x]);
    to += position;
  }
  Bf16* to;
  Index position;
};

// As that of k_multiply.h, a pair at a time; T is float.
template <class T, int P, int V>
DBLR_INLINE void multiply_add(const Bf16* in, Index step, const Bf16* w, Vec<T> (&sum)[P][V]) {
  Pairs weight[V];
#pragma GCC unroll 2
  for (int v = 0; v < V; v++) weight[v] = pairs(w + v * 2 * kLanes<float>);
#pragma GCC unroll 16
  for (int p = 0; p < P; p++) {
    const Pairs value = one_pair(in + p * step);
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) sum[p][v] = dot(value, weight[v], sum[p][v]);
  }
}

}  // namespace
}  // namespace dblr
