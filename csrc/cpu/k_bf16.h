// Winograd's products in bf16: two input channels, or two tiles, at a time, sums in float.
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

template <int P, int V>
DBLR_INLINE void multiply_add_bf16(const Bf16* in, Index step, const Bf16* w, Vec<float> (&sum)[P][V]) {
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

// As multiply_tiles(), but long sums too go in one.
template <int P, int V, bool early>
void multiply_tiles_bf16(const Bf16* in, Index tile, Index depth, const Bf16* w, float* out, Index out_tile,
                         const Fetch& wanted) {
  constexpr int L = kLanes<float>;
  Fetch soon = wanted;
  Vec<float> sum[P][V];
#pragma GCC unroll 16
  for (int p = 0; p < P; p++) {
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) sum[p][v] = broadcast(0.0f);
  }
#pragma GCC unroll 4
  for (Index k = 0; k < depth; k += 2, w += 2 * V * L) {
    if (early) soon.step();
    multiply_add_bf16<P, V>(in + k, tile, w, sum);
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; p++) {
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) store(out + p * out_tile + v * L, sum[p][v]);
  }
}

using MultiplyTilesBf16 = void (*)(const Bf16*, Index, Index, const Bf16*, float*, Index, const Fetch&);
template <int V, bool early, int... P> struct Bf16Table {
  static constexpr MultiplyTilesBf16 of[] = {nullptr, multiply_tiles_bf16<P, V, early>...};
};
template <int V, bool early> using Bf16By = Bf16Table<V, early, DBLR_SIZES>;

void winograd_product_bf16(const WinogradProduct<float, Bf16>& a) {
  constexpr int L = kLanes<float>, kMost = DBLR_PIXELS;
  const Index groups = (a.tiles + kMost - 1) / kMost, least = a.tiles / groups, rest = a.tiles % groups;
  Fetches fetches = {a.ahead, a.ahead_end, a.depth / 2};
  for (Index position = 0; position < a.positions; position++) {
    const Bf16* const in = a.in + position * a.in_position;
    float* const out = a.out + position * a.out_position;
    for (Index c = 0, b = 0; c < a.channels; c += 2 * L, b++) {
      const bool two = a.channels - c > L;
      const MultiplyTilesBf16* const fetching = two ? Bf16By<2, true>::of : Bf16By<1, true>::of;
      const MultiplyTilesBf16* const plain = two ? Bf16By<2, false>::of : Bf16By<1, false>::of;
      const Bf16* const w = a.weights + position * a.weights_position + b * a.block;
      for (Index g = 0, tile = 0; g < groups; g++) {
        const Index tiles = least + (g < rest);
        float* const to = out + tile * a.channels + c;
        const MultiplyTilesBf16* const by = fetches.left() ? fetching : plain;
        const Fetch soon = fetches.next(w, to);
        by[tiles](in + tile * a.depth, a.depth, a.depth, w, to, a.channels, soon);
        tile += tiles;
      }
    }
  }
}

// P input channels x V vectors of output channels in registers over the pairs of tiles of a block.
template <int P, int V>
void add_outer_products_bf16(const Bf16* in, Index in_pair, const Bf16* dz, Index dz_pair, Index pairs, float* out,
                             Index out_row, bool first, const Fetch& wanted) {
  constexpr int L = kLanes<float>;
  Fetch soon = wanted;
  Vec<float> sum[P][V];
#pragma GCC unroll 16
  for (int p = 0; p < P; p++) {
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) sum[p][v] = broadcast(0.0f);
  }
#pragma GCC unroll 4
  for (Index t = 0; t < pairs; t++) {
    soon.step();
    multiply_add_bf16<P, V>(in + t * in_pair, 2, dz + t * dz_pair, sum);
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; p++) {
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
      float* const total = out + p * out_row + v * L;
      store(total, first ? sum[p][v] : fetch<Vec<float>>(total) + sum[p][v]);
    }
  }
}

using OuterProductsBf16 = void (*)(const Bf16*, Index, const Bf16*, Index, Index, float*, Index, bool, const Fetch&);
template <int V, int... P> struct OuterTableBf16 {
  static constexpr OuterProductsBf16 of[] = {nullptr, add_outer_products_bf16<P, V>...};
};
template <int V> using OuterByBf16 = OuterTableBf16<V, DBLR_SIZES>;

void winograd_gradient_bf16(const WinogradGradient<float, Bf16>& a) {
  constexpr int L = kLanes<float>;
  const Index groups = (a.in_channels + DBLR_PIXELS - 1) / DBLR_PIXELS, pairs = (a.tiles + 1) / 2;
  const Index least = a.in_channels / groups, rest = a.in_channels % groups;
  Fetches fetches = {a.ahead, a.ahead_end, pairs};
  for (Index position = 0; position < a.positions; position++) {
    const Bf16* const in = a.in + position * a.in_position;
    const Bf16* const dz = a.dz + position * a.dz_position;
    float* const out = a.out + position * a.in_channels * a.out_channels;
    for (Index c = 0; c < a.out_channels; c += 2 * L) {
      const OuterProductsBf16* by = a.out_channels - c > L ? OuterByBf16<2>::of : OuterByBf16<1>::of;
      for (Index g = 0, i = 0; g < groups; g++) {
        const Index channels = least + (g < rest);
        float* const to = out + i * a.out_channels + c;
        const Fetch soon = fetches.next(dz + 2 * c, to);
        by[channels](in + 2 * i, 2 * a.in_channels, dz + 2 * c, 2 * a.out_channels, pairs, to, a.out_channels, a.first,
                     soon);
        i += channels;
      }
    }
  }
}

template <class From, class To> void convert(const Converted<From, To>& a) {
  constexpr int L = kLanes<float>;
  for (Index y = 0; y < a.rows; y++) {
    for (Index x = 0; x < a.cols; x++) {
      const From* const from = a.from.data + y * a.from.row + x * a.from.pixel;
      To* const to = a.to.data + y * a.to.row + x * a.to.pixel;
      Index c = 0;
      for (; c + L <= a.channels; c += L) keep(to + c, load(from + c));
      for (; c < a.channels; c++) put(to + c, number(from[c]));
    }
  }
}

constexpr Bf16Kernels kBf16Kernels = {winograd<float, Bf16, 4>(),
                                      winograd<float, Bf16, 6>(),
                                      winograd_input<float, Bf16, Bf16, 4, Singly<float, Bf16>>,
                                      winograd_input<float, Bf16, float, 4, Singly<float, Bf16>>,
                                      winograd_product_bf16,
                                      winograd_input<float, Bf16, Bf16, 4, InPairs>,
                                      winograd_dz<float, Bf16, Bf16, 4, InPairs>,
                                      winograd_gradient_bf16,
                                      map_kernels<float, Bf16>(),
                                      convert<Bf16, float>,
                                      convert<float, Bf16>};

}  // namespace
}  // namespace dblr
