// Lists of memory that is wanted soon, for products to fetch while they are made. Where a list is wrong, time is lost and
// nothing else.
#pragma once

#include <algorithm>
#include <vector>

#include "convolve.h"

namespace dblr {

// Part of a map, of its channels so many from `first` on.
template <class S>
void fetch_part(const Map<S>& m, Index n, const Rect& part, Index first, Index channels, bool write,
                std::vector<Ahead>& ahead) {
  if (!m.data || m.sc != 1) return;
  const Index pixel = m.sw * Index(sizeof(S)), wanted = channels * Index(sizeof(S));
  const Index x0 = std::max<Index>(part.x0, 0), cols = std::min(part.x1, m.w) - x0;
  for (Index y = std::max<Index>(part.y0, 0); y < std::min(part.y1, m.h); y++) {
    const S* const row = m.data + n * m.sn + row_of(m, y) + x0 * m.sw + first;
    const char* const from = reinterpret_cast<const char*>(row);
    if (pixel == wanted) {
      ahead.push_back({from, divide_up(cols * pixel, Ahead::kLine), Ahead::kLine, write});
    } else {
      for (Index i = 0; i < wanted; i += Ahead::kLine) ahead.push_back({from + i, cols, pixel, write});
    }
  }
}

// What a tile of the output is made from: itself and the pixels around it.
template <class T, class In> void fetch_input(const Source<T, In>& source, const Tile& t, std::vector<Ahead>& ahead) {
  const Rect part = {t.y - 1, t.y + t.rows + 1, t.x - 1, t.x + t.cols + 1};
  for (const Map<const In>& map : {source.a, source.b}) fetch_part(map, t.n, part, 0, map.c, false, ahead);
}

// How many lines of all that go beside each of so many steps.
inline Index lines_a_step(const std::vector<Ahead>& ahead, Index steps) {
  Index lines = 0;
  for (const Ahead& a : ahead) lines += a.lines;
  return std::max<Index>(divide_up(lines, std::max<Index>(steps, 1)), 1);
}

// What comes after the products of some output channels: a tile of the output, and of what is added to it or summed.
template <class T, class In, class Out>
void fetch_output(const Convolution<T, In, Out>& c, const Tile& t, Index first, Index channels,
                  std::vector<Ahead>& ahead) {
  const Rect part = covered(t);
  fetch_part(c.out, t.n, part, first, channels, true, ahead);
  for (const Map<const Out>& map : {c.add[0], c.add[1], c.mask, c.norm.a, c.norm.b}) {
    if (map.data != c.out.data) fetch_part(map, t.n, part, first, channels, false, ahead);
  }
}

}  // namespace dblr
