// The points at which Winograd's F(m x m, 3 x 3) interpolates: 0, plus and minus each of these, and infinity.
// Chosen for small rounding errors: relative to a 64 -> 64 layer's output 6e-7, 2.5e-6 and 1.6e-5 for tiles of 4, 6 and 8,
// where 16 bits round it by 2e-4. Data alone: see kernels.h.
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
template <> struct WinogradPoints<8> {
  static constexpr int kPairs = 4;
  static constexpr double kPoint[] = {0.375, 0.8125, 1.1875, 2.25};
};

}  // namespace dblr
