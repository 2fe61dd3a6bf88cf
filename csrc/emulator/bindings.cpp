// _kernels_emulated: the launchers of csrc/cuda for tests, run by the emulator. Tensors are addresses and sizes.
#include <pybind11/pybind11.h>

#include "launch.h"

namespace py = pybind11;

// Each part of the kernels binds its own; what is not linked is left out.
[[gnu::weak]] void bind_conv(py::module_& m);
[[gnu::weak]] void bind_gradients(py::module_& m);
[[gnu::weak]] void bind_sm90(py::module_& m);

PYBIND11_MODULE(_kernels_emulated, m) {
  m.doc() = "The CUDA kernels of dblr_fast, run on the host.";
  m.def("set_seed", &emulated::set_seed, py::arg("seed"), "The order of threads and blocks follows from it.");
  m.def(
      "set_device",
      [](int major, int minor, int multiprocessors, std::size_t shared) {
        emulated::set_device({major, minor, multiprocessors, shared});
      },
      py::arg("major") = 9, py::arg("minor") = 0, py::arg("multiprocessors") = 4, py::arg("shared") = 232448,
      "What the emulated GPU is, from the next launch on.");
  if (bind_conv) bind_conv(m);
  if (bind_gradients) bind_gradients(m);
  if (bind_sm90) bind_sm90(m);
}
