// Loading a row of a packed tile, with what is fused into it, and the normalisation that ends a block.
namespace dblr {
namespace {

// One row, U values of type V from channel c on; what belongs to the channels stays in registers.
template <class V, int U, class S, class Op>
DBLR_INLINE void each_of_row(const S* a, Index a_pixel, const S* b, Index b_pixel, S* out, Index out_pixel, Index cols,
                             Index c, const Op& op) {
  constexpr Index L = sizeof(V) == DBLR_BYTES ? DBLR_BYTES / sizeof(typename Op::Number) : 1;
  typename Op::template Of<V> of[U];
#pragma GCC unroll 2
  for (int u = 0; u < U; u++) of[u] = op.template of<V>(c + u * L);
  for (Index x = 0; x < cols; x++) {
#pragma GCC unroll 2
    for (int u = 0; u < U; u++) {
      const Index at = c + u * L;
      if constexpr (L > 1) {
        keep(out + x * out_pixel + at, of[u](load(a + x * a_pixel + at), load(b + x * b_pixel + at)));
      } else {
        put(out + x * out_pixel + at, of[u](number(a[x * a_pixel + at]), number(b[x * b_pixel + at])));
      }
    }
  }
}

// out = op(a, b, channel) over pixels; whole vectors of channels first, then what is left one by one.
template <class T, class S, class Op>
DBLR_INLINE void each(Pixels<const S> a, Pixels<const S> b, Pixels<S> out, Index rows, Index cols, Index channels,
                      const Op& op) {
  constexpr Index L = kLanes<T>;
  for (Index y = 0; y < rows; y++) {
    const S *pa = a.data + y * a.row, *pb = b.data + y * b.row;
    S* const po = out.data + y * out.row;
    Index c = 0;
    for (; c + 2 * L <= channels; c += 2 * L) {
      each_of_row<Vec<T>, 2>(pa, a.pixel, pb, b.pixel, po, out.pixel, cols, c, op);
    }
    for (; c + L <= channels; c += L) each_of_row<Vec<T>, 1>(pa, a.pixel, pb, b.pixel, po, out.pixel, cols, c, op);
    for (; c < channels; c++) each_of_row<T, 1>(pa, a.pixel, pb, b.pixel, po, out.pixel, cols, c, op);
  }
}

// (v - mean) * scale + shift: the one place where a batch norm is applied, so that forward and backward agree
// on the sign of every element.
template <class V> DBLR_INLINE V affine(V centred, V scale, V shift) { return fma(centred, scale, shift); }

// Ops: of<V>(c) binds what belongs to the channels from c on.
template <class T> struct NormaliseRelu {
  using Number = T;
  const T *mean, *scale, *shift;
  template <class V> struct Of {
    V mean, scale, shift;
    DBLR_INLINE V operator()(V a, V) const { return rectify(affine<V>(a - mean, scale, shift)); }
  };
  template <class V> DBLR_INLINE Of<V> of(Index c) const {
    return {fetch<V>(mean + c), fetch<V>(scale + c), fetch<V>(shift + c)};
  }
};

template <class T, bool relu> struct NormGrad {
  using Number = T;
  const T *mean, *scale, *shift, *k1, *k2, *k3;
  template <class V> struct Of {
    V mean, scale, shift, k1, k2, k3;
    DBLR_INLINE V operator()(V a, V b) const {
      const V centred = b - mean;
      const V g = relu ? gate(affine<V>(centred, scale, shift), a) : a;
      return fma(k1, g, fma(k2, centred, k3));
    }
  };
  template <class V> DBLR_INLINE Of<V> of(Index c) const {
    const T *const by = relu ? scale : mean, *const plus = relu ? shift : mean;  // not looked at without a ReLU
    return {fetch<V>(mean + c), fetch<V>(by + c), fetch<V>(plus + c), fetch<V>(k1 + c), fetch<V>(k2 + c),
            fetch<V>(k3 + c)};
  }
};

template <class T> struct ReluGrad {
  using Number = T;
  template <class V> struct Of {
    DBLR_INLINE V operator()(V a, V b) const { return gate(b, a); }
  };
  template <class V> DBLR_INLINE Of<V> of(Index) const { return {}; }
};

template <class T, bool relu, bool add> struct NormaliseAdd {
  using Number = T;
  const T *mean, *scale, *shift;
  template <class V> struct Of {
    V mean, scale, shift;
    DBLR_INLINE V operator()(V z, V residual) const {
      V y = affine<V>(z - mean, scale, shift);
      if (relu) y = rectify(y);
      return add ? y + residual : y;
    }
  };
  template <class V> DBLR_INLINE Of<V> of(Index c) const {
    return {fetch<V>(mean + c), fetch<V>(scale + c), fetch<V>(shift + c)};
  }
};

template <class T> void clear(T* out, Index count) { __builtin_memset(out, 0, count * sizeof(T)); }

// As in tensor.h.
template <class M> DBLR_INLINE Index row_of(const M& map, Index y) {
  if (!map.ring) return y * map.sh;
  const Index turn = (y + map.shift) / map.ring, row = (y + map.shift) % map.ring, last = row - (map.ring - 2);
  return map.kept && last >= 0 ? map.kept + (turn % 2 * 2 + last) * map.sh : row * map.sh;
}

template <class T, class S>
void load_row(const Source<T, S>& s, Index n, Index y, Index x0, Index cols, Index c0, Index c1, S* out) {
  const Index channels = c1 - c0;
  if (y < 0 || y >= s.a.h) return clear(out, cols * channels);
  const Index begin = x0 < 0 ? -x0 : 0;
  const Index end = x0 + cols > s.a.w ? s.a.w - x0 : cols;
  if (begin >= end) return clear(out, cols * channels);
  clear(out, begin * channels);
  clear(out + end * channels, (cols - end) * channels);

  const Index inside = end - begin;
  Pixels<S> to = {out + begin * channels, 0, channels};
  const S* first = s.a.data + n * s.a.sn + c0 * s.a.sc + row_of(s.a, y) + (x0 + begin) * s.a.sw;
  Pixels<const S> a = {first, 0, s.a.sw}, b = a;
  if (s.a.sc != 1 && channels > 1) {  // gather first, then work in place
    for (Index c = 0; c < channels; c++) {
      for (Index x = 0; x < inside; x++) to.data[x * channels + c] = first[c * s.a.sc + x * s.a.sw];
    }
    a = b = {to.data, 0, channels};
  }
  if (s.b.data) b = {s.b.data + n * s.b.sn + c0 + row_of(s.b, y) + (x0 + begin) * s.b.sw, 0, s.b.sw};

  if (s.load == Load::copy) {
    if (a.data == to.data) return;
    if (a.pixel == channels) {
      __builtin_memcpy(to.data, a.data, inside * channels * sizeof(S));
    } else {
      for (Index x = 0; x < inside; x++) {
        __builtin_memcpy(to.data + x * channels, a.data + x * a.pixel, channels * sizeof(S));
      }
    }
  } else if (s.load == Load::normalise) {
    each<T>(a, b, to, 1, inside, channels, NormaliseRelu<T>{s.mean + c0, s.scale + c0, s.shift + c0});
  } else if (s.load == Load::relu_grad) {
    each<T>(a, b, to, 1, inside, channels, ReluGrad<T>{});
  } else if (s.relu) {
    each<T>(a, b, to, 1, inside, channels,
            NormGrad<T, true>{s.mean + c0, s.scale + c0, s.shift + c0, s.k1 + c0, s.k2 + c0, s.k3 + c0});
  } else {
    each<T>(a, b, to, 1, inside, channels,
            NormGrad<T, false>{s.mean + c0, nullptr, nullptr, s.k1 + c0, s.k2 + c0, s.k3 + c0});
  }
}

template <bool relu, bool add, class T, class S> void normalise_as(const Normalise<T, S>& a) {
  each<T>(a.z, add ? a.add : a.z, a.out, a.rows, a.cols, a.channels,
          NormaliseAdd<T, relu, add>{a.mean, a.scale, a.shift});
}

template <class T, class S> void normalise(const Normalise<T, S>& a) {
  if (a.add.data) {
    a.relu ? normalise_as<true, true>(a) : normalise_as<false, true>(a);
  } else {
    a.relu ? normalise_as<true, false>(a) : normalise_as<false, false>(a);
  }
}

}  // namespace
}  // namespace dblr
