// What tests give to the launchers: a map is (address, n, h, w, c, kind) or None, other arrays are addresses, 0 where
// there is none; a source or an epilogue is a dict of its fields.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>

#include "../cuda/kernels.h"

namespace dblr {

namespace py = pybind11;

using Address = std::uintptr_t;
using Given = std::optional<std::tuple<Address, Index, Index, Index, Index, std::string>>;

inline Kind kind_of(const std::string& name) {
  return name == "f32" ? Kind::f32 : name == "f16" ? Kind::f16 : name == "bf16" ? Kind::bf16
             : throw std::invalid_argument("kind must be f32, f16 or bf16, got " + name + ".");
}

inline float* floats(Address address) { return reinterpret_cast<float*>(address); }

inline Map map_of(const Given& given) {
  if (!given) return {};
  const auto& [address, n, h, w, c, kind] = *given;
  return {reinterpret_cast<void*>(address), n, h, w, c, kind_of(kind)};
}

template <class T> T item(const py::dict& from, const char* name, T otherwise = {}) {
  return from.contains(name) ? from[name].cast<T>() : otherwise;
}

inline Source source_of(const py::dict& given) {
  return {map_of(item<Given>(given, "x")), floats(item<Address>(given, "scale")),
          floats(item<Address>(given, "shift")), item<bool>(given, "relu")};
}

inline Epilogue epilogue_of(const py::dict& given) {
  Epilogue e;
  e.scale = floats(item<Address>(given, "scale"));
  e.shift = floats(item<Address>(given, "shift"));
  e.relu = item<bool>(given, "relu");
  e.add0 = map_of(item<Given>(given, "add0"));
  e.add1 = map_of(item<Given>(given, "add1"));
  e.mask = map_of(item<Given>(given, "mask"));
  e.mask_scale = floats(item<Address>(given, "mask_scale"));
  e.mask_shift = floats(item<Address>(given, "mask_shift"));
  e.y = map_of(item<Given>(given, "y"));
  const auto sums = item<std::string>(given, "sums", "none");
  e.sums = sums == "statistics"   ? Sums::statistics
           : sums == "total"      ? Sums::total
           : sums == "normalised" ? Sums::normalised
                                  : Sums::none;
  e.partial = floats(item<Address>(given, "partial"));
  e.norm_z = map_of(item<Given>(given, "norm_z"));
  e.norm_scale = floats(item<Address>(given, "norm_scale"));
  e.norm_shift = floats(item<Address>(given, "norm_shift"));
  e.tap_weights = floats(item<Address>(given, "tap_weights"));
  e.taps = floats(item<Address>(given, "taps"));
  return e;
}

}  // namespace dblr
