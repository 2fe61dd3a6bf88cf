// The convolution's inner loops: P pixels x V vectors of output channels in registers over the whole depth.
namespace dblr {
namespace {

// The depth is summed in parts of about this length, and the parts are added up in memory: rounding errors of one
// long sum grow with its length, and over 2304 products they were five times those of torch.
constexpr Index kPart = 128;
// Products a turn of the innermost loop. With few turns a part the branch predictor foresees its end.
constexpr Index kTurn = 8;

template <class T, int P, int V>
DBLR_INLINE void multiply_add(const T* in, Index pixel, const T* w, Vec<T> (&sum)[P][V]) {
  asm volatile("" ::: "memory");  // loads stay in their turn: taken early they would push sums out of registers
  Vec<T> weight[V];
#pragma GCC unroll 2
  for (int v = 0; v < V; v++) weight[v] = fetch<Vec<T>>(w + v * kLanes<T>);
#pragma GCC unroll 16
  for (int p = 0; p < P; p++) {
    const Vec<T> value = broadcast(in[p * pixel]);
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) sum[p][v] = fma(value, weight[v], sum[p][v]);
  }
}

// out[p][v] = bias + sums. Nothing but the sums lives here: with the epilogue in the same function GCC keeps part
// of them in memory.
template <class T, int P, int V>
void multiply_pixels(const Product<T>& a, const T* in, T* out) {
  constexpr int L = kLanes<T>;
  const Index parts = (a.run + kPart - 1) / kPart;
  const Index length = (a.run + parts * kTurn - 1) / (parts * kTurn) * kTurn;
  const T* w = a.weights;
  for (int i = 0; i < P * V; i++) store(out + i * L, fetch<Vec<T>>(a.bias + i % V * L));
  for (Index row = 0; row < a.kernel_rows; row++, in += a.in.row) {
    for (Index k = 0; k < a.run;) {
      const Index end = k + length < a.run ? k + length : a.run;
      Vec<T> sum[P][V];
#pragma GCC unroll 16
      for (int p = 0; p < P; p++) {
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) sum[p][v] = broadcast(T(0));
      }
      const Index pixel = a.in.pixel;
      for (; k + kTurn <= end; k += kTurn, w += kTurn * V * L) {
#pragma GCC unroll 8
        for (Index i = 0; i < kTurn; i++) multiply_add<T, P, V>(in + k + i, pixel, w + i * V * L, sum);
      }
      for (; k < end; k++, w += V * L) multiply_add<T, P, V>(in + k, pixel, w, sum);
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

// Earlier sum, ReLU, additions, mask; to the output.
// whole: every lane of every vector is stored. plain: there is nothing but the ReLU, if that.
template <class T, bool whole, bool plain>
void finish_pixels(const Product<T>& a, Index y, Index x, Index pixels, const T* sums) {
  constexpr int L = kLanes<T>;
  const auto get = [&](const T* p, Index count) { return whole ? fetch<Vec<T>>(p) : fetch_lanes(p, count); };
  const auto at = [&](const auto& map) { return map.data + y * map.row + x * map.pixel; };
  T* to = at(a.out);
  const T *add0 = at(a.add[0]), *add1 = at(a.add[1]), *mask = at(a.mask);
  for (Index p = 0; p < pixels; p++) {
    for (int v = 0; v < a.vectors; v++, sums += L) {
      const Index c = v * L, count = a.channels - c;
      Vec<T> value = fetch<Vec<T>>(sums);
      if (!plain && a.accumulate) value = value + get(to + c, count);
      if (a.relu) value = rectify(value);
      if (!plain && a.add[0].data) value = value + get(add0 + c, count);
      if (!plain && a.add[1].data) value = value + get(add1 + c, count);
      if (!plain && a.mask.data) value = gate(get(mask + c, count), value);
      whole ? store(to + c, value) : store_lanes(to + c, value, count);
    }
    to += a.out.pixel;
    add0 += a.add[0].pixel;
    add1 += a.add[1].pixel;
    mask += a.mask.pixel;
  }
}

template <class T> using MultiplyPixels = void (*)(const Product<T>&, const T*, T*);

template <class T, int V, int... P> struct MultiplyTable {
  static constexpr MultiplyPixels<T> of[] = {nullptr, multiply_pixels<T, P, V>...};
};
// Every size of a register tile, for the tables of functions by size.
#if DBLR_PIXELS == 12
#define DBLR_SIZES 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
#elif DBLR_PIXELS == 6
#define DBLR_SIZES 1, 2, 3, 4, 5, 6
#else
#define DBLR_SIZES 1, 2, 3, 4
#endif
template <class T, int V> using MultiplyBy = MultiplyTable<T, V, DBLR_SIZES>;

// A row of pixels is cut into equal groups: 5 + 5 rather than 6 + 4, for small groups wait on latency.
template <class T> void multiply(const Product<T>& a) {
  const MultiplyPixels<T>* by = a.vectors == 2 ? MultiplyBy<T, 2>::of : MultiplyBy<T, 1>::of;
  const bool whole = a.channels == a.vectors * kLanes<T>;
  const bool plain = !a.accumulate && !a.add[0].data && !a.add[1].data && !a.mask.data;
  const auto finish = whole ? plain ? finish_pixels<T, true, true> : finish_pixels<T, true, false>
                            : finish_pixels<T, false, false>;
  const Index groups = (a.cols + DBLR_PIXELS - 1) / DBLR_PIXELS, least = a.cols / groups, rest = a.cols % groups;
  alignas(64) T sums[DBLR_PIXELS * 2 * kLanes<T>];
  for (Index y = 0; y < a.rows; y++) {
    for (Index g = 0, x = 0; g < groups; g++) {
      const Index pixels = least + (g < rest);
      by[pixels](a, a.in.data + y * a.in.row + x * a.in.pixel, sums);
      finish(a, y, x, pixels, sums);
      x += pixels;
    }
  }
}

}  // namespace
}  // namespace dblr
