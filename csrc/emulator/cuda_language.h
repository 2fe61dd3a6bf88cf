// What CUDA adds to C++, for a host compiler: qualifiers, indices, conversions between element types.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

#define __device__
#define __global__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

namespace emulated {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

}  // namespace emulated

// The running thread's. All threads of a launch are fibers of one OS thread, and launches exclude one another.
extern emulated::Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

inline std::uint32_t bits_of(float v) {
  std::uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

// Exact. The shifted bits, read as a float, are 2^-112 times the value; infinities and NaN need the top exponent.
inline float float_of_f16(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000) << 16, magnitude = (h & 0x7fffu) << 13;
  const float finite = float_of(magnitude) * 0x1p112f;
  const std::uint32_t bits = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : bits_of(finite);
  return float_of(sign | bits);
}

// To nearest even; 65520 and more become infinite.
inline std::uint16_t f16_of(float v) {
  const std::uint32_t bits = bits_of(v), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(0x7fff);          // as the hardware's NaN
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00);  // 65520 and more
  if (magnitude < 0x38800000u) {  // under 2^-14: adding 1/2 makes the last bit of the sum 2^-24
    return static_cast<std::uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
  }
  return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13));
}

inline float float_of_bf16(std::uint16_t h) { return float_of(static_cast<std::uint32_t>(h) << 16); }

// To nearest even.
inline std::uint16_t bf16_of(float v) {
  const std::uint32_t bits = bits_of(v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

// To nearest, ties away from zero.
inline std::uint32_t to_tf32(std::uint32_t bits) {
  if ((bits & 0x7fffffffu) >= 0x7f800000u) return (bits & 0x7fffffu) != 0 ? 0x7fffffffu : bits;
  return (bits + 0x1000u) & ~0x1fffu;
}

}  // namespace emulated

// Of CUDA's math functions, those that a host's <math.h> lacks.
inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
inline double rsqrt(double v) { return 1.0 / sqrt(v); }
