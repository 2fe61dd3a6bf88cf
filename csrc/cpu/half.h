// Vectors of a map kept in its own type or in 16 bits (binary16 or bf16), to nearest even. Included by the kernel files
// alone.
namespace dblr {
namespace {

DBLR_INLINE Vec<float> load(const float* p) { return fetch<Vec<float>>(p); }
DBLR_INLINE Vec<double> load(const double* p) { return fetch<Vec<double>>(p); }
DBLR_INLINE void keep(float* p, const Vec<float>& v) { store(p, v); }
DBLR_INLINE void keep(double* p, const Vec<double>& v) { store(p, v); }

#if defined(__F16C__)
#if DBLR_NATIVE == 64
DBLR_INLINE __m512 widen(const Half* p) { 
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
DBLR_INLINE void narrow(Half* p, __m512 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT));
}
#else
DBLR_INLINE __m256 widen(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
DBLR_INLINE void narrow(Half* p, __m256 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#endif
#else
// The same without the instructions, number by number.
inline float widen_one(Half h) {
  const std::uint32_t sign = (h.bits & 0x8000u) << 16, rest = h.bits & 0x7fffu;
  std::uint32_t bits;
  if (rest >= 0x7c00) {  // infinite, or not a number
    bits = sign | 0x7f800000u | (rest & 0x3ff) << 13;
  } else if (rest >= 0x400) {
    bits = sign | ((rest << 13) + (112u << 23));
  } else {  // too small for an exponent: rest units of 2^-24
    const float value = static_cast<float>(rest) * 0x1p-24f;
    return sign ? -value : value;
  }
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
inline Half narrow_one(float value) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const std::uint32_t sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  std::uint32_t half;
  if (rest > 0x7f800000u) {
    half = 0x7e00;
  } else if (rest >= 0x477ff000u) {  // 65520, from where on infinity is nearest
    half = 0x7c00;
  } else if (rest >= 0x38800000u) {  // 2^-14
    half = (rest - (112u << 23) + 0xfff + (rest >> 13 & 1)) >> 13;
  } else {  // units of 2^-24; adding 2^-1 leaves them in the lowest bits, rounded
    float sum;
    __builtin_memcpy(&sum, &rest, sizeof sum);
    sum += 0.5f;
    __builtin_memcpy(&half, &sum, sizeof half);
    half -= 0x3f000000u;
  }
  return {static_cast<std::uint16_t>(sign | half)};
}
DBLR_INLINE typename NativeOf<float>::type widen(const Half* p) {
  typename NativeOf<float>::type v;
  for (unsigned i = 0; i < DBLR_NATIVE / sizeof(float); i++) v[i] = widen_one(p[i]);
  return v;
}
DBLR_INLINE void narrow(Half* p, typename NativeOf<float>::type v) {
  for (unsigned i = 0; i < DBLR_NATIVE / sizeof(float); i++) p[i] = narrow_one(v[i]);
}
#endif

// Whether numbers rounded to a type may have become infinite where they were not: from kInfinite on, if that is not 0.
template <class S> constexpr float kInfinite = 0;
template <> constexpr float kInfinite<Half> = 65520;

// bf16: the upper half of a float, to nearest even; not-a-number stays one. The instruction takes numbers below the
// normal ones (1.2e-38) as zero.
typedef std::uint32_t NativeBits __attribute__((vector_size(DBLR_NATIVE)));
typedef std::uint16_t NarrowBits __attribute__((vector_size(DBLR_NATIVE / 2)));
DBLR_INLINE typename NativeOf<float>::type widen(const Bf16* p) {
#if DBLR_NATIVE == 64  // GCC would go by halves
  const __m512i words = _mm512_maskz_cvtepu16_epi32(0xffff, fetch<__m256i>(p));
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, words, 16));
#else
  const NativeBits bits = __builtin_convertvector(fetch<NarrowBits>(p), NativeBits) << 16;
  return fetch<typename NativeOf<float>::type>(&bits);
#endif
}
#if defined(__AVX512BF16__)
DBLR_INLINE void narrow(Bf16* p, __m512 v) { store(p, _mm512_cvtneps_pbh(v)); }
#else
DBLR_INLINE void narrow(Bf16* p, typename NativeOf<float>::type v) {
  const NativeBits bits = fetch<NativeBits>(&v), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  store(p, __builtin_convertvector(v == v ? rounded : bits >> 16 | 0x40, NarrowBits));
}
#endif

// One number, for channels that do not fill a vector.
DBLR_INLINE float number(float x) { return x; }
DBLR_INLINE double number(double x) { return x; }
DBLR_INLINE float number(Bf16 x) {
  const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
  return fetch<float>(&bits);
}
DBLR_INLINE void put(float* p, float x) { *p = x; }
DBLR_INLINE void put(double* p, double x) { *p = x; }
DBLR_INLINE void put(Bf16* p, float x) {
  const std::uint32_t bits = fetch<std::uint32_t>(&x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  p->bits = static_cast<std::uint16_t>(x == x ? rounded : bits >> 16 | 0x40);
}

// Of either.
#if DBLR_BYTES == DBLR_NATIVE
template <class S> DBLR_INLINE Vec<float> load(const S* p) { return widen(p); }
template <class S> DBLR_INLINE void keep(S* p, const Vec<float>& v) { narrow(p, v); }
#else
template <class S> DBLR_INLINE Vec<float> load(const S* p) {
  Vec<float> v;
  for (int i = 0; i < Wide<float>::kParts; i++) v.part[i] = widen(p + i * (DBLR_NATIVE / static_cast<int>(sizeof(float))));
  return v;
}
template <class S> DBLR_INLINE void keep(S* p, const Vec<float>& v) {
  for (int i = 0; i < Wide<float>::kParts; i++) narrow(p + i * (DBLR_NATIVE / static_cast<int>(sizeof(float))), v.part[i]);
}
#endif

}  // namespace
}  // namespace dblr
