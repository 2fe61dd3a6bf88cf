// Tests of the emulator: kernels are lambdas, what they should give is written out from the PTX manual's tables.
#pragma once

#include <cmath>
#include <functional>
#include <map>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../cuda/ptx.cuh"
#include "../../cuda/ptx_wgmma.cuh"
#include "../launch.h"

namespace selftest {

using namespace dblr;
using Test = void (*)();

inline std::map<std::string, Test>& tests() {
  static std::map<std::string, Test> all;
  return all;
}
struct Register {
  Register(const char* name, Test test) { tests()[name] = test; }
};
#define TEST(name)                                           \
  static void test_##name();                                 \
  static const selftest::Register register_##name(#name, test_##name); \
  static void test_##name()

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... T> std::string text(const T&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... T> void expect(bool good, const T&... why) {
  if (!good) throw Failure(text(why...));
}

struct Shape {
  unsigned threads = 32;
  std::size_t shared = 0;
  unsigned blocks = 1, cluster = 1;
};

inline std::string fault_of(const Shape& shape, const std::function<void()>& kernel) {
  return emulated::run("k", {shape.blocks, 1, 1, shape.threads, shape.shared, shape.cluster}, kernel);
}

inline void run(const Shape& shape, const std::function<void()>& kernel) {
  const std::string fault = fault_of(shape, kernel);
  expect(fault.empty(), "a fault: ", fault);
}

// The kernel must fail, saying each of `parts`.
inline void fails(const Shape& shape, const std::vector<std::string>& parts, const std::function<void()>& kernel) {
  const std::string fault = fault_of(shape, kernel);
  expect(!fault.empty(), "no fault where one was planted (", parts.at(0), ")");
  for (const std::string& part : parts) {
    expect(fault.find(part) != std::string::npos, "'", part, "' is not in: ", fault);
  }
}

inline float random_value() {
  static std::mt19937 generator(std::random_device{}());
  static std::normal_distribution<float> distribution;
  return distribution(generator);
}

template <class E> std::vector<E> random_values(std::size_t count) {
  std::vector<E> v(count);
  for (E& e : v) e = narrow<E>(random_value());
  return v;
}

inline std::uint32_t two(std::uint16_t low, std::uint16_t high) { return low | static_cast<std::uint32_t>(high) << 16; }

// Vectors aligned as cudaMalloc aligns.
template <class T> struct Memory {
  explicit Memory(std::size_t count) : bytes_(count * sizeof(T) + 256), count(count) {
    data = reinterpret_cast<T*>((reinterpret_cast<std::uintptr_t>(bytes_.data()) + 255) / 256 * 256);
  }
  T& operator[](std::size_t i) { return data[i]; }
  T* begin() { return data; }
  T* end() { return data + count; }
  Memory(const Memory&) = delete;

 private:
  std::vector<unsigned char> bytes_;

 public:
  T* data;
  std::size_t count;
};

}  // namespace selftest
