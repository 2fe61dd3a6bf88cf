// The weight gradient in Winograd's domain: G^T [sum over tiles of (B^T d B) (A dz A^T)] G.
namespace dblr {
namespace {

template <class T, class V, class S, int M, class Keep> void winograd_dz(const WinogradInput<V, S>& arguments) {
  constexpr int N = M + 2, L = kLanes<T>, K = Keep::kTiles;
  const WinogradInput<V, S> a = arguments;
  const Index ahead = kAhead * M * a.pixel;
  for (Index tile = 0; tile < a.tiles; tile += K) {
    for (Index c = 0; c < a.channels; c += L) {
      const bool line = c * sizeof(S) % 64 == 0;
      Vec<T> half[K][N][M], d[M], z[K][N];
      Index at = tile * M * a.pixel + c;
      for (int k = 0; k < K; k++) {
        if (k && tile + k >= a.tiles) {
          __builtin_memset(&half[k], 0, sizeof half[k]);
          break;
        }
#pragma GCC unroll 1
        for (int x = 0; x < M; x++, at += a.pixel) {
#pragma GCC unroll 8
          for (int y = 0; y < M; y++) d[y] = load(a.rows[y] + at);
          if (line) {
#pragma GCC unroll 8
            for (int y = 0; y < M; y++) __builtin_prefetch(a.rows[y] + at + ahead, 0, 2);
          }
          Transform<T, M>::dz(d, z[0]);
#pragma GCC unroll 8
          for (int y = 0; y < N; y++) half[k][y][x] = z[0][y];
        }
      }
      Keep keep(a, tile, c);
#pragma GCC unroll 1
      for (int y = 0; y < N; y++) {
#pragma GCC unroll 2
        for (int k = 0; k < K; k++) Transform<T, M>::dz(half[k][y], z[k]);
#pragma GCC unroll 8
        for (int x = 0; x < N; x++) keep(z, x);
      }
    }
  }
}

// Tiles whose products are made at a time (k_pairs.h).
template <class S> constexpr Index kTilesAtATime = sizeof(S) == sizeof(Bf16) ? 2 : 1;

// P input channels x V vectors of output channels in registers over the tiles of a block; S: the type of the factors.
// Known: how many channels there are of both, or 0.
template <class T, class S, Index Known, int P, int V>
void add_outer_products(const S* in, Index in_channels, const S* dz, Index out_channels, Index steps, T* out,
                        bool first, const Fetch& wanted) {
  constexpr int L = kLanes<T>;
  const Index out_row = Known ? Known : out_channels;
  const Index in_step = kTilesAtATime<S> * (Known ? Known : in_channels), dz_step = kTilesAtATime<S> * out_row;
  Fetch soon = wanted;
  Vec<T> sum[P][V];
#pragma GCC unroll 16
  for (int p = 0; p < P; p++) {
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) sum[p][v] = broadcast(T(0));
  }
#pragma GCC unroll 4
  for (Index t = 0; t < steps; t++) {
    soon.step();
    multiply_add<T, P, V>(in + t * in_step, kTilesAtATime<S>, dz + t * dz_step, sum);
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; p++) {
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
      T* const total = out + p * out_row + v * L;
      store(total, first ? sum[p][v] : fetch<Vec<T>>(total) + sum[p][v]);
    }
  }
}

template <class T, class S>
using OuterProducts = void (*)(const S*, Index, const S*, Index, Index, T*, bool, const Fetch&);
template <class T, class S, Index Known, int V, int... P> struct OuterTable {
  static constexpr OuterProducts<T, S> of[] = {nullptr, add_outer_products<T, S, Known, P, V>...};
};
template <class T, class S, Index Known, int V> using OuterBy = OuterTable<T, S, Known, V, DBLR_SIZES>;

template <class T, class S> void winograd_gradient(const WinogradGradient<T, S>& a) {
  constexpr Index L = kLanes<T>, K = kTilesAtATime<S>;
  const bool known = a.in_channels == kChannelsKnown && a.out_channels == kChannelsKnown;
  const Index groups = (a.in_channels + DBLR_PIXELS - 1) / DBLR_PIXELS;
  const Index least = a.in_channels / groups, rest = a.in_channels % groups;
  const Index steps = (a.tiles + K - 1) / K;
  Fetches fetches = {a.ahead, a.ahead_end, steps};
  for (Index position = 0; position < a.positions; position++) {
    const S* const in = a.in + position * a.in_position;
    const S* const dz = a.dz + position * a.dz_position;
    T* const out = a.out + position * a.in_channels * a.out_channels;
    for (Index c = 0; c < a.out_channels; c += 2 * L) {
      const OuterProducts<T, S>* const by = known                    ? OuterBy<T, S, kChannelsKnown, 2>::of
                                            : a.out_channels - c > L ? OuterBy<T, S, 0, 2>::of
                                                                     : OuterBy<T, S, 0, 1>::of;
      for (Index g = 0, i = 0; g < groups; g++) {
        const Index channels = least + (g < rest);
        T* const to = out + i * a.out_channels + c;
        const Fetch soon = fetches.next(dz + K * c, to);
        by[channels](in + K * i, a.in_channels, dz + K * c, a.out_channels, steps, to, a.first, soon);
        i += channels;
      }
    }
  }
}

template <class T, int M> void winograd_taps(const T* sums, Index count, T* taps) {
  constexpr int N = M + 2, L = kLanes<T>;
  for (Index c = 0; c < count; c += L) {
    Vec<T> half[3][N], u[N], g[3];
#pragma GCC unroll 1
    for (int x = 0; x < N; x++) {
#pragma GCC unroll 8
      for (int y = 0; y < N; y++) u[y] = fetch<Vec<T>>(sums + (y * N + x) * count + c);
      Transform<T, M>::taps(u, g);
#pragma GCC unroll 3
      for (int y = 0; y < 3; y++) half[y][x] = g[y];
    }
#pragma GCC unroll 1
    for (int y = 0; y < 3; y++) {
      Transform<T, M>::taps(half[y], g);
#pragma GCC unroll 3
      for (int x = 0; x < 3; x++) store(taps + (y * 3 + x) * count + c, g[x]);
    }
  }
}

}  // namespace
}  // namespace dblr
