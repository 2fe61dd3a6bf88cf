// Vectors of DBLR_BYTES bytes, in registers of DBLR_NATIVE bytes, and the few operations the kernels need.
// Included by the kernel files alone; everything has internal linkage.
#if defined(__FMA__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define DBLR_INLINE inline __attribute__((always_inline))

namespace dblr {
namespace {

template <class T> struct NativeOf;
template <> struct NativeOf<float> { typedef float type __attribute__((vector_size(DBLR_NATIVE))); };
template <> struct NativeOf<double> { typedef double type __attribute__((vector_size(DBLR_NATIVE))); };

// One rounding where the instruction set has it; scalars round as vectors do, so that the channels left over
// by whole vectors see the same formula.
#if defined(__FMA__)
DBLR_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DBLR_INLINE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
#if DBLR_NATIVE == 64
DBLR_INLINE __m512 fma(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
DBLR_INLINE __m512d fma(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
#else
DBLR_INLINE __m256 fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
DBLR_INLINE __m256d fma(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
#endif
#elif defined(__aarch64__)
DBLR_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DBLR_INLINE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
DBLR_INLINE float32x4_t fma(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
DBLR_INLINE float64x2_t fma(float64x2_t a, float64x2_t b, float64x2_t c) { return vfmaq_f64(c, a, b); }
#else
template <class V> DBLR_INLINE V fma(V a, V b, V c) { return a * b + c; }
#endif

// v where the mask is positive or not a number, else 0: the derivative of ReLU as torch has it.
template <class V> DBLR_INLINE V gate(V mask, V v) { return mask <= V{} ? V{} : v; }
// max(v, 0), and not a number where v is none.
template <class V> DBLR_INLINE V rectify(V v) { return V{} > v ? V{} : v; }

// The larger of two, and not a number where v is none.
template <class V> DBLR_INLINE V larger(V v, V least) { return least > v ? least : v; }

// Without the sign; what is not a number stays none.
template <class V> DBLR_INLINE V magnitude(V v) { return V{} > v ? V{} - v : v; }

#if DBLR_BYTES == DBLR_NATIVE

template <class T> struct VecOf { typedef typename NativeOf<T>::type type; };
template <class T> DBLR_INLINE typename VecOf<T>::type broadcast(T x) {
  return x - typename VecOf<T>::type{};  // x - 0 is x for every x
}

#else

// A vector wider than a register: as many registers as it takes.
template <class T> struct Wide {
  static constexpr int kParts = DBLR_BYTES / DBLR_NATIVE;
  typename NativeOf<T>::type part[kParts];
};
template <class T> struct VecOf { typedef Wide<T> type; };

#define DBLR_PARTS(expression)                                   \
  Wide<T> r;                                                     \
  for (int i = 0; i < Wide<T>::kParts; i++) r.part[i] = expression; \
  return r
template <class T> DBLR_INLINE Wide<T> operator+(Wide<T> a, Wide<T> b) { DBLR_PARTS(a.part[i] + b.part[i]); }
template <class T> DBLR_INLINE Wide<T> operator-(Wide<T> a, Wide<T> b) { DBLR_PARTS(a.part[i] - b.part[i]); }
template <class T> DBLR_INLINE Wide<T> operator*(Wide<T> a, Wide<T> b) { DBLR_PARTS(a.part[i] * b.part[i]); }
template <class T> DBLR_INLINE Wide<T> fma(Wide<T> a, Wide<T> b, Wide<T> c) {
  DBLR_PARTS(fma(a.part[i], b.part[i], c.part[i]));
}
template <class T> DBLR_INLINE Wide<T> gate(Wide<T> mask, Wide<T> v) { DBLR_PARTS(gate(mask.part[i], v.part[i])); }
template <class T> DBLR_INLINE Wide<T> rectify(Wide<T> v) { DBLR_PARTS(rectify(v.part[i])); }
template <class T> DBLR_INLINE Wide<T> magnitude(Wide<T> v) { DBLR_PARTS(magnitude(v.part[i])); }
template <class T> DBLR_INLINE Wide<T> larger(Wide<T> v, Wide<T> least) {
  DBLR_PARTS(larger(v.part[i], least.part[i]));
}
template <class T> DBLR_INLINE Wide<T> broadcast(T x) { DBLR_PARTS((x - typename NativeOf<T>::type{})); }
#undef DBLR_PARTS

#endif

template <class T> using Vec = typename VecOf<T>::type;
template <class T> constexpr int kLanes = DBLR_BYTES / static_cast<int>(sizeof(T));

// A value of type V (a vector or one scalar) from memory, and back; no alignment asked.
template <class V, class T> DBLR_INLINE V fetch(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class T> DBLR_INLINE void store(T* p, const V& v) { __builtin_memcpy(p, &v, sizeof v); }

// The first `count` lanes; the others are 0 and stay untouched.
template <class T> DBLR_INLINE Vec<T> fetch_lanes(const T* p, Index count) {
  if (count >= kLanes<T>) return fetch<Vec<T>>(p);
  T lanes[kLanes<T>] = {};
  for (Index i = 0; i < count; i++) lanes[i] = p[i];
  return fetch<Vec<T>>(lanes);
}
template <class T> DBLR_INLINE void store_lanes(T* p, const Vec<T>& v, Index count) {
  if (count >= kLanes<T>) return store(p, v);
  T lanes[kLanes<T>];
  store(lanes, v);
  for (Index i = 0; i < count; i++) p[i] = lanes[i];
}

}  // namespace
}  // namespace dblr
