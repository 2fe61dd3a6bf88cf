// The launchers of weight_gradient.cu, stem.cu and reconstruct.cu, for tests.
#include <array>

#include "given.h"

namespace py = pybind11;

using namespace dblr;

namespace {

Products products_of(const std::string& name) { return name == "tf32" ? Products::tf32 : Products::exact; }

void* memory(Address address) { return reinterpret_cast<void*>(address); }

}  // namespace

void bind_gradients(py::module_& m) {
  m.def("weight_gradient_partial_floats", &weight_gradient_partial_floats);
  m.def("weight_gradient", [](const Given& x, Address scale, Address shift, bool relu, const Given& dy, Address dw,
                              Address partial, const std::string& products) {
    weight_gradient({map_of(x), floats(scale), floats(shift), relu}, map_of(dy), floats(dw), floats(partial),
                    products_of(products), nullptr);
  });
  m.def("stem_bytes", [](Index frames, Index channels, const std::string& kind) {
    return stem_bytes(frames, channels, kind_of(kind));
  });
  // sizes: in, frames, channels.
  m.def("pack_stem", [](Address from, const std::string& from_kind, const std::array<Index, 3>& sizes,
                        const std::string& kind, Address to) {
    pack_stem(memory(from), kind_of(from_kind), sizes[0], sizes[1], sizes[2], kind_of(kind), memory(to), nullptr);
  });
  // shape and strides: n, frames, h, w.
  m.def("stem", [](Address x, const std::array<Index, 4>& shape, const std::array<Index, 4>& strides,
                   const std::string& x_kind, Address packed, Address bias, Index channels, const Given& y,
                   const std::string& products) {
    stem({memory(x), shape[0], shape[1], shape[2], shape[3], strides[0], strides[1], strides[2], strides[3],
          kind_of(x_kind)},
         {memory(packed), shape[1], channels, map_of(y).kind}, floats(bias), map_of(y), products_of(products), nullptr);
  });
  m.def("sum_taps", [](Address taps, Index planes, Index n, Index h, Index w, Address bias, Address y,
                       const std::string& kind) {
    sum_taps(floats(taps), planes, n, h, w, floats(bias), memory(y), kind_of(kind), nullptr);
  });
  m.def("taps_backward", [](Address grad, const std::string& grad_kind, Address w3, const Given& h, const Given& dh) {
    taps_backward(memory(grad), kind_of(grad_kind), floats(w3), map_of(h), map_of(dh), nullptr);
  });
  m.def("taps_gradient_partial_floats", &taps_gradient_partial_floats);
  m.def("taps_gradient", [](Address grad, const std::string& grad_kind, const Given& h, Address dw3, Address db3,
                            Address partial) {
    taps_gradient(memory(grad), kind_of(grad_kind), map_of(h), floats(dw3), floats(db3), floats(partial), nullptr);
  });
  m.def("channel_sums", [](const Given& map, Address partial) { channel_sums(map_of(map), floats(partial), nullptr); });
  m.def("relu_backward", [](const Given& grad, const Given& y, const Given& out) {
    relu_backward(map_of(grad), map_of(y), map_of(out), nullptr);
  });
}
