// Sums over a tile for each channel: batch statistics and what batch norm's backward needs. A row is summed in
// the map's type, rows in double, so that the error does not grow with the picture.
namespace dblr {
namespace {

template <class T> struct PlainSum {
  template <class V> DBLR_INLINE void operator()(V a, V, Index, V& s0, V&) const { s0 = s0 + a; }
};

template <class T> struct SquareSum {
  const T* mean;
  template <class V> DBLR_INLINE void operator()(V a, V, Index c, V& s0, V& s1) const {
    const V d = a - fetch<V>(mean + c);
    s0 = s0 + d;
    s1 = fma(d, d, s1);
  }
};

template <class T, bool relu> struct NormGradSum {
  const T *mean, *scale, *shift;
  template <class V> DBLR_INLINE void operator()(V a, V b, Index c, V& s0, V& s1) const {
    const V centred = b - fetch<V>(mean + c);
    const V g = relu ? gate(affine<V>(centred, fetch<V>(scale + c), fetch<V>(shift + c)), a) : a;
    s0 = s0 + g;
    s1 = fma(g, centred, s1);
  }
};

// A vector or a scalar of type V from a map.
template <class V, class S> DBLR_INLINE V value(const S* p) {
  if constexpr (sizeof(V) == DBLR_BYTES) {
    return load(p);
  } else {
    return number(*p);
  }
}

// One row, U values of type V from channel c on.
template <class T, class V, int U, class S, class Op>
DBLR_INLINE void sum_row(const S* a, Index a_pixel, const S* b, Index b_pixel, Index cols, Index c, double* s0,
                         double* s1, const Op& op) {
  constexpr int L = sizeof(V) / sizeof(T);
  V t0[U], t1[U];
#pragma GCC unroll 4
  for (int u = 0; u < U; u++) t0[u] = t1[u] = V{};
  for (Index x = 0; x < cols; x++) {
#pragma GCC unroll 4
    for (int u = 0; u < U; u++) {
      const Index at = c + u * L;
      op(value<V>(a + x * a_pixel + at), value<V>(b + x * b_pixel + at), at, t0[u], t1[u]);
    }
  }
  T lanes[2][U * L];
#pragma GCC unroll 4
  for (int u = 0; u < U; u++) {
    store(lanes[0] + u * L, t0[u]);
    store(lanes[1] + u * L, t1[u]);
  }
  for (int i = 0; i < U * L; i++) {
    s0[c + i] += lanes[0][i];
    s1[c + i] += lanes[1][i];
  }
}

template <class T, class S, class Op> void sum_tile(const Sums<T, S>& s, const Op& op) {
  constexpr int L = kLanes<T>;
  const Pixels<const S>& second = s.b.data ? s.b : s.a;
  for (Index c = 0; c < s.channels; c++) s.s0[c] = s.s1[c] = 0;
  for (Index y = 0; y < s.rows; y++) {
    const S *a = s.a.data + y * s.a.row, *b = second.data + y * second.row;
    Index c = 0;
    for (; c + 4 * L <= s.channels; c += 4 * L) {
      sum_row<T, Vec<T>, 4>(a, s.a.pixel, b, second.pixel, s.cols, c, s.s0, s.s1, op);
    }
    for (; c + L <= s.channels; c += L) {
      sum_row<T, Vec<T>, 1>(a, s.a.pixel, b, second.pixel, s.cols, c, s.s0, s.s1, op);
    }
    for (; c < s.channels; c++) sum_row<T, T, 1>(a, s.a.pixel, b, second.pixel, s.cols, c, s.s0, s.s1, op);
  }
}

template <class T, class S> void sums(const Sums<T, S>& s) {
  if (s.sum == Sum::plain) {
    sum_tile(s, PlainSum<T>{});
  } else if (s.sum == Sum::squares) {
    sum_tile(s, SquareSum<T>{s.mean});
  } else if (s.relu) {
    sum_tile(s, NormGradSum<T, true>{s.mean, s.scale, s.shift});
  } else {
    sum_tile(s, NormGradSum<T, false>{s.mean, s.scale, s.shift});
  }
}

}  // namespace
}  // namespace dblr
