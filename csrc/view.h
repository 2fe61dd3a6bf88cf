// A tensor as Python hands it over: (address, bytes of an element, shape, strides in elements), or None.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "cpu/tensor.h"

namespace dblr {

struct View {
  void* data = nullptr;
  std::size_t element = 0;  // bytes: 8 float64, 4 float32, 2 bfloat16
  int dims = 0;
  std::array<Index, 5> shape{}, stride{};
  bool given = false;
};

inline std::string text(const Index* shape, int dims) {
  std::string s = "(";
  for (int i = 0; i < dims; i++) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + ")";
}

// The name of the dtype with elements of so many bytes.
inline std::string dtype_of(std::size_t element) {
  return element == 8 ? "float64" : element == 4 ? "float32" : "bfloat16";
}

inline void check_dtype(const View& v, const char* name, std::size_t element) {
  if (v.element == element) return;
  throw std::invalid_argument(std::string(name) + " must have dtype " + dtype_of(element) + ", got " +
                              dtype_of(v.element) + ".");
}

// The address of a contiguous tensor of the wanted shape. Refusals name the tensor.
template <class T> T* array(const View& v, const char* name, std::initializer_list<Index> shape) {
  if (!v.given) throw std::invalid_argument(std::string(name) + " must be a tensor, got None.");
  check_dtype(v, name, sizeof(T));
  bool right = v.dims == static_cast<int>(shape.size());
  Index step = 1;
  for (int i = v.dims - 1; right && i >= 0; i--) {
    right = v.shape[i] == shape.begin()[i] && (v.shape[i] == 1 || v.stride[i] == step);
    step *= v.shape[i];
  }
  if (!right) {
    throw std::invalid_argument(std::string(name) + " must be contiguous of shape " +
                                text(shape.begin(), static_cast<int>(shape.size())) + ", got shape " +
                                text(v.shape.data(), v.dims) + " with strides " + text(v.stride.data(), v.dims) + ".");
  }
  return static_cast<T*>(v.data);
}

// A map (N, C, H, W) of any strides; -1 in `shape` takes any size.
template <class T> Map<T> any_map(const View& v, const char* name, std::array<Index, 4> shape = {-1, -1, -1, -1}) {
  if (!v.given) throw std::invalid_argument(std::string(name) + " must be a tensor, got None.");
  check_dtype(v, name, sizeof(T));
  bool right = v.dims == 4;
  for (int i = 0; right && i < 4; i++) right = shape[i] < 0 || v.shape[i] == shape[i];
  if (!right) {
    throw std::invalid_argument(std::string(name) + " must have shape " + text(shape.data(), 4) + ", got " +
                                text(v.shape.data(), v.dims) + ".");
  }
  return {static_cast<T*>(v.data), v.shape[0], v.shape[1], v.shape[2], v.shape[3],
          v.stride[0], v.shape[1] == 1 ? 1 : v.stride[1], v.stride[2], v.stride[3]};
}

// As above, with unit channel stride (channels_last).
template <class T> Map<T> map(const View& v, const char* name, std::array<Index, 4> shape = {-1, -1, -1, -1}) {
  const Map<T> m = any_map<T>(v, name, shape);
  if (m.sc != 1) {
    throw std::invalid_argument(std::string(name) + " must be channels_last, got strides " +
                                text(v.stride.data(), v.dims) + ".");
  }
  return m;
}

template <class T> Map<T> optional_map(const View& v, const char* name, std::array<Index, 4> shape) {
  return v.given ? map<T>(v, name, shape) : Map<T>{};
}

}  // namespace dblr

namespace pybind11::detail {
template <> struct type_caster<dblr::View> {
  PYBIND11_TYPE_CASTER(dblr::View, const_name("tuple[int, int, tuple, tuple] | None"));
  bool load(handle source, bool) {
    value = {};
    if (source.is_none()) return true;
    if (!isinstance<tuple>(source)) return false;
    const auto t = reinterpret_borrow<tuple>(source);
    if (t.size() != 4) return false;
    const auto shape = t[2].cast<tuple>(), stride = t[3].cast<tuple>();
    if (shape.size() > 5 || shape.size() != stride.size()) return false;
    value.data = reinterpret_cast<void*>(t[0].cast<std::uintptr_t>());
    value.element = t[1].cast<std::size_t>();
    value.dims = static_cast<int>(shape.size());
    for (int i = 0; i < value.dims; i++) {
      value.shape[i] = shape[i].cast<dblr::Index>();
      value.stride[i] = stride[i].cast<dblr::Index>();
    }
    value.given = true;
    return true;
  }
};
}  // namespace pybind11::detail
