// The instruction set in use: the best that the CPU has, or the one that DBLR_FAST_ISA names.
#pragma once

#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels.h"

namespace dblr {

// Each instruction set that was built -> empty, or why this CPU cannot run it.
std::vector<std::pair<std::string, std::string>> isas();

// Throws std::invalid_argument when the CPU lacks the one that was asked for.
std::string isa();
void set_isa(const std::string& name);
const Table& table();
// Products in bf16 with the instruction set in use; null where the CPU makes none.
const Bf16Kernels* bf16_kernels();
// Convolutions in bf16 by matrices; null where the CPU has none, or the instruction set in use is another.
const AmxKernels* amx_kernels();

template <class T> const Kernels<T>& kernels_of(const Table& t);
template <> inline const Kernels<float>& kernels_of(const Table& t) { return t.f32; }
template <> inline const Kernels<double>& kernels_of(const Table& t) { return t.f64; }

// How an op runs: on how many threads, with which kernels.
template <class T> struct Run {
  int threads;
  const Kernels<T>& kernels;
  const AmxKernels* amx;  // null where there are none
  const Bf16Kernels* bf16;  // the same
  explicit Run(int threads)
      : threads(threads), kernels(kernels_of<T>(table())), amx(amx_kernels()), bf16(bf16_kernels()) {}
  Run(int threads, const Kernels<T>& kernels, const Bf16Kernels* bf16)
      : threads(threads), kernels(kernels), amx(nullptr), bf16(bf16) {}
};

// The kernels for maps of type S; those of bf16 come with products in bf16.
template <class S, class T> const MapKernels<T, S>& maps_of(const Run<T>& run) {
  if constexpr (std::is_same<S, T>::value) {
    return run.kernels.maps;
  } else {
    return run.amx ? run.amx->maps : run.bf16->maps;
  }
}

}  // namespace dblr
