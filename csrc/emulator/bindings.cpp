// _kernels_emulated: the launchers of csrc/cuda for tests, run by the emulator. Tensors are addresses and sizes.
#include <pybind11/pybind11.h>

#include "controls.h"

namespace py = pybind11;

// Each part of the kernels binds its own; what is not linked is left out.
[[gnu::weak]] void bind_conv(py::module_& m);
[[gnu::weak]] void bind_gradients(py::module_& m);
[[gnu::weak]] void bind_sm90(py::module_& m);

PYBIND11_MODULE(_kernels_emulated, m) {
  m.doc() = "The CUDA kernels of dblr_fast, run on the host.";
  emulated::bind_controls(m);
  if (bind_conv) bind_conv(m);
  if (bind_gradients) bind_gradients(m);
  if (bind_sm90) bind_sm90(m);
}
