// Winograd's F(M x M, 3 x 3): transforms of tiles.
//
// With points 0, +-p_i and infinity the transforms come in pairs. The polynomial whose coefficients weigh the inputs
// for point p is (x^2 + p x) times the even product over the other pairs, so the values at p and -p share their sums
// over even and over odd inputs; on the way back so do the outputs of even and odd powers.
#include "winograd_points.h"

namespace dblr {
namespace {

template <class T, int M> struct Transform {
  using Points = WinogradPoints<M>;
  static constexpr int kPairs = Points::kPairs, kSize = M + 2;

  // Coefficients of the product of (x^2 - p_i^2) over all pairs but `without`, by powers of x^2.
  struct Even {
    double at[kPairs + 1] = {};
  };
  static constexpr Even even(int without) {
    Even e;
    e.at[0] = 1;
    for (int i = 0, degree = 0; i < kPairs; i++) {
      if (i == without) continue;
      const double square = Points::kPoint[i] * Points::kPoint[i];
      degree++;
      for (int k = degree; k > 0; k--) e.at[k] = e.at[k - 1] - square * e.at[k];
      e.at[0] *= -square;
    }
    return e;
  }
  static constexpr bool power_of_two(double x) {
    while (x < 1) x *= 2;
    while (x > 1) x /= 2;
    return x == 1;
  }
  static constexpr double power(double x, int n) { return n == 0 ? 1 : x * power(x, n - 1); }

  // sum + c * x, where c is 1 or -1 without a product: additions have units of their own on many CPUs.
  static DBLR_INLINE Vec<T> add_times(double c, const Vec<T>& x, const Vec<T>& sum) {
    return c == 1 ? sum + x : c == -1 ? sum - x : fma(broadcast(static_cast<T>(c)), x, sum);
  }
  // sum over k of c[k] * d[2 k], c[degree] being 1
  template <int degree> static DBLR_INLINE Vec<T> sum(const Even& c, const Vec<T>* d) {
    Vec<T> s = d[2 * degree];
#pragma GCC unroll 4
    for (int k = 0; k < degree; k++) s = add_times(c.at[k], d[2 * k], s);
    return s;
  }

  static DBLR_INLINE void input(const Vec<T> (&d)[kSize], Vec<T> (&v)[kSize]) {
    constexpr Even all = even(-1);
    v[0] = sum<kPairs>(all, d);
    v[kSize - 1] = sum<kPairs>(all, d + 1);
    pair_in<0>(d, v);
    pair_in<1>(d, v);
    if constexpr (kPairs > 2) pair_in<2>(d, v);
    if constexpr (kPairs > 3) pair_in<3>(d, v);
  }
  template <int i> static DBLR_INLINE void pair_in(const Vec<T> (&d)[kSize], Vec<T> (&v)[kSize]) {
    constexpr Even others = even(i);
    constexpr double p = Points::kPoint[i];
    const Vec<T> on_even = sum<kPairs - 1>(others, d + 2), on_odd = sum<kPairs - 1>(others, d + 1);
    if constexpr (power_of_two(p)) {  // the product rounds nothing
      const Vec<T> times_p = p == 1 ? on_odd : broadcast(static_cast<T>(p)) * on_odd;
      v[2 * i + 1] = on_even + times_p;
      v[2 * i + 2] = on_even - times_p;
    } else {
      v[2 * i + 1] = fma(broadcast(static_cast<T>(p)), on_odd, on_even);
      v[2 * i + 2] = fma(broadcast(static_cast<T>(-p)), on_odd, on_even);
    }
  }

  static DBLR_INLINE void output(const Vec<T> (&m)[kSize], Vec<T> (&y)[M]) {
    Vec<T> s[kPairs], t[kPairs];
#pragma GCC unroll 4
    for (int i = 0; i < kPairs; i++) {
      s[i] = m[2 * i + 1] + m[2 * i + 2];
      t[i] = m[2 * i + 1] - m[2 * i + 2];
    }
    y[0] = m[0] + s[0];
#pragma GCC unroll 4
    for (int i = 1; i < kPairs; i++) y[0] = y[0] + s[i];
#pragma GCC unroll 8
    for (int k = 1; k < M; k++) {
      const Vec<T>* const of = k % 2 ? t : s;
      y[k] = k == M - 1 ? fma(weight(0, k), of[0], m[kSize - 1]) : weight(0, k) * of[0];
#pragma GCC unroll 4
      for (int i = 1; i < kPairs; i++) y[k] = fma(weight(i, k), of[i], y[k]);
    }
  }
  // The transpose of output().
  static DBLR_INLINE void dz(const Vec<T> (&d)[M], Vec<T> (&z)[kSize]) {
    z[0] = d[0];
    z[kSize - 1] = d[M - 1];
#pragma GCC unroll 4
    for (int i = 0; i < kPairs; i++) {
      Vec<T> on_even = d[0], on_odd = weight(i, 1) * d[1];
#pragma GCC unroll 4
      for (int k = 2; k < M; k += 2) {
        on_even = fma(weight(i, k), d[k], on_even);
        on_odd = fma(weight(i, k + 1), d[k + 1], on_odd);
      }
      z[2 * i + 1] = on_even + on_odd;
      z[2 * i + 2] = on_even - on_odd;
    }
  }
  // G^T: from the points to the three taps. G's rows are 1, p, p^2 over the product of p's distances to the others.
  static DBLR_INLINE void taps(const Vec<T> (&u)[kSize], Vec<T> (&g)[3]) {
    constexpr Even all = even(-1);
    g[0] = broadcast(static_cast<T>(1 / all.at[0])) * u[0];
    g[1] = broadcast(T(0));
    g[2] = u[kSize - 1];
    pair_to_taps<0>(u, g);
    pair_to_taps<1>(u, g);
    if constexpr (kPairs > 2) pair_to_taps<2>(u, g);
    if constexpr (kPairs > 3) pair_to_taps<3>(u, g);
  }
  template <int i> static DBLR_INLINE void pair_to_taps(const Vec<T> (&u)[kSize], Vec<T> (&g)[3]) {
    constexpr double p = Points::kPoint[i], scale = 1 / (2 * p * p * value(even(i), p * p));
    const Vec<T> sum = u[2 * i + 1] + u[2 * i + 2], difference = u[2 * i + 1] - u[2 * i + 2];
    g[0] = fma(broadcast(static_cast<T>(scale)), sum, g[0]);
    g[1] = fma(broadcast(static_cast<T>(p * scale)), difference, g[1]);
    g[2] = fma(broadcast(static_cast<T>(p * p * scale)), sum, g[2]);
  }
  static constexpr double value(const Even& of, double square) {
    double v = 0;
    for (int k = kPairs - 1; k >= 0; k--) v = v * square + of.at[k];
    return v;
  }
  static DBLR_INLINE Vec<T> weight(int i, int k) { return broadcast(static_cast<T>(power(Points::kPoint[i], k))); }
};

// Tiles between the one that is transformed and the one whose pixels are fetched meanwhile, into the second-level cache:
// what a tile writes, up to 16 KB, would push them out of the first before their turn.
constexpr Index kAhead = 2;

// A tile's transform, position by position, as [tile][channel].
template <class T, class V> struct Singly {
  static constexpr int kTiles = 1;
  template <class S>
  DBLR_INLINE Singly(const WinogradInput<V, S>& a, Index tile, Index c)
      : to(a.out + (a.first + tile) * a.channels + c), position(a.position) {}
  template <int N> DBLR_INLINE void operator()(const Vec<T> (&v)[1][N], int x) {
    keep(to, v[0][x]);
    to += position;
  }
  V* to;
  Index position;
};

// What the loops read of their arguments is copied first: any store might change the arguments themselves, and they
// would be read again after each.
// Keep: how tiles' transforms lie in the block, and how many go together, see Singly; zeros beside the last where it is
// left over.
template <class T, class V, class S, int M, class Keep> void winograd_input(const WinogradInput<V, S>& arguments) {
  constexpr int N = M + 2, L = kLanes<T>, K = Keep::kTiles;
  const WinogradInput<V, S> a = arguments;
  const Index ahead = kAhead * M * a.pixel;
  for (Index tile = 0; tile < a.tiles; tile += K) {
    for (Index c = 0; c < a.channels; c += L) {
      const bool line = c * sizeof(S) % 64 == 0;
      Vec<T> half[K][N][N], d[N], v[K][N];
      Index at = tile * M * a.pixel + c;
      for (int k = 0; k < K; k++, at += (M - N) * a.pixel) {
        if (k && tile + k >= a.tiles) {
          __builtin_memset(&half[k], 0, sizeof half[k]);
          break;
        }
#pragma GCC unroll 1
        for (int x = 0; x < N; x++, at += a.pixel) {
#pragma GCC unroll 10
          for (int y = 0; y < N; y++) d[y] = load(a.rows[y] + at);
          if (line && x >= 2) {
#pragma GCC unroll 10
            for (int y = 0; y < N; y++) __builtin_prefetch(a.rows[y] + at + ahead, 0, 2);
          }
          Transform<T, M>::input(d, v[0]);
#pragma GCC unroll 10
          for (int y = 0; y < N; y++) half[k][y][x] = v[0][y];
        }
      }
      Keep keep(a, tile, c);
#pragma GCC unroll 1
      for (int y = 0; y < N; y++) {
#pragma GCC unroll 2
        for (int k = 0; k < K; k++) Transform<T, M>::input(half[k][y], v[k]);
#pragma GCC unroll 10
        for (int x = 0; x < N; x++) keep(v, x);
      }
    }
  }
}

// whole: all of each tile is stored. plain: nothing follows but the ReLU, if that.
template <class T, class S, int M, bool whole, bool plain>
void winograd_output_as(const WinogradOutput<T, S>& arguments) {
  constexpr int N = M + 2, L = kLanes<T>;
  const WinogradOutput<T, S> a = arguments;
  const Index position = a.position;
  Vec<T> most = broadcast(T(0));  // magnitude of what is stored
  for (Index tile = 0; tile < a.tiles; tile++) {
    const Index x0 = tile * M;
    for (Index c = 0; c < a.channels; c += L) {
      const bool line = c * sizeof(S) % 64 == 0;
      Vec<T> half[M][N], m[N], r[M];
      const T* from = a.in + tile * a.channels + c;
#pragma GCC unroll 1
      for (int x = 0; x < N; x++, from += position) {
        const T* p = from;
#pragma GCC unroll 10
        for (int y = 0; y < N; y++, p += N * position) m[y] = fetch<Vec<T>>(p);
        Transform<T, M>::output(m, r);
#pragma GCC unroll 8
        for (int y = 0; y < M; y++) half[y][x] = r[y];
      }
      const Vec<T> bias = fetch<Vec<T>>(a.bias + c);
#pragma GCC unroll 1
      for (int y = 0; y < M; y++) {
        if (!whole && (y < a.row0 || y >= a.row1)) continue;
        Transform<T, M>::output(half[y], r);
        const auto at = [&](const auto& map) { return map.data + y * map.row + x0 * map.pixel + c; };
        const auto stored = [&](int x) { return whole || (x0 + x >= a.col0 && x0 + x < a.col1); };
        S* to = a.out.row[y] + x0 * a.out.pixel + c;
        const S *add0 = nullptr, *add1 = nullptr, *mask = at(a.mask);
        if (!plain) {
          add0 = a.add[0].row[y] + x0 * a.add[0].pixel + c;
          add1 = a.add[1].row[y] + x0 * a.add[1].pixel + c;
        }
        if (line) {
#pragma GCC unroll 8
          for (int x = 0; x < M; x++) __builtin_prefetch(to + (kAhead * M + x) * a.out.pixel, 1);
          if (!plain) {
#pragma GCC unroll 8
            for (int x = 0; x < M; x++) __builtin_prefetch(add0 + (kAhead * M + x) * a.add[0].pixel);
          }
        }
#pragma GCC unroll 8
        for (int x = 0; x < M; x++) {
          r[x] = r[x] + bias;
          if (a.relu) r[x] = rectify(r[x]);
        }
        if (!plain) {
          if (a.add[0].row[0]) {
#pragma GCC unroll 8
            for (int x = 0; x < M; x++, add0 += a.add[0].pixel) {
              if (stored(x)) r[x] = r[x] + load(add0);
            }
          }
          if (a.add[1].row[0]) {
#pragma GCC unroll 8
            for (int x = 0; x < M; x++, add1 += a.add[1].pixel) {
              if (stored(x)) r[x] = r[x] + load(add1);
            }
          }
          if (a.mask.data) {
#pragma GCC unroll 8
            for (int x = 0; x < M; x++, mask += a.mask.pixel) {
              if (stored(x)) r[x] = gate(load(mask), r[x]);
            }
          }
        }
#pragma GCC unroll 8
        for (int x = 0; x < M; x++, to += a.out.pixel) {
          if (!stored(x)) continue;
          keep(to, r[x]);
          if (kInfinite<S> > 0) most = larger(most, magnitude(r[x]));
        }
      }
    }
  }
  if (kInfinite<S> > 0) {
    T lanes[L];
    store(lanes, most);
    for (const T lane : lanes) {
      if (lane >= kInfinite<S>) *a.too_large = true;
    }
  }
}

template <class T, class S, int M> void winograd_output(const WinogradOutput<T, S>& a) {
  const bool whole = a.row0 <= 0 && a.row1 >= M && a.col0 <= 0 && a.col1 >= a.tiles * M;
  const bool plain = !a.add[0].row[0] && !a.add[1].row[0] && !a.mask.data;
  const auto as = whole ? plain ? winograd_output_as<T, S, M, true, true> : winograd_output_as<T, S, M, true, false>
                        : winograd_output_as<T, S, M, false, false>;
  as(a);
}

// Of float alone: convolutions in double go without (see winograd_tile).
template <class T, class S, int M> constexpr Winograd<T, S> winograd() {
  if constexpr (sizeof(T) == sizeof(float)) {
    return {winograd_input<T, T, S, M, Singly<T, T>>, winograd_output<T, S, M>};
  } else {
    return {nullptr, nullptr};
  }
}

}  // namespace
}  // namespace dblr
