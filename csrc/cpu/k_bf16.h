// Winograd's products in bf16: two input channels at a time, sums in float.
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
#endif

template <int P, int V>
void multiply_tiles_bf16(const Bf16* in, Index tile, Index depth, const Bf16* w, float* out, Index out_tile) {
  constexpr int L = kLanes<float>;
  Vec<float> sum[P][V];
#pragma GCC unroll 16
  for (int p = 0; p < P; p++) {
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) sum[p][v] = broadcast(0.0f);
  }
#pragma GCC unroll 4
  for (Index k = 0; k < depth; k += 2, w += 2 * V * L) {
    Pairs weight[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) weight[v] = pairs(w + v * 2 * L);
#pragma GCC unroll 16
    for (int p = 0; p < P; p++) {
      const Pairs value = one_pair(in + p * tile + k);
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) sum[p][v] = dot(value, weight[v], sum[p][v]);
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; p++) {
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) store(out + p * out_tile + v * L, sum[p][v]);
  }
}

template <int V, int... P> struct Bf16Table {
  static constexpr void (*of[])(const Bf16*, Index, Index, const Bf16*, float*, Index) = {nullptr,
                                                                                         multiply_tiles_bf16<P, V>...};
};
template <int V> using Bf16By = Bf16Table<V, DBLR_SIZES>;

void winograd_product_bf16(const WinogradProduct<float, Bf16>& a) {
  constexpr int L = kLanes<float>, kMost = DBLR_PIXELS;
  const Index groups = (a.tiles + kMost - 1) / kMost, least = a.tiles / groups, rest = a.tiles % groups;
  for (Index position = 0; position < a.positions; position++) {
    const Bf16* const in = a.in + position * a.in_position;
    float* const out = a.out + position * a.out_position;
    for (Index c = 0, b = 0; c < a.channels; c += 2 * L, b++) {
      const auto* by = a.channels - c > L ? Bf16By<2>::of : Bf16By<1>::of;
      const Bf16* const w = a.weights + position * a.weights_position + b * a.block;
      for (Index g = 0, tile = 0; g < groups; g++) {
        const Index tiles = least + (g < rest);
        by[tiles](in + tile * a.depth, a.depth, a.depth, w, out + tile * a.channels + c, a.channels);
        tile += tiles;
      }
    }
  }
}

constexpr Bf16Kernels kBf16Kernels = {kLanes<float>, winograd_input<float, Bf16, Bf16, 4>,
                                      winograd_input<float, Bf16, float, 4>, winograd_product_bf16,
                                      winograd_output<float, Bf16, 4>};

}  // namespace
}  // namespace dblr
