// Elements of maps and weights in device code: float, F16 and BF16, and how they become float and back.
#pragma once

#include <cstdint>

#ifdef DBLR_EMULATED
#include "../emulator/cuda_language.h"
#endif

namespace dblr {

struct F16 {
  std::uint16_t bits;
};
struct BF16 {
  std::uint16_t bits;
};

// Sixteen bytes, the unit in which memory is read and written.
struct alignas(16) Vector16 {
  std::uint32_t word[4];
};

template <class E> constexpr int kPerVector = 16 / static_cast<int>(sizeof(E));

__device__ __forceinline__ std::uint32_t bits_of(float v) {
#ifdef DBLR_EMULATED
  return emulated::bits_of(v);
#else
  return __float_as_uint(v);
#endif
}

__device__ __forceinline__ float float_of(std::uint32_t bits) {
#ifdef DBLR_EMULATED
  return emulated::float_of(bits);
#else
  return __uint_as_float(bits);
#endif
}

__device__ __forceinline__ float widen(float v) { return v; }

__device__ __forceinline__ float widen(F16 v) {
#ifdef DBLR_EMULATED
  return emulated::float_of_f16(v.bits);
#else
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
#endif
}

__device__ __forceinline__ float widen(BF16 v) { return float_of(static_cast<std::uint32_t>(v.bits) << 16); }

// Round to nearest even; what is too large for F16 becomes infinite, as in torch.
template <class E> __device__ __forceinline__ E narrow(float v);

template <> __device__ __forceinline__ float narrow<float>(float v) { return v; }

template <> __device__ __forceinline__ F16 narrow<F16>(float v) {
#ifdef DBLR_EMULATED
  return {emulated::f16_of(v)};
#else
  F16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(v));
  return h;
#endif
}

template <> __device__ __forceinline__ BF16 narrow<BF16>(float v) {
#ifdef DBLR_EMULATED
  return {emulated::bf16_of(v)};
#else
  BF16 h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h.bits) : "f"(v));
  return h;
#endif
}

// Two elements in one register, `low` at the lower address.
template <class E> __device__ __forceinline__ std::uint32_t pack(float low, float high);

template <> __device__ __forceinline__ std::uint32_t pack<F16>(float low, float high) {
#ifdef DBLR_EMULATED
  return emulated::f16_of(low) | static_cast<std::uint32_t>(emulated::f16_of(high)) << 16;
#else
  std::uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#endif
}

template <> __device__ __forceinline__ std::uint32_t pack<BF16>(float low, float high) {
#ifdef DBLR_EMULATED
  return emulated::bf16_of(low) | static_cast<std::uint32_t>(emulated::bf16_of(high)) << 16;
#else
  std::uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#endif
}

// A vector of elements as floats, and back.
template <class E> __device__ __forceinline__ void widen(const Vector16& v, float (&out)[kPerVector<E>]) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if constexpr (sizeof(E) == 4) {
      out[i] = float_of(v.word[i]);
    } else {
      out[2 * i] = widen(E{static_cast<std::uint16_t>(v.word[i] & 0xffff)});
      out[2 * i + 1] = widen(E{static_cast<std::uint16_t>(v.word[i] >> 16)});
    }
  }
}

template <class E> __device__ __forceinline__ Vector16 narrow(const float (&in)[kPerVector<E>]) {
  Vector16 v;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if constexpr (sizeof(E) == 4) {
      v.word[i] = bits_of(in[i]);
    } else {
      v.word[i] = pack<E>(in[2 * i], in[2 * i + 1]);
    }
  }
  return v;
}

// NaN passes through, as in torch (fmaxf would drop it).
__device__ __forceinline__ float rectify(float v) { return v < 0.0f ? 0.0f : v; }

// pack of both values rectified, in one instruction (sm_80 and later).
template <class E> __device__ __forceinline__ std::uint32_t pack_rectified(float low, float high);

template <> __device__ __forceinline__ std::uint32_t pack_rectified<F16>(float low, float high) {
#ifdef DBLR_EMULATED
  return pack<F16>(rectify(low), rectify(high));
#else
  std::uint32_t r;
  asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#endif
}

template <> __device__ __forceinline__ std::uint32_t pack_rectified<BF16>(float low, float high) {
#ifdef DBLR_EMULATED
  return pack<BF16>(rectify(low), rectify(high));
#else
  std::uint32_t r;
  asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#endif
}

}  // namespace dblr
