// The launchers of conv3x3_sm90.cu and weight_gradient_sm90.cu, for tests.
#include <array>

#include "given.h"

namespace py = pybind11;

using namespace dblr;

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
