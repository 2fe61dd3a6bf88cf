// The convolution's inner loops: P pixels x V vectors of output channels in registers over the whole depth.
namespace dblr {
namespace {

// The depth is summed in parts of this length or a little less, and the parts are added up in memory: rounding
// errors of one long sum grow with its length, and over 2304 products they were five times those of torch.
constexpr Index kPart = 192;

// Nothing but the sums lives here: with the epilogue in the same function GCC keeps part of the sums in memory.
template <class T, int P, int V>
void multiply_pixels(const T* in, Index row, Index pixel, Index kernel_rows, Index run, const T* w, T* out) {
  constexpr int L = kLanes<T>;
  const Index parts = (run + kPart - 1) / kPart;
  for (int i = 0; i < P * V; i++) store(out + i * L, broadcast(T(0)));
  for (; kernel_rows > 0; kernel_rows--, in += row) {
    for (Index part = 0, k = 0; part < parts; part++) {
      Vec<T> sum[P][V];
#pragma GCC unroll 16
      for (int p = 0; p < P; p++) {
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) sum[p][v] = broadcast(T(0));
      }
      for (const Index end = run * (part + 1) / parts; k < end; k++, w += V * L) {
        Vec<T> weight[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) weight[v] = fetch<Vec<T>>(w + v * L);
#pragma GCC unroll 16
        for (int p = 0; p < P; p++) {
          const Vec<T> value = broadcast(in[k + p * pixel]);
#pragma GCC unroll 2
          for (int v = 0; v < V; v++) sum[p][v] = fma(value, weight[v], sum[p][v]);
        }
      }
#pragma GCC unroll 16
      for (int p = 0; p < P; p++) {
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) {
          T* const total = out + (p * V + v) * L;
          store(total, fetch<Vec<T>>(total) + sum[p][v]);
        }
      }
    }
  }
}

// Bias or earlier sum, ReLU, additions, mask; to the output. whole: every lane of every vector is stored.
template <class T, bool whole>
void finish_pixels(const Product<T>& a, Index y, Index x, Index pixels, const T* sums) {
  constexpr int L = kLanes<T>;
  const auto get = [&](const T* p, Index count) { return whole ? fetch<Vec<T>>(p) : fetch_lanes(p, count); };
  const auto at = [&](const auto& map) { return map.data + y * map.row + x * map.pixel; };
  T* to = at(a.out);
  const T *add0 = at(a.add[0]), *add1 = at(a.add[1]), *mask = at(a.mask);
  for (Index p = 0; p < pixels; p++) {
    for (int v = 0; v < a.vectors; v++, sums += L) {
      const Index c = v * L, count = a.channels - c;
      Vec<T> value = fetch<Vec<T>>(sums) + (a.accumulate ? get(to + c, count) : fetch<Vec<T>>(a.bias + c));
      if (a.relu) value = rectify(value);
      if (a.add[0].data) value = value + get(add0 + c, count);
      if (a.add[1].data) value = value + get(add1 + c, count);
      if (a.mask.data) value = gate(get(mask + c, count), value);
      whole ? store(to + c, value) : store_lanes(to + c, value, count);
    }
    to += a.out.pixel;
    add0 += a.add[0].pixel;
    add1 += a.add[1].pixel;
    mask += a.mask.pixel;
  }
}

template <class T> using MultiplyPixels = void (*)(const T*, Index, Index, Index, Index, const T*, T*);

template <class T, int V, int... P> struct MultiplyTable {
  static constexpr MultiplyPixels<T> of[] = {nullptr, multiply_pixels<T, P, V>...};
};
#if DBLR_PIXELS == 12
template <class T, int V> using MultiplyBy = MultiplyTable<T, V, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>;
#elif DBLR_PIXELS == 6
template <class T, int V> using MultiplyBy = MultiplyTable<T, V, 1, 2, 3, 4, 5, 6>;
#else
template <class T, int V> using MultiplyBy = MultiplyTable<T, V, 1, 2, 3, 4>;
#endif

// A row of pixels is cut into equal groups: 5 + 5 rather than 6 + 4, for small groups wait on latency.
template <class T> void multiply(const Product<T>& a) {
  const MultiplyPixels<T>* by = a.vectors == 2 ? MultiplyBy<T, 2>::of : MultiplyBy<T, 1>::of;
  const auto finish = a.channels == a.vectors * kLanes<T> ? finish_pixels<T, true> : finish_pixels<T, false>;
  const Index groups = (a.cols + DBLR_PIXELS - 1) / DBLR_PIXELS;
  alignas(64) T sums[DBLR_PIXELS * 2 * kLanes<T>];
  for (Index y = 0; y < a.rows; y++) {
    for (Index g = 0; g < groups; g++) {
      const Index x = a.cols * g / groups, pixels = a.cols * (g + 1) / groups - x;
      by[pixels](a.in.data + y * a.in.row + x * a.in.pixel, a.in.row, a.in.pixel, a.kernel_rows, a.run, a.weights,
                 sums);
      finish(a, y, x, pixels, sums);
    }
  }
}

}  // namespace
}  // namespace dblr
