#include "weight_gradient.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "threads.h"

namespace dblr {
namespace {

// The gradient's tile of one block of channels stays in the first-level cache while every input channel passes.
constexpr Index kRows = 8, kCols = 32;
// Tasks are (group of tiles) x (range of channel blocks). Each sums into a buffer of its own, and the buffers
// are added in the order of the groups: the same bits whatever the number of threads.
constexpr Index kTasks = 32, kBufferBytes = 640 * 1024;

// Shape of the sums: [block][group of input channels][dy][dx][ic of the group][lane]
template <class T> struct Layout {
  Layout(const Kernels<T>& k, Index in, Index out)
      : in(in), out(out), lanes(k.lanes), width(2 * k.lanes), group(k.group_channels), groups(divide_up(in, group)),
        blocks(divide_up(out, width)), block_size(groups * 9 * group * width) {}
  Index in, out, lanes, width, group, groups, blocks, block_size;
  int vectors(Index b) const { return out - b * width > lanes ? 2 : 1; }
  Index offset(Index b, Index o, Index i, Index tap) const {
    return b * block_size + ((i / group * 9 + tap) * group + i % group) * (vectors(b) * lanes) + o - b * width;
  }
};

// Input channels to groups: [cols][channels] -> out + group * plane: [cols][group]
template <class T>
void spread(const T* row, Index cols, const Layout<T>& l, Index plane, T* out) {
  for (Index g = 0; g < l.groups; g++, out += plane) {
    const T* from = row + g * l.group;
    const Index here = std::min(l.group, l.in - g * l.group);
    if (here == 2 && l.group == 2) {  // the usual case, in one move a pixel
      for (Index x = 0; x < cols; x++) std::memcpy(out + x * 2, from + x * l.in, 2 * sizeof(T));
    } else if (here == 4 && l.group == 4) {
      for (Index x = 0; x < cols; x++) std::memcpy(out + x * 4, from + x * l.in, 4 * sizeof(T));
    } else {
      for (Index x = 0; x < cols; x++) {
        for (Index i = 0; i < l.group; i++) out[x * l.group + i] = i < here ? from[x * l.in + i] : T(0);
      }
    }
  }
}

template <class T, class S> struct Worker {
  const Run<T>& run;
  const WeightGradient<T, S>& g;
  Layout<T> l;
  Index row_size() const { return std::max((kCols + 2) * l.in, kCols * l.width); }
  Index x_size() const { return l.groups * (kRows + 2) * (kCols + 2) * l.group; }
  Index scratch() const { return 2 * row_size() + x_size() + kRows * kCols * l.width; }

  // Adds one tile's part for channel blocks b0 <= b < b1 to sums, and its part of the bias gradient to dbias.
  void tile(const Tile& t, Index b0, Index b1, T* scratch, T* sums, double* dbias) const {
    T *row = scratch, *x = row + row_size(), *dz = x + x_size();
    S* const kept = reinterpret_cast<S*>(dz + kRows * kCols * l.width);
    const Index x_row = (t.cols + 2) * l.group, plane = (t.rows + 2) * x_row;
    for (Index y = 0; y < t.rows + 2; y++) {
      load_row(run, g.x, t.n, t.y + y - 1, t.x - 1, t.cols + 2, 0, l.in, row, kept);
      spread(row, t.cols + 2, l, plane, x + y * x_row);
    }
    for (Index b = b0; b < b1; b++) {
      const Index first = b * l.width, channels = std::min(l.width, l.out - first), pixel = l.vectors(b) * l.lanes;
      for (Index y = 0; y < t.rows; y++) {
        T* to = dz + y * t.cols * pixel;
        T* from = channels == pixel ? to : row;
        load_row(run, g.dz, t.n, t.y + y, t.x, t.cols, first, first + channels, from, kept);
        for (Index i = 0; from != to && i < t.cols; i++) {
          std::memcpy(to + i * pixel, from + i * channels, channels * sizeof(T));
          std::memset(to + i * pixel + channels, 0, (pixel - channels) * sizeof(T));
        }
      }
      run.kernels.gradient({x, l.groups, dz, l.vectors(b), t.rows, t.cols, sums + (b - b0) * l.block_size});
      if (dbias) add_bias(t, dz, pixel, channels, dbias + (b - b0) * l.width, row);
    }
  }

  void add_bias(const Tile& t, const T* dz, Index pixel, Index channels, double* dbias, T* scratch) const {
    double* const s = reinterpret_cast<double*>(scratch);
    Sums<T> sums = {};
    sums.a = {dz, t.cols * pixel, pixel};
    sums.rows = t.rows;
    sums.cols = t.cols;
    sums.channels = channels;
    sums.sum = Sum::plain;
    sums.s0 = s;
    sums.s1 = s + channels;
    run.kernels.maps.sums(sums);
    for (Index c = 0; c < channels; c++) dbias[c] += s[c];
  }
};

}  // namespace

// Sums of dz for each output channel, row by row, the rows added up in order.
template <class T, class S> void bias_gradient(const Run<T>& run, const WeightGradient<T, S>& g) {
  const Index channels = g.dz.a.c, rows = g.dz.a.n * g.region.h(), cols = g.region.w();
  Buffer<double> sums(rows * channels);
  const std::size_t scratch = (cols * channels + 64) * sizeof(S) + channels * sizeof(double);
  parallel(run.threads, rows, scratch, [&](Index task, char* memory) {
    double* const unused = reinterpret_cast<double*>(memory);
    S* const row = reinterpret_cast<S*>(unused + channels);
    const Index n = task / g.region.h(), y = g.region.y0 + task % g.region.h();
    maps_of<S>(run).load_row(g.dz, n, y, g.region.x0, cols, 0, channels, row);
    Sums<T, S> s = {};
    s.a = {row, cols * channels, channels};
    s.rows = 1;
    s.cols = cols;
    s.channels = channels;
    s.sum = Sum::plain;
    s.s0 = sums.data() + task * channels;
    s.s1 = unused;
    maps_of<S>(run).sums(s);
  });
  for (Index c = 0; c < channels; c++) {
    double sum = g.add ? static_cast<double>(g.dbias[c]) : 0;
    for (Index row = 0; row < rows; row++) sum += sums[row * channels + c];
    g.dbias[c] = static_cast<T>(sum);
  }
}

template <class T, class S> void weight_gradient(const Run<T>& run, const WeightGradient<T, S>& g) {
  if constexpr (std::is_same<S, Bf16>::value) {
    if (run.amx) return amx_weight_gradient(run, g);
  }
  if (winograd_suits_gradient(run.kernels, g)) {
    winograd_weight_gradient(run, g);
    if (g.dbias) bias_gradient(run, g);
    return;
  }
  const Worker<T, S> worker = {run, g, Layout<T>(run.kernels, g.x.a.c, g.dz.a.c)};
  const Layout<T>& l = worker.l;
  Tiling tiling(1, 1, 1, 1);
  tiling.rows = kRows;
  tiling.cols = kCols;
  tiling.down = divide_up(g.region.h(), kRows);
  tiling.across = divide_up(g.region.w(), kCols);
  const Index tiles = g.dz.a.n * tiling.tiles();
  const Index per_range = std::min(l.blocks, std::max<Index>(1, kBufferBytes / Index(l.block_size * sizeof(T))));
  const Index ranges = divide_up(l.blocks, per_range);
  const Index parts = std::min(tiles, std::max<Index>(kTasks / ranges, 8));
  const Index part_size = l.blocks * l.block_size;
  Buffer<T> sums(parts * part_size);
  Buffer<double> biases(g.dbias ? parts * l.blocks * l.width : 0);

  parallel(run.threads, parts * ranges, worker.scratch() * sizeof(T), [&](Index task, char* scratch) {
    const Index part = task / ranges, b0 = task % ranges * per_range, b1 = std::min(b0 + per_range, l.blocks);
    T* const to = sums.data() + part * part_size + b0 * l.block_size;
    std::memset(to, 0, (b1 - b0) * l.block_size * sizeof(T));
    double* bias = nullptr;
    if (g.dbias) {
      bias = biases.data() + (part * l.blocks + b0) * l.width;
      std::memset(bias, 0, (b1 - b0) * l.width * sizeof(double));
    }
    for (Index i = tiles * part / parts; i < tiles * (part + 1) / parts; i++) {
      worker.tile(tile_at(tiling, g.region, i), b0, b1, reinterpret_cast<T*>(scratch), to, bias);
    }
  });

  // Sums of one input channel at a time, so that a line of memory serves all channels of its block.
  parallel(run.threads, l.blocks * l.in, l.width * sizeof(double), [&](Index task, char* scratch) {
    const Index b = task / l.in, i = task % l.in, first = b * l.width, channels = std::min(l.width, l.out - first);
    double* const sum = reinterpret_cast<double*>(scratch);
    for (int tap = 0; tap < 9; tap++) {
      const T* from = sums.data() + l.offset(b, first, i, tap);
      for (Index c = 0; c < channels; c++) sum[c] = 0;
      for (Index part = 0; part < parts; part++, from += part_size) {
        for (Index c = 0; c < channels; c++) sum[c] += from[c];
      }
      for (Index c = 0; c < channels; c++) {
        T& at = g.dw[(first + c) * g.so + i * g.si + (g.flip ? 8 - tap : tap)];
        at = static_cast<T>(g.add ? at + sum[c] : sum[c]);
      }
    }
  });
  for (Index o = 0; g.dbias && o < l.out; o++) {
    double sum = g.add ? static_cast<double>(g.dbias[o]) : 0;
    for (Index part = 0; part < parts; part++) sum += biases[part * l.blocks * l.width + o];
    g.dbias[o] = static_cast<T>(sum);
  }
}

template void weight_gradient(const Run<float>&, const WeightGradient<float>&);
template void weight_gradient(const Run<double>&, const WeightGradient<double>&);
template void weight_gradient(const Run<float>&, const WeightGradient<float, Bf16>&);
template void bias_gradient(const Run<float>&, const WeightGradient<float>&);
template void bias_gradient(const Run<double>&, const WeightGradient<double>&);
template void bias_gradient(const Run<float>&, const WeightGradient<float, Bf16>&);

}  // namespace dblr
