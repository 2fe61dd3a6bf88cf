// Small helpers of the portable code: aligned memory, views, rectangles.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "kernels.h"

namespace dblr {

inline Index divide_up(Index a, Index b) { return (a + b - 1) / b; }

// To nearest even; not a number stays one.
inline Bf16 to_bf16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint32_t nearest = value == value ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;
  return {static_cast<std::uint16_t>(nearest >> 16)};
}

inline float to_float(Bf16 value) {
  const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// Uninitialised memory, aligned to a cache line.
template <class T> class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t count) : size_(count) {
    if (count == 0) return;
    data_ = static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() { std::free(data_); }
  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

// Rows y0 <= y < y1, columns x0 <= x < x1.
struct Rect {
  Index y0, y1, x0, x1;
  Index h() const { return y1 - y0; }
  Index w() const { return x1 - x0; }
};

inline Rect whole(Index h, Index w) { return {0, h, 0, w}; }

// By `pixels` on each side, but not beyond an h x w picture.
inline Rect grow(Rect r, Index pixels, Index h, Index w) {
  auto low = [&](Index v) { return v > pixels ? v - pixels : 0; };
  auto high = [&](Index v, Index end) { return v + pixels < end ? v + pixels : end; };
  return {low(r.y0), high(r.y1, h), low(r.x0), high(r.x1, w)};
}

template <class T> Map<const T> constant(const Map<T>& m) {
  return {m.data, m.n, m.c, m.h, m.w, m.sn, m.sc, m.sh, m.sw, m.ring, m.shift, m.kept};
}

// A channels_last map over `part` of an h x w picture; indexed as if the whole picture were there.
template <class T> Map<T> part_of_picture(T* data, Index channels, Rect part, Index h, Index w) {
  const Index row = part.w() * channels;
  return {data - part.y0 * row - part.x0 * channels, 1, channels, h, w, part.h() * row, 1, row, channels};
}

// Where a row lies, from the picture's first on.
template <class T> Index row_of(const Map<T>& m, Index y) {
  if (!m.ring) return y * m.sh;
  const Index turn = (y + m.shift) / m.ring, row = (y + m.shift) % m.ring, last = row - (m.ring - 2);
  return m.kept && last >= 0 ? m.kept + (turn % 2 * 2 + last) * m.sh : row * m.sh;
}

// From pixel (y, x) of picture n on, up to where a ring ends or its last two rows begin; a null map stays null.
template <class T> Pixels<T> pixels(const Map<T>& m, Index n, Index y, Index x) {
  return {m.data ? m.data + n * m.sn + row_of(m, y) + x * m.sw : nullptr, m.sh, m.sw};
}

// Picture n of a batch by itself; a null map stays null.
template <class T> Map<T> picture_of(Map<T> m, Index n) {
  if (m.data) m.data += n * m.sn;
  m.n = 1;
  return m;
}

template <class T, class S> Source<T, S> copy_of(const Map<const S>& a) {
  return {a, {}, Load::copy, false, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
}

}  // namespace dblr
