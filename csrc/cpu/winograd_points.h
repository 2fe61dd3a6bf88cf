// The points at which Winograd's F(m x m, 3 x 3) interpolates: 0, plus and minus each of these, and infinity.
// Chosen for small rounding errors. Data alone: see kernels.h.
#pragma once

namespace dblr {

template <int M> struct WinogradPoints;
template <> struct WinogradPoints<4> {
  static constexpr int kPairs = 2;
  static constexpr double kPoint[] = {0.625, 1.5};
};
template <> struct WinogradPoints<6> {
  static constexpr int kPairs = 3;
  static constexpr double kPoint[] = {0.5, 1.0, 2.0};
};

}  // namespace dblr
