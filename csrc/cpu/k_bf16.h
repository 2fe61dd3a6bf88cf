// Winograd's products in bf16, and what else maps in bf16 need.
namespace dblr {
namespace {

// As multiply_tiles(), but long sums too go in one.
template <Index Known, int P, int V, bool early>
void multiply_tiles_bf16(const Bf16* in, Index given_depth, const Bf16* w, float* out, Index channels,
                         const Fetch& wanted) {
  const Index depth = Known ? Known : given_depth, out_tile = Known ? kChannelsKnown : channels;
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
    multiply_add<float, P, V>(in + k, depth, w, sum);
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; p++) {
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) store(out + p * out_tile + v * L, sum[p][v]);
  }
}

using MultiplyTilesBf16 = void (*)(const Bf16*, Index, const Bf16*, float*, Index, const Fetch&);
template <Index Known, int V, bool early, int... P> struct Bf16Table {
  static constexpr MultiplyTilesBf16 of[] = {nullptr, multiply_tiles_bf16<Known, P, V, early>...};
};
template <Index Known, bool early> const MultiplyTilesBf16* bf16_by(bool two) {
  constexpr int kLeast = Known ? 2 : 1;
  return two ? Bf16Table<Known, 2, early, DBLR_SIZES>::of : Bf16Table<Known, kLeast, early, DBLR_SIZES>::of;
}

template <Index Known> void winograd_product_bf16_of(const WinogradProduct<float, Bf16>& a) {
  constexpr int L = kLanes<float>, kMost = DBLR_PIXELS;
  const Index groups = (a.tiles + kMost - 1) / kMost, least = a.tiles / groups, rest = a.tiles % groups;
  Fetches fetches = {a.ahead, a.ahead_end, a.depth / 2};
  for (Index position = 0; position < a.positions; position++) {
    const Bf16* const in = a.in + position * a.in_position;
    float* const out = a.out + position * a.out_position;
    for (Index c = 0, b = 0; c < a.channels; c += 2 * L, b++) {
      const bool two = a.channels - c > L;
      const MultiplyTilesBf16 *const fetching = bf16_by<Known, true>(two), *const plain = bf16_by<Known, false>(two);
      const Bf16* const w = a.weights + position * a.weights_position + b * a.block;
      for (Index g = 0, tile = 0; g < groups; g++) {
        const Index tiles = least + (g < rest);
        float* const to = out + tile * a.channels + c;
        const MultiplyTilesBf16* const by = fetches.left() ? fetching : plain;
        const Fetch soon = fetches.next(w, to);
        by[tiles](in + tile * a.depth, a.depth, w, to, a.channels, soon);
        tile += tiles;
      }
    }
  }
}
void winograd_product_bf16(const WinogradProduct<float, Bf16>& a) {
  const Index known = known_depth(a);
  const auto as = known == kNarrow ? winograd_product_bf16_of<kNarrow>
                  : known == kWide ? winograd_product_bf16_of<kWide>
                                   : winograd_product_bf16_of<0>;
  as(a);
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
                                      winograd<float, Bf16, 8>(),
                                      winograd_input<float, Bf16, Bf16, 4, Singly<float, Bf16>>,
                                      winograd_input<float, Bf16, float, 4, Singly<float, Bf16>>,
                                      winograd_product_bf16,
                                      winograd_input<float, Bf16, Bf16, 4, InPairs>,
                                      winograd_dz<float, Bf16, Bf16, 4, InPairs>,
                                      winograd_gradient<float, Bf16>,
                                      map_kernels<float, Bf16>(),
                                      convert<Bf16, float>,
                                      convert<float, Bf16>};

}  // namespace
}  // namespace dblr
