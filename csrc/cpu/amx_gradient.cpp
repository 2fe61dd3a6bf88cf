// The weight gradient by AMX: for each tap, channels of the input times channels of the gradient, summed over pixels.
// The input goes in transposed, [channel][pixel], once for each column of the kernel, since rows that start within a
// cache line load at a sixth of the speed; the gradient in pairs of pixels, as the products want their second matrix.
#include <algorithm>
#include <cstring>

#include "amx.h"
#include "threads.h"
#include "weight_gradient.h"

namespace dblr {
namespace {

constexpr Index kChannels = kAmxChannels, kSide = 3, kTaps = 9, kSums = kChannels * kChannels;
// A band of so many rows and columns is summed at a time: 32 channels of it, in and out, fill the first-level cache.
constexpr Index kRows = 2, kCols = 128, kStep = 32;
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
  Scratch(Bf16* memory, Index in_tiles, Index out_tiles)
      : x(memory), dz(x + (kRows + 2) * x_row(in_tiles)), row(dz + kRows * dz_row(out_tiles)) {}
  static Index x_row(Index tiles) { return kSide * dz_row(tiles); }
  static Index dz_row(Index tiles) { return tiles * kChannels * kCols; }
  static std::size_t bytes(Index in_tiles, Index out_tiles) {
    const Index row = (kCols + 2) * kChannels * std::max(in_tiles, out_tiles);
    return (row + (kRows + 2) * x_row(in_tiles) + kRows * dz_row(out_tiles)) * sizeof(Bf16);
  }
  Bf16 *x, *dz, *row;  // a ring of the input's rows, transposed; the gradient's in pairs; a row as it loads
};

struct Worker {
  const AmxKernels& k;
  const WeightGradient<float, Bf16>& g;
  Ranges in, out;
  Rect readable;

  // Sums: [tile in][tile out][tap][16][16].
  void band(const Tile& t, bool goes_on, Index i, Index o, const Scratch& s, float* sums) const {
    const Index in_tiles = in.tiles(i), out_tiles = out.tiles(o);
    const auto ring = [&](Index y) { return s.x + (y + 1) % (kRows + 2) * Scratch::x_row(in_tiles); };
    for (Index y = t.y - 1 + (goes_on ? 2 : 0); y < t.y + t.rows + 1; y++) load_x(t, y, i, s.row, ring(y));
    for (Index r = 0; r < t.rows; r++) load_dz(t, t.y + r, o, s.row, s.dz + r * Scratch::dz_row(out_tiles));
    AmxGradient a = {};
    a.rows = t.rows;
    a.steps = t.cols / kStep;
    a.x_channel = kCols;
    a.dz_tile = kChannels * kCols;
    for (Index it = 0; it < in_tiles; it += 2) {
      a.two_in = it + 1 < in_tiles;
      for (Index ot = 0; ot < out_tiles; ot += 2) {
        a.two_out = ot + 1 < out_tiles;
        for (Index turn = 0; turn < kTaps; turn++) {  // down a column of the kernel, and its rows stay in cache
          const Index dx = turn / kSide, dy = turn % kSide, tap = dy * kSide + dx;
          for (Index r = 0; r < t.rows; r++) {
            a.x[r] = ring(t.y + r + dy - 1) + (dx * in_tiles + it) * kChannels * kCols;
            a.dz[r] = s.dz + r * Scratch::dz_row(out_tiles) + ot * a.dz_tile;
          }
          for (Index p = 0; p < 2; p++) {
            for (Index q = 0; q < 2; q++) a.sums[p][q] = sums + (((it + p) * out_tiles + ot + q) * kTaps + tap) * kSums;
          }
          k.gradient(a);
        }
      }
    }
  }

  void load_x(const Tile& t, Index y, Index i, Bf16* row, Bf16* to) const {
    const Index first = i * kRange, tiles = in.tiles(i), pixel = tiles * kChannels, cols = t.cols + 2;
    amx_load_row(k, g.x, readable, t.n, y, t.x - 1, cols, first, first + in.size(i), pixel, row);
    for (Index dx = 0; dx < kSide; dx++) {
      for (Index tile = 0; tile < tiles; tile++, to += kChannels * kCols) {
        const Bf16* const from = row + dx * pixel + tile * kChannels;
        for (Index x = 0; x < t.cols; x += kStep) k.transpose(from + x * pixel, pixel, to + x, kCols);
      }
    }
  }

  void load_dz(const Tile& t, Index y, Index o, Bf16* row, Bf16* to) const {
    const Index first = o * kRange, tiles = out.tiles(o), pixel = tiles * kChannels;
    amx_load_row(k, g.dz, g.region, t.n, y, t.x, t.cols, first, first + out.size(o), pixel, row);
    for (Index tile = 0; tile < tiles; tile++, row += kChannels, to += kChannels * kCols) {
      for (Index x = 0; x < t.cols; x += kStep) k.pair(row + x * pixel, pixel, to + x * kChannels);
    }
  }
};

}  // namespace

void weight_gradient(const Run<float>& run, const WeightGradient<float, Bf16>& g) {
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
    std::memset(to, 0, size * sizeof(float));
    k.begin();
    const Index first = bands * part / parts;
    for (Index b = first; b < bands * (part + 1) / parts; b++) {
      const Index n = b / down / across, x = b / down % across * cols, y = b % down * kRows;
      const Tile t = {n, g.region.y0 + y, g.region.x0 + x, std::min(kRows, g.region.h() - y), cols};
      worker.band(t, b > first && y > 0, i, o, scratch, to);
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
    for (Index tap = 0; tap < kTaps; tap++) {
      std::fill_n(sum, kSums, 0.0);
      for (Index part = 0; part < parts; part++) {
        const float* const from = sums.data() + ((part * in.count + i) * out.count + o) * size + at + tap * kSums;
        for (Index e = 0; e < kSums; e++) sum[e] += from[e];
      }
      for (Index c = 0; c < in_size; c++) {
        float* const to = g.dw + ot * kChannels * g.so + (it * kChannels + c) * g.si + (g.flip ? 8 - tap : tap);
        for (Index q = 0; q < out_size; q++) {
          float& value = to[q * g.so];
          value = static_cast<float>(g.add ? value + sum[c * kChannels + q] : sum[c * kChannels + q]);
        }
      }
    }
  });
  if (g.dbias) bias_gradient(run, g);
}

}  // namespace dblr
