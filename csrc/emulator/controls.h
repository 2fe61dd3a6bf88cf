// What tests may ask of the emulator, as functions of a Python module.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>

#include "launch.h"

namespace emulated {

inline void bind_controls(pybind11::module_& m) {
  namespace py = pybind11;
  m.def("set_seed", &set_seed, py::arg("seed"), "The order of threads and blocks follows from it.");
  m.def(
      "set_device",
      [](int major, int minor, int multiprocessors, std::size_t shared, int group) {
        set_device({major, minor, multiprocessors, shared, group});
      },
      py::arg("major") = 9, py::arg("minor") = 0, py::arg("multiprocessors") = 4, py::arg("shared") = 232448,
      py::arg("group") = 1 << 30, "What the emulated GPU is, from the next launch on.");
  m.def("capture_begin", &capture_begin, "Launches are kept from now on, and not run.");
  m.def("captured", &captured, "How many have been kept so far.");
  m.def("capture_end", &capture_end, "Launches run again from now on.");
  m.def(
      "replay",
      [](std::size_t first, std::size_t last) {
        const std::string fault = replay(first, last);
        if (!fault.empty()) throw std::runtime_error(fault);
      },
      py::arg("first"), py::arg("last"), "Runs what was kept, from the first launch up to the last.");
  m.def("refuse_after", &refuse_after, py::arg("launches"), "The launch after so many more fails; negative: none.");
  m.def(
      "last_grid", [] { return py::make_tuple(last_grid().x, last_grid().cluster); },
      "Blocks along x of the latest launch, and of each of its clusters.");
  m.def(
      "streams",
      [] {
        py::set handles;
        for (const void* stream : streams()) handles.add(reinterpret_cast<std::uintptr_t>(stream));
        return handles;
      },
      "The streams that launches named since this was last asked.");
}

}  // namespace emulated
