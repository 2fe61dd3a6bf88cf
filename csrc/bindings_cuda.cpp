// The CUDA library as Python sees it: dblr_fast._cuda. With DBLR_EMULATED it is _cuda_emulated, whose kernels run on the
// host and whose addresses are the host's.
//
// How things come in: a map (N, H, W, C) as (address, n, h, w, c, kind) or None, planes as (address, sizes, strides,
// kind), a weight as (address, kind, out, in), a vector of float32 as its address, kind as 0 (float32), 1 (float16),
// 2 (bfloat16), and the call as (stream, tf32, sm90). `allocate` gives an op its workspace: bytes in, address out.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <optional>
#include <sstream>
#include <tuple>

#include "cuda/network.h"
#include "cuda/ops.h"
#ifdef DBLR_EMULATED
#include "emulator/controls.h"
#else
#include "cuda/device.h"
#endif

namespace py = pybind11;
using namespace dblr;

namespace {

using Address = std::uintptr_t;

template <class T> T* pointer(Address address) { return reinterpret_cast<T*>(address); }
const float* vector(Address address) { return pointer<const float>(address); }

Kind kind_of(int code) {
  if (code < 0 || code > 2) throw std::invalid_argument("a kind must be 0 (float32), 1 (float16) or 2 (bfloat16).");
  return static_cast<Kind>(code);
}

using MapTuple = std::optional<std::tuple<Address, Index, Index, Index, Index, int>>;
using PlanesTuple = std::tuple<Address, std::array<Index, 4>, std::array<Index, 4>, int>;
using WeightTuple = std::tuple<Address, int, Index, Index>;
using CallTuple = std::tuple<Address, bool, bool>;
using LayerTuple = std::tuple<WeightTuple, std::array<Address, 5>>;  // bias, gamma, beta, mean, var

Map map_of(const MapTuple& given) {
  if (!given) return {};
  const auto& [address, n, h, w, c, kind] = *given;
  if (address % 16 != 0) throw std::invalid_argument("a map must be aligned to 16 bytes.");
  return {pointer<void>(address), n, h, w, c, kind_of(kind)};
}

Strided planes_of(const PlanesTuple& given) {
  const auto& [address, sizes, strides, kind] = given;
  return {pointer<const void>(address), sizes[0], sizes[1], sizes[2], sizes[3], strides[0], strides[1], strides[2],
          strides[3], kind_of(kind)};
}

Weights weight_of(const WeightTuple& given) {
  const auto& [address, kind, out, in] = given;
  return {pointer<const void>(address), kind_of(kind), out, in};
}

Call call_of(const CallTuple& given) {
  const auto& [stream, tf32, sm90] = given;
  return {pointer<void>(stream), tf32 ? Products::tf32 : Products::exact, sm90};
}

ConvNorm layer_of(const LayerTuple& given) {
  const auto& [weight, v] = given;
  return {weight_of(weight), vector(v[0]), vector(v[1]), vector(v[2]), vector(v[3]), vector(v[4])};
}

ConvNormGradient gradient_of(const std::array<Address, 4>& d) {
  return {pointer<float>(d[0]), pointer<float>(d[1]), pointer<float>(d[2]), pointer<float>(d[3])};
}

// Asks the op what it needs, has that allocated, and launches it without the interpreter's lock.
template <class Op> void with_workspace(const py::function& allocate, const Op& op) {
  Workspace measure;
  op(measure);
  const std::size_t bytes = measure.used();
  Workspace workspace(pointer<void>(allocate(bytes).template cast<Address>()), bytes);
  const py::gil_scoped_release release;
  op(workspace);
}

void bind_ops(py::module_& m) {
  m.def("conv_bn_act", [](const CallTuple& call, const py::function& allocate, const MapTuple& x,
                          const LayerTuple& layer, const MapTuple& residual, bool relu, bool training, float eps,
                          const MapTuple& y, const MapTuple& z, Address mean, Address var) {
    with_workspace(allocate, [&](Workspace& workspace) {
      conv_bn_act(call_of(call), workspace, map_of(x), layer_of(layer), map_of(residual), relu, training, eps, map_of(y),
                  map_of(z), pointer<float>(mean), pointer<float>(var));
    });
  });
  m.def("conv_bn_act_backward", [](const CallTuple& call, const py::function& allocate, const MapTuple& grad,
                                   const MapTuple& x, const LayerTuple& layer, const MapTuple& z, bool relu,
                                   bool training, float eps, const MapTuple& dx, const std::array<Address, 4>& gradient) {
    with_workspace(allocate, [&](Workspace& workspace) {
      conv_bn_act_backward(call_of(call), workspace, map_of(grad), map_of(x), layer_of(layer), map_of(z), relu, training,
                           eps, map_of(dx), gradient_of(gradient));
    });
  });
  m.def("residual_block", [](const CallTuple& call, const py::function& allocate, const MapTuple& x,
                             const LayerTuple& first, const LayerTuple& second, bool training, float eps,
                             const MapTuple& y, const MapTuple& z1, const MapTuple& z2,
                             const std::array<Address, 4>& statistics) {
    float* const s[4] = {pointer<float>(statistics[0]), pointer<float>(statistics[1]), pointer<float>(statistics[2]),
                         pointer<float>(statistics[3])};
    with_workspace(allocate, [&](Workspace& workspace) {
      residual_block(call_of(call), workspace, map_of(x), layer_of(first), layer_of(second), training, eps, map_of(y),
                     map_of(z1), map_of(z2), s);
    });
  });
  m.def("residual_block_backward",
        [](const CallTuple& call, const py::function& allocate, const MapTuple& grad, const MapTuple& x,
           const LayerTuple& first, const MapTuple& z1, const LayerTuple& second, const MapTuple& z2, bool training,
           float eps, const MapTuple& dx, const std::array<Address, 4>& gradient1,
           const std::array<Address, 4>& gradient2) {
          with_workspace(allocate, [&](Workspace& workspace) {
            residual_block_backward(call_of(call), workspace, map_of(grad), map_of(x), layer_of(first), map_of(z1),
                                    layer_of(second), map_of(z2), training, eps, map_of(dx), gradient_of(gradient1),
                                    gradient_of(gradient2));
          });
        });
  m.def("stem", [](const CallTuple& call, const py::function& allocate, const PlanesTuple& x, const WeightTuple& w1,
                   Address b1, const WeightTuple& w2, Address b2, const MapTuple& y) {
    with_workspace(allocate, [&](Workspace& workspace) {
      stem_forward(call_of(call), workspace, planes_of(x), {weight_of(w1), weight_of(w2), vector(b1), vector(b2)},
                   map_of(y));
    });
  });
  m.def("stem_backward", [](const CallTuple& call, const py::function& allocate, const MapTuple& grad,
                            const PlanesTuple& x, const MapTuple& y, const WeightTuple& w1, Address b1,
                            const WeightTuple& w2, const MapTuple& dx, const std::array<Address, 4>& d) {
    with_workspace(allocate, [&](Workspace& workspace) {
      stem_backward(call_of(call), workspace, map_of(grad), planes_of(x), map_of(y),
                    {weight_of(w1), weight_of(w2), vector(b1), nullptr}, map_of(dx),
                    {pointer<float>(d[0]), pointer<float>(d[1]), pointer<float>(d[2]), pointer<float>(d[3])});
    });
  });
  m.def("reconstruct", [](const CallTuple& call, const py::function& allocate, const MapTuple& x, const WeightTuple& w1,
                          Address b1, const WeightTuple& w2, Address b2, Address taps, Address b3, Address y, int y_kind,
                          const MapTuple& h1, const MapTuple& h2) {
    with_workspace(allocate, [&](Workspace& workspace) {
      reconstruct(call_of(call), workspace, map_of(x),
                  {weight_of(w1), weight_of(w2), vector(b1), vector(b2), vector(taps), vector(b3)}, pointer<void>(y),
                  kind_of(y_kind), map_of(h1), map_of(h2));
    });
  });
  m.def("reconstruct_backward",
        [](const CallTuple& call, const py::function& allocate, Address grad, int grad_kind, const MapTuple& x,
           const MapTuple& h1, const MapTuple& h2, const WeightTuple& w1, const WeightTuple& w2, Address taps,
           const MapTuple& dx, const std::array<Address, 6>& d) {
          with_workspace(allocate, [&](Workspace& workspace) {
            reconstruct_backward(call_of(call), workspace, pointer<const void>(grad), kind_of(grad_kind), map_of(x),
                                 map_of(h1), map_of(h2),
                                 {weight_of(w1), weight_of(w2), nullptr, nullptr, vector(taps), nullptr}, map_of(dx),
                                 {pointer<float>(d[0]), pointer<float>(d[1]), pointer<float>(d[2]), pointer<float>(d[3]),
                                  pointer<float>(d[4]), pointer<float>(d[5])});
          });
        });
  m.def(
      "copy_map",
      [](Address stream, const PlanesTuple& from, const MapTuple& to) {
        const Strided source = planes_of(from);
        const Map map = map_of(to);
        const py::gil_scoped_release release;
        copy_map(source, map, pointer<void>(stream));
      },
      py::arg("stream"), py::arg("from"), py::arg("to"), "Between types, widths and layouts; missing channels are zero.");
}

void bind_network(py::module_& m) {
  using Pair = std::array<Address, 2>;  // weight, bias
  py::class_<CudaNetwork>(m, "Network", py::module_local(), "A DBLRNet in evaluation mode, batch norm folded; addresses of float32 tensors.")
      .def(py::init([](int kind, bool tf32, bool sm90, const std::array<Index, 4>& shape, const std::array<Pair, 2>& stem,
                       const std::vector<Pair>& body, const std::array<Pair, 2>& tail, Address taps, Address tap_bias,
                       bool tail_skip) {
             const auto layer = [](const Pair& p) { return CudaNetwork::Layer{vector(p[0]), vector(p[1])}; };
             CudaNetwork::Weights w{{layer(stem[0]), layer(stem[1])}, {}, {layer(tail[0]), layer(tail[1])},
                                vector(taps), vector(tap_bias), tail_skip};
             for (const Pair& p : body) w.body.push_back(layer(p));
             return CudaNetwork(kind_of(kind), tf32 ? Products::tf32 : Products::exact, sm90,
                            {shape[0], shape[1], shape[2], shape[3]}, w);
           }),
           py::arg("kind"), py::arg("tf32"), py::arg("sm90"), py::arg("shape"), py::arg("stem"), py::arg("body"),
           py::arg("tail"), py::arg("taps"), py::arg("tap_bias"), py::arg("tail_skip"))
      .def("packed_bytes", &CudaNetwork::packed_bytes)
      .def(
          "pack", [](CudaNetwork& self, Address memory, Address stream) { self.pack(pointer<void>(memory), pointer<void>(stream)); },
          py::arg("memory"), py::arg("stream"), "Writes the packed weights; biases and taps stay where they are.")
      .def("workspace_bytes", &CudaNetwork::workspace_bytes, py::arg("n"), py::arg("h"), py::arg("w"))
      .def(
          "run",
          [](const CudaNetwork& self, Address stream, const PlanesTuple& x, Address workspace, std::size_t bytes, Address y) {
            const Strided planes = planes_of(x);
            if (planes.c != self.shape().frames) throw std::invalid_argument("x must have the network's frames.");
            if (bytes < self.workspace_bytes(planes.n, planes.h, planes.w) || workspace % 16 != 0) {
              throw std::invalid_argument("the workspace is too small for a picture of this size, or not aligned.");
            }
            const py::gil_scoped_release release;
            self.run(planes, pointer<void>(workspace), pointer<float>(y), pointer<void>(stream));
          },
          py::arg("stream"), py::arg("x"), py::arg("workspace"), py::arg("bytes"), py::arg("y"),
          "One picture set: planes in, dense float32 (n, h, w) out. Launches alone, capturable in a CUDA graph.");
}

std::vector<std::string> built_archs() {
  std::istringstream words(DBLR_ARCHS);
  std::vector<std::string> all;
  for (std::string word; words >> word;) all.push_back(word);
  return all;
}

py::dict facts() {
  const DeviceFacts& f = device_facts();
  py::dict d;
  d["capability"] = py::make_tuple(f.major, f.minor);
  d["multiprocessors"] = f.multiprocessors;
  d["shared"] = f.shared;
  return d;
}

#ifdef DBLR_EMULATED

void bind_device(py::module_& m) { emulated::bind_controls(m); }

#else

py::dict build_info() {
  py::dict d;
  d["nvcc"] = DBLR_NVCC;
  d["runtime"] = runtime_version();
  return d;
}

// ([{name, capability, memory, multiprocessors}], why there is none or None)
py::tuple found_devices() {
  std::string reason;
  const std::vector<Device> found = devices(reason);
  py::list all;
  for (const Device& device : found) {
    py::dict d;
    d["name"] = device.name;
    d["capability"] = py::make_tuple(device.major, device.minor);
    d["memory"] = device.memory;
    d["multiprocessors"] = device.multiprocessors;
    all.append(d);
  }
  return py::make_tuple(all, found.empty() ? py::object(py::str(reason)) : py::object(py::none()));
}

py::object checked(int device) {
  std::string reason;
  {
    py::gil_scoped_release release;
    reason = self_check(device);
  }
  return reason.empty() ? py::object(py::none()) : py::object(py::str(reason));
}

void bind_device(py::module_& m) {
  m.def("build_info", &build_info, "Version of nvcc, and of the CUDA runtime linked in.");
  m.def("driver_version", &driver_version, "The newest CUDA that the driver serves (13000 is 13.0), 0 without one.");
  m.def("devices", &found_devices, "([{name, capability, memory, multiprocessors}], why there is none or None).");
  m.def("self_check", &checked, py::arg("device"),
        "Runs a small kernel on a GPU: None when it wrote what it should, else what went wrong.");
}

#endif

}  // namespace

#ifdef DBLR_EMULATED
PYBIND11_MODULE(_cuda_emulated, m) {
  m.doc() = "The CUDA library of dblr_fast, run on the host.";
#else
PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The CUDA library of dblr_fast. Importing it touches no driver.";
#endif
  m.def("built_archs", &built_archs, "Compute capabilities it was built for; '+ptx' for what newer GPUs compile.");
  m.def("device_facts", &facts, "{capability, multiprocessors, shared} of the current device.");
  bind_device(m);
  bind_ops(m);
  bind_network(m);
}
