// The launchers of conv3x3_sm90.cu and weight_gradient_sm90.cu, for tests: a map is (address, n, h, w, c, kind) or
// None, other arrays are addresses, 0 where there is none.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>

#include "../cuda/kernels.h"

namespace py = pybind11;

using namespace dblr;

namespace {

using Address = std::uintptr_t;
using Given = std::optional<std::tuple<Address, Index, Index, Index, Index, std::string>>;

Kind kind_of(const std::string& name) {
  return name == "f32" ? Kind::f32 : name == "f16" ? Kind::f16 : name == "bf16" ? Kind::bf16
             : throw std::invalid_argument("kind must be f32, f16 or bf16, got " + name + ".");
}

float* floats(Address address) { return reinterpret_cast<float*>(address); }

Map map_of(const Given& given) {
  if (!given) return {};
  const auto& [address, n, h, w, c, kind] = *given;
  return {reinterpret_cast<void*>(address), n, h, w, c, kind_of(kind)};
}

template <class T> T item(const py::dict& from, const char* name, T otherwise = {}) {
  return from.contains(name) ? from[name].cast<T>() : otherwise;
}

Source source_of(const py::dict& given) {
  return {map_of(item<Given>(given, "x")), floats(item<Address>(given, "scale")),
          floats(item<Address>(given, "shift")), item<bool>(given, "relu")};
}

Epilogue epilogue_of(const py::dict& given) {
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
  const std::string sums = item<std::string>(given, "sums");
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

}  // namespace

void bind_sm90(py::module_& m) {
  m.def("conv3x3_sm90_bytes", &conv3x3_sm90_bytes);
  m.def("pack_weights_sm90", [](Address from, const std::string& from_kind, Index out, Index in, bool adjoint,
                                const std::string& kind, Address to) {
    pack_weights_sm90(reinterpret_cast<void*>(from), kind_of(from_kind), out, in, adjoint, kind_of(kind),
                      reinterpret_cast<void*>(to), nullptr);
  });
  m.def("conv3x3_sm90_takes", [](const py::dict& source, Index out, const py::dict& epilogue) {
    return conv3x3_sm90_takes(source_of(source), out, epilogue_of(epilogue));
  });
  // weights: (address, out, in, kind).
  m.def("conv3x3_sm90", [](const py::dict& source, const std::tuple<Address, Index, Index, std::string>& weights,
                           const py::dict& epilogue) {
    const auto& [address, out, in, kind] = weights;
    conv3x3_sm90(source_of(source), {reinterpret_cast<void*>(address), out, in, kind_of(kind)}, epilogue_of(epilogue),
                 nullptr);
  });
  m.def("weight_gradient_sm90_takes", [](const Given& x, const Given& dy) {
    return weight_gradient_sm90_takes(map_of(x), map_of(dy));
  });
  // shape: n, h, w, out, in.
  m.def("weight_gradient_sm90_partial_floats", [](const std::array<Index, 5>& shape, Index blocks) {
    return weight_gradient_sm90_partial_floats(shape[0], shape[1], shape[2], shape[3], shape[4], blocks);
  }, py::arg("shape"), py::arg("blocks") = kGradientBlocks);
  m.def("weight_gradient_sm90", [](const Given& x, const Given& dy, Address dw, Address partial, Index blocks) {
    weight_gradient_sm90(map_of(x), map_of(dy), floats(dw), floats(partial), nullptr, blocks);
  }, py::arg("x"), py::arg("dy"), py::arg("dw"), py::arg("partial"), py::arg("blocks") = kGradientBlocks);
}
