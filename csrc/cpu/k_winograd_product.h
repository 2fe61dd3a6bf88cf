// The products between Winograd's transforms, and what they fetch meanwhile.
namespace dblr {
namespace {

// What a call of the inner loop fetches meanwhile: a line to be read and one to be written a step. Handed over by
// reference: a copy reads as one vector what has just been written in parts, and waits until all before that is done.
struct Fetch {
  const char *read, *write;
  Index read_stride, write_stride;
  DBLR_INLINE void step() {
    __builtin_prefetch(read, 0, 2);
    __builtin_prefetch(write, 1);
    read += read_stride;
    write += write_stride;
  }
};
// Deals out what is wanted ahead, so many lines a call. The caller names what is in cache, for where there is nothing.
struct Fetches {
  const Ahead *at, *end;
  Index lines, done = 0;
  bool left() const { return at != end; }
  DBLR_INLINE Fetch next(const void* read, const void* write) {
    Fetch f = {static_cast<const char*>(read), static_cast<const char*>(write), Ahead::kLine, Ahead::kLine};
    if (!left()) return f;
    (at->write ? f.write : f.read) = at->data + done * at->stride;
    (at->write ? f.write_stride : f.read_stride) = at->stride;
    done += lines;
    if (done >= at->lines) at++, done = 0;
    return f;
  }
};

// The channels that nearly all of the network's products give at a time, and their depths. Where the compiler knows
// them it knows how far tiles lie apart: to work out a pointer to each of them anew took 6 % of a call.
constexpr Index kChannelsKnown = 64, kNarrow = 64, kWide = 256;
template <class Product> Index known_depth(const Product& a) {
  return a.channels == kChannelsKnown && (a.depth == kNarrow || a.depth == kWide) ? a.depth : 0;
}

template <class T> constexpr int kLine = 64 / sizeof(T);  // elements in a cache line
constexpr Index kFirstCache = 32 << 10;

// The weights that come next, some of which a step fetches: they come from the third-level cache, and the hardware
// foresees only what follows in a page.
template <class T> struct Next {
  const T* at;
  Index step, second;  // from step to step, and to the second of a step's lines where weights fill two
};
// What is fetched of `block`, as wide, beside the products of a group of tiles with `now`: all beside the last group, or
// halves beside the last two, for a core waits for some two dozen lines at a time, and more hold it up.
template <class T>
Next<T> next_beside(Index group, Index groups, const T* now, const T* block, Index depth, Index width) {
  const bool halves = width > kLine<T> && groups > 1;
  if (group < groups - (halves ? 2 : 1)) return {now, 0, 0};
  if (!halves) return {block, width, kLine<T>};
  return {block + (group == groups - 1 ? depth * kLine<T> : 0), kLine<T>, 0};
}

// P tiles x V vectors of output channels in registers; long sums in parts, as in multiply_pixels. `next` weights are
// fetched meanwhile, into the second-level cache where two blocks would fill the first, and what `soon` says (if
// `early`), since products leave memory alone for most of a block's time. Known: the depth or 0.
template <class T, Index Known, int P, int V, bool early>
void multiply_tiles(const T* in, Index given_depth, const T* w, T* out, Index channels, const Next<T>& following,
                    const Fetch& wanted) {
  const Index depth = Known ? Known : given_depth, out_tile = Known ? kChannelsKnown : channels;
  constexpr int L = kLanes<T>;
  constexpr int kLevel = Known * V * L * sizeof(T) > kFirstCache / 2 ? 2 : 3;
  const T* next = following.at;  // by fields, as for Fetch
  const Index next_step = following.step, second = following.second;
  Fetch soon = wanted;
  const Index parts = (depth + kPart - 1) / kPart;
  const Index length = (depth + parts * kTurn - 1) / (parts * kTurn) * kTurn;
  for (Index k = 0; k < depth;) {
    const Index end = k + length < depth ? k + length : depth;
    const bool first = k == 0;
    Vec<T> sum[P][V];
#pragma GCC unroll 16
    for (int p = 0; p < P; p++) {
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) sum[p][v] = broadcast(T(0));
    }
    for (; k + kTurn <= end; k += kTurn, w += kTurn * V * L) {
#pragma GCC unroll 8
      for (Index i = 0; i < kTurn; i++) {
        __builtin_prefetch(next, 0, kLevel);
        if (V * L > kLine<T>) __builtin_prefetch(next + second, 0, kLevel);
        next += next_step;
        if (early) soon.step();
        multiply_add<T, P, V>(in + k + i, depth, w + i * V * L, sum);
      }
    }
    for (; k < end; k++, w += V * L) multiply_add<T, P, V>(in + k, depth, w, sum);
    if (first) {
#pragma GCC unroll 16
      for (int p = 0; p < P; p++) {
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) store(out + p * out_tile + v * L, sum[p][v]);
      }
    } else {
#pragma GCC unroll 16
      for (int p = 0; p < P; p++) {
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) {
          T* const total = out + p * out_tile + v * L;
          store(total, fetch<Vec<T>>(total) + sum[p][v]);
        }
      }
    }
  }
}

template <class T> using MultiplyTiles = void (*)(const T*, Index, const T*, T*, Index, const Next<T>&, const Fetch&);
template <class T, Index Known, int V, bool early, int... P> struct TilesTable {
  static constexpr MultiplyTiles<T> of[] = {nullptr, multiply_tiles<T, Known, P, V, early>...};
};
// By how many tiles; known channels fill two vectors.
template <class T, Index Known, bool early> const MultiplyTiles<T>* tiles_by(bool two) {
  constexpr int kLeast = Known ? 2 : 1;
  return two ? TilesTable<T, Known, 2, early, DBLR_SIZES>::of : TilesTable<T, Known, kLeast, early, DBLR_SIZES>::of;
}

template <class T, Index Known> void winograd_product_of(const WinogradProduct<T, T>& a) {
  constexpr int L = kLanes<T>;
  const Index groups = (a.tiles + DBLR_PIXELS - 1) / DBLR_PIXELS, least = a.tiles / groups, rest = a.tiles % groups;
  Fetches fetches = {a.ahead, a.ahead_end, a.depth};
  for (Index position = 0; position < a.positions; position++) {
    const T* const in = a.in + position * a.in_position;
    T* const out = a.out + position * a.out_position;
    for (Index c = 0, b = 0; c < a.channels; c += 2 * L, b++) {
      const bool two = a.channels - c > L;
      const MultiplyTiles<T>* const fetching = tiles_by<T, Known, true>(two);
      const MultiplyTiles<T>* const plain = tiles_by<T, Known, false>(two);
      const T* const w = a.weights + position * a.weights_position + b * a.block;
      const bool last = c + 2 * L >= a.channels;
      const bool end = last && position == a.positions - 1;
      const T* const next = end ? w : last ? a.weights + (position + 1) * a.weights_position : w + a.block;
      for (Index g = 0, tile = 0; g < groups; g++) {
        const Index tiles = least + (g < rest);
        const Next<T> following = next_beside(g, groups, w, next, a.depth, two ? 2 * L : L);
        T* const to = out + tile * a.channels + c;
        const MultiplyTiles<T>* const by = fetches.left() ? fetching : plain;
        const Fetch soon = fetches.next(w, to);
        by[tiles](in + tile * a.depth, a.depth, w, to, a.channels, following, soon);
        tile += tiles;
      }
    }
  }
}
void winograd_product(const WinogradProduct<float, float>& a) {
  const Index known = known_depth(a);
  const auto as = known == kNarrow ? winograd_product_of<float, kNarrow>
                  : known == kWide ? winograd_product_of<float, kWide>
                                   : winograd_product_of<float, 0>;
  as(a);
}
void winograd_product(const WinogradProduct<double, double>& a) { winograd_product_of<double, 0>(a); }

}  // namespace
}  // namespace dblr
