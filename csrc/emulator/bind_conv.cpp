// The launchers of pack.cu, conv3x3.cu and norm.cu, for tests.
#include <array>

#include "given.h"

namespace py = pybind11;

void bind_conv(py::module_& m) {
  using namespace dblr;
  m.def("packed_bytes", [](Index out, Index in, const std::string& kind) {
    return packed_bytes(out, in, kind_of(kind));
  });
  m.def("pack_weights", [](Address from, const std::string& from_kind, Index out, Index in, bool adjoint,
                           const std::string& kind, Address to) {
    const PackedWeights packed = pack_weights(reinterpret_cast<void*>(from), kind_of(from_kind), out, in, adjoint,
                                              kind_of(kind), reinterpret_cast<void*>(to), nullptr);
    return std::make_pair(packed.out, packed.in);
  });
  m.def("tiles_of", [](Index n, Index h, Index w) { return tiles_of(n, h, w); });
  m.def("conv_partial_floats", &conv_partial_floats);
  // weights: (address, out, in, kind); products: "exact" or "tf32".
  m.def("conv3x3", [](const py::dict& source, const std::tuple<Address, Index, Index, std::string>& weights,
                      const py::dict& epilogue, const std::string& products) {
    const auto& [address, out, in, kind] = weights;
    conv3x3(source_of(source), {reinterpret_cast<void*>(address), out, in, kind_of(kind)}, epilogue_of(epilogue),
            products == "tf32" ? Products::tf32 : Products::exact, nullptr);
  });
  // shape: n, h, w, c; vectors: gamma, beta; to: mean, var, then as from norm_coefficients.
  m.def("merge_statistics", [](Address partial, const std::array<Index, 4>& shape,
                               const std::array<Address, 2>& vectors, float eps, const std::array<Address, 6>& to,
                               bool by_rows) {
    merge_statistics(floats(partial), shape[0], shape[1], shape[2], shape[3], floats(vectors[0]), floats(vectors[1]),
                     eps, floats(to[0]), floats(to[1]), {floats(to[2]), floats(to[3]), floats(to[4]), floats(to[5])},
                     nullptr, by_rows ? kTiling90 : Tiling{});
  }, py::arg("partial"), py::arg("shape"), py::arg("vectors"), py::arg("eps"), py::arg("to"),
        py::arg("by_rows") = false);
  // vectors: gamma, beta, bias, mean, var; to: scale, shift, invstd, offset.
  m.def("norm_coefficients", [](const std::array<Address, 5>& vectors, float eps, bool training, Index c,
                                const std::array<Address, 4>& to) {
    norm_coefficients({floats(vectors[0]), floats(vectors[1]), floats(vectors[2]), floats(vectors[3]),
                       floats(vectors[4]), eps, training},
                      c, {floats(to[0]), floats(to[1]), floats(to[2]), floats(to[3])}, nullptr);
  });
  m.def("norm_apply", [](const Given& z, Address scale, Address shift, bool relu, const Given& add, const Given& y) {
    norm_apply(map_of(z), floats(scale), floats(shift), relu, map_of(add), map_of(y), nullptr);
  });
  // to: scale, shift, invstd, offset as from norm_coefficients.
  m.def("norm_backward_sums", [](const Given& grad, const Given& z, const std::array<Address, 4>& norm, bool relu,
                                 Address partial) {
    norm_backward_sums(map_of(grad), map_of(z), floats(norm[0]), floats(norm[1]), floats(norm[2]), floats(norm[3]),
                       relu, floats(partial), nullptr);
  });
  m.def("merge_sums", [](Address partial, Index tiles, Index c, Address first, Address second) {
    merge_sums(floats(partial), tiles, c, floats(first), floats(second), nullptr);
  });
  m.def("norm_backward_apply", [](const Given& grad, const Given& z, const std::array<Address, 4>& norm, Address dbeta,
                                  Address dgamma, bool relu, bool training, const Given& dz) {
    norm_backward_apply(map_of(grad), map_of(z), floats(norm[0]), floats(norm[1]), floats(norm[2]), floats(norm[3]),
                        floats(dbeta), floats(dgamma), relu, training, map_of(dz), nullptr);
  });
  // shape and strides: n, c, h, w.
  m.def("copy_map", [](Address from, const std::array<Index, 4>& shape, const std::array<Index, 4>& strides,
                       const std::string& kind, const Given& to) {
    copy_map({reinterpret_cast<void*>(from), shape[0], shape[1], shape[2], shape[3], strides[0], strides[1],
              strides[2], strides[3], kind_of(kind)},
             map_of(to), nullptr);
  });
}
