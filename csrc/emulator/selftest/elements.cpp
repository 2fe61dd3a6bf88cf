// Conversions of elements, against the values that IEEE 754 and PTX's cvt give.
#include "check.h"

using namespace selftest;

// The value of 16 bits by the definition of the format.
static double value(std::uint16_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1), mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

// Every finite neighbour pair: their midpoint goes to the even one, what lies beside it to the nearer one.
static void check_format(int exponent_bits, int mantissa_bits, float (*widen)(std::uint16_t),
                         std::uint16_t (*narrow)(float)) {
  const auto infinity = static_cast<std::uint16_t>(((1 << exponent_bits) - 1) << mantissa_bits);
  for (int i = 0; i < 0x10000; i++) {
    const auto bits = static_cast<std::uint16_t>(i);
    const double v = value(bits, exponent_bits, mantissa_bits);
    const float w = widen(bits);
    expect(std::isnan(v) ? std::isnan(w) : w == v && std::signbit(w) == (i >> 15), "widening ", i, " gave ", w);
    if (std::isnan(v)) {
      expect((narrow(w) & 0x7fff) > infinity, "NaN ", i, " became ", narrow(w));
      continue;
    }
    expect(narrow(w) == bits, "narrowing ", w, " gave ", narrow(w));
    if ((bits & 0x7fff) >= infinity) continue;
    const auto next = static_cast<std::uint16_t>(i + 1);  // away from zero
    const double beyond = (next & 0x7fff) == infinity
                              ? std::ldexp(std::copysign(1.0, v), (1 << (exponent_bits - 1)))
                              : value(next, exponent_bits, mantissa_bits);
    const auto middle = static_cast<float>((v + beyond) / 2);
    expect(narrow(middle) == (bits % 2 == 0 ? bits : next), "a tie at ", middle, " gave ", narrow(middle));
    expect(narrow(std::nextafter(middle, 0.0f)) == bits, "below the tie ", middle);
    expect(narrow(std::nextafter(middle, middle * 2)) == next, "above the tie ", middle);
  }
}

TEST(f16) {
  check_format(5, 10, [](std::uint16_t b) { return widen(F16{b}); }, [](float v) { return narrow<F16>(v).bits; });
  expect(narrow<F16>(1e30f).bits == 0x7c00 && narrow<F16>(-1e30f).bits == 0xfc00, "what is too large is infinite");
  expect(narrow<F16>(1e-30f).bits == 0 && narrow<F16>(-1e-30f).bits == 0x8000, "what is too small is a zero");
}

TEST(bf16) {
  check_format(8, 7, [](std::uint16_t b) { return widen(BF16{b}); }, [](float v) { return narrow<BF16>(v).bits; });
}

TEST(rectified) {
  expect(pack_rectified<F16>(1.5f, -2.0f) == 0x3e00 && pack_rectified<F16>(-1.0f, 1e30f) == 0x7c000000u, "of F16");
  expect(pack_rectified<BF16>(-1.0f, 1.5f) == 0x3fc00000u, "of BF16");
  expect((pack_rectified<F16>(NAN, 0.0f) & 0x7fff) > 0x7c00 && (pack_rectified<BF16>(NAN, 0.0f) & 0x7fff) > 0x7f80,
         "NaN stays");
}

TEST(tf32) {
  expect(to_tf32(bits_of(1.0f) + 0x0fff) == bits_of(1.0f), "below the tie");
  expect(to_tf32(bits_of(1.0f) + 0x1000) == bits_of(1.0f) + 0x2000, "a tie goes away from zero");
  expect(to_tf32(bits_of(-1.0f) + 0x1000) == bits_of(-1.0f) + 0x2000, "a negative tie too");
  expect(to_tf32(0x7f7fffffu) == 0x7f800000u, "the largest float becomes infinite");
  expect(to_tf32(0xff800000u) == 0xff800000u, "infinity stays");
  expect(std::isnan(float_of(to_tf32(0x7f800001u))), "NaN stays");
}

TEST(vectors) {
  const float in[8] = {0.5f, -1, 2, 3, 4, 5, 6, 7};
  const Vector16 v = narrow<F16>(in);
  expect(v.word[0] == two(0x3800, 0xbc00), "the first element lies at the lower address");
  float out[8];
  widen<F16>(v, out);
  for (int i = 0; i < 8; i++) expect(out[i] == in[i], "element ", i);
  expect(pack<BF16>(1.0f, 2.0f) == two(0x3f80, 0x4000), "pack");
}
