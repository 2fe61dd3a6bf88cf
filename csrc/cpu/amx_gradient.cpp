// The weight gradient by AMX: for each tap, channels of the gradient times channels of the input, summed over pixels.
// The gradient goes in transposed, [channel][pixel], the input in pairs of pixels, as the products want their second
// matrix. It is the one that taps shift, for a row of it by two pixels is a cache line; hence it goes in twice, in pairs
// that begin at even and at odd pixels.
#include <algorithm>
#include <vector>

#include "ahead.h"
#include "amx.h"
#include "threads.h"
#include "weight_gradient.h"

namespace dblr {
namespace {

constexpr Index kChannels = kAmxChannels, kTaps = AmxGradient::kTaps, kSums = kChannels * kChannels;
// A band of so many rows and columns is summed at a time: 32 channels of it, in and out, fill the first-level cache.
constexpr Index kRows = AmxGradient::kRows, kCols = 64, kStep = 32;
// Channels in and out that one task sums: up to 576 KB of sums.
constexpr Index kRange = 128;
// Tasks are (group of bands) x (range of channels in) x (range out). The groups are added up in order.
constexpr Index kTasks = 16, kParts = 2;

// Tiles: times 16 channels.
struct Ranges : ChannelRanges {
  explicit Ranges(Index channels) : ChannelRanges(channels, kRange) {}
  Index tiles(Index i) const { return divide_up(size(i), kChannels); }
  Index most_tiles() const { return tiles(0); }
};

// One task's memory.
struct Scratch {
  static constexpr Index kTile = kChannels * kCols, kOddTile = kTile + 2 * kChannels;  // of a row
  Scratch(Bf16* memory, Index in_tiles, Index out_tiles)
      : x(memory), dz(x + (kRows + 2) * x_row(in_tiles)), row(dz + kRows * dz_row(out_tiles)) {}
  static Index x_row(Index tiles) { return 2 * tiles * kOddTile; }
  static Index dz_row(Index tiles) { return tiles * kTile; }
  static std::size_t bytes(Index in_tiles, Index out_tiles) {
    const Index row = (kCols + 2) * kChannels * std::max(in_tiles, out_tiles);
    return (row + (kRows + 2) * x_row(in_tiles) + kRows * dz_row(out_tiles)) * sizeof(Bf16);
  }
  Bf16 *x, *dz, *row;  // a ring of the input's rows, in pairs; the gradient's, transposed; a row as it loads
};

struct Worker {
  const AmxKernels& k;
  const WeightGradient<float, Bf16>& g;
  Ranges in, out;
  Rect readable;

  // goes_on: from the band above, with which it shares rows. Sums: [tile in][tile out][tap][16 out][16 in].
  void band(const Tile& t, bool goes_on, bool first, Index i, Index o, const Scratch& s, float* sums,
            const std::vector<Ahead>& ahead) const {
    const auto ring = [&](Index y) { return s.x + (y + 1) % (kRows + 2) * Scratch::x_row(in.tiles(i)); };
    AmxGradient a = {};
    for (Index y = t.y - 1 + (goes_on ? 2 : 0); y < t.y + t.rows + 1; y++) load_x(t, y, i, s.row, ring(y));
    for (Index r = 0; r < t.rows + 2; r++) a.x[r] = ring(t.y - 1 + r);
    for (Index r = 0; r < t.rows; r++) {
      Bf16* const to = s.dz + r * Scratch::dz_row(out.tiles(o));
      load_dz(t, t.y + r, o, s.row, to);
      a.dz[r] = to;
    }
    a.rows = t.rows;
    a.steps = t.cols / kStep;
    a.in_tiles = in.tiles(i);
    a.out_tiles = out.tiles(o);
    a.x_tile = Scratch::kOddTile;
    a.odd = a.in_tiles * Scratch::kOddTile;
    a.dz_tile = Scratch::kTile;
    a.sums = sums;
    a.first = first;
    a.ahead = ahead.data();
    a.ahead_end = a.ahead + ahead.size();
    a.lines = lines_a_step(ahead, divide_up(a.in_tiles, 2) * divide_up(a.out_tiles, 2) * kTaps * a.rows * a.steps);
    k.gradient(a);
  }

  // What a band reads.
  void fetch(const Tile& t, bool goes_on, Index i, Index o, std::vector<Ahead>& ahead) const {
    const Index first_x = i * kRange, first_dz = o * kRange;
    const Rect x = {t.y - 1 + (goes_on ? 2 : 0), t.y + t.rows + 1, t.x - 1, t.x + t.cols + 1};
    for (const auto& m : {g.x.a, g.x.b}) fetch_part(m, t.n, x, first_x, in.size(i), false, ahead);
    for (const auto& m : {g.dz.a, g.dz.b}) fetch_part(m, t.n, covered(t), first_dz, out.size(o), false, ahead);
  }

  void load_x(const Tile& t, Index y, Index i, Bf16* row, Bf16* to) const {
    const Index first = i * kRange, tiles = in.tiles(i), pixel = tiles * kChannels;
    amx_load_row(k, g.x, readable, t.n, y, t.x - 1, t.cols + 2, first, first + in.size(i), pixel, row);
    for (Index tile = 0; tile < tiles; tile++, row += kChannels, to += Scratch::kOddTile) {
      k.pair(row + pixel, pixel, t.cols / 2, to);
      k.pair(row, pixel, t.cols / 2 + 1, to + tiles * Scratch::kOddTile);
    }
  }

  void load_dz(const Tile& t, Index y, Index o, Bf16* row, Bf16* to) const {
    const Index first = o * kRange, tiles = out.tiles(o), pixel = tiles * kChannels;
    amx_load_row(k, g.dz, g.region, t.n, y, t.x, t.cols, first, first + out.size(o), pixel, row);
    for (Index tile = 0; tile < tiles; tile++, row += kChannels, to += Scratch::kTile) {
      for (Index x = 0; x < t.cols; x += kStep) k.transpose(row + x * pixel, pixel, to + x * kChannels);
    }
  }
};

}  // namespace

void amx_weight_gradient(const Run<float>& run, const WeightGradient<float, Bf16>& g) {
  const AmxKernels& k = *run.amx;
  const Worker worker = {k, g, Ranges(g.x.a.c), Ranges(g.dz.a.c), grow(g.region, 1, g.x.a.h, g.x.a.w)};
  const Ranges &in = worker.in, &out = worker.out;
  // Bands from top to bottom, then the next columns: each takes over the rows that it shares with the one above.
  const Index down = divide_up(g.region.h(), kRows), across = divide_up(g.region.w(), kCols);
  const Index cols = divide_up(divide_up(g.region.w(), across), kStep) * kStep;
  const Index bands = g.dz.a.n * across * down, ranges = in.count * out.count;
  const Index parts = std::min(bands, std::max(kParts, kTasks / ranges));
  const Index size = in.most_tiles() * out.most_tiles() * kTaps * kSums;  // of a task
  Buffer<float> sums(parts * ranges * size);

  const std::size_t bytes = Scratch::bytes(in.most_tiles(), out.most_tiles());
  parallel(run.threads, parts * ranges, bytes, [&](Index task, char* memory) {
    const Index part = task / ranges, i = task / out.count % in.count, o = task % out.count;
    const Scratch scratch(reinterpret_cast<Bf16*>(memory), in.tiles(i), out.tiles(o));
    float* const to = sums.data() + task * size;
    const auto tile = [&](Index b) {
      const Index n = b / down / across, x = b / down % across * cols, y = b % down * kRows;
      return Tile{n, g.region.y0 + y, g.region.x0 + x, std::min(kRows, g.region.h() - y), cols};
    };
    const Index first = bands * part / parts, end = bands * (part + 1) / parts;
    const auto goes_on = [&](Index b) { return b > first && b % down > 0; };
    thread_local std::vector<Ahead> ahead;
    k.begin();
    for (Index b = first; b < end; b++) {
      ahead.clear();
      if (b + 1 < end) worker.fetch(tile(b + 1), goes_on(b + 1), i, o, ahead);
      worker.band(tile(b), goes_on(b), b == first, i, o, scratch, to, ahead);
    }
    k.end();
  });

  parallel(run.threads, divide_up(in.channels, kChannels) * divide_up(out.channels, kChannels), kSums * sizeof(double),
           [&](Index task, char* memory) {
    double* const sum = reinterpret_cast<double*>(memory);
    const Index tiles = divide_up(out.channels, kChannels), it = task / tiles, ot = task % tiles;
    const Index per_range = kRange / kChannels, i = it / per_range, o = ot / per_range;
    const Index at = (it % per_range * out.tiles(o) + ot % per_range) * kTaps * kSums;
    const Index in_size = std::min(kChannels, in.channels - it * kChannels);
    const Index out_size = std::min(kChannels, out.channels - ot * kChannels);
    for (Index turn = 0; turn < kTaps; turn++) {
      const Index tap = AmxGradient::kTurns[turn];
      std::fill_n(sum, kSums, 0.0);
      for (Index part = 0; part < parts; part++) {
        const float* const from = sums.data() + ((part * in.count + i) * out.count + o) * size + at + turn * kSums;
        for (Index e = 0; e < kSums; e++) sum[e] += from[e];
      }
      for (Index c = 0; c < in_size; c++) {
        float* const to = g.dw + ot * kChannels * g.so + (it * kChannels + c) * g.si + (g.flip ? 8 - tap : tap);
        for (Index q = 0; q < out_size; q++) {
          float& value = to[q * g.so];
          const double mine = sum[q * kChannels + c];
          value = static_cast<float>(g.add ? value + mine : mine);
        }
      }
    }
  });
  if (g.dbias) bias_gradient(run, g);
}

}  // namespace dblr
