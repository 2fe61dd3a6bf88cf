// The CUDA library as Python sees it: dblr_fast._cuda.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>

#include "cuda/device.h"

namespace py = pybind11;

namespace {

std::vector<std::string> built_archs() {
  std::istringstream words(DBLR_ARCHS);
  std::vector<std::string> all;
  for (std::string word; words >> word;) all.push_back(word);
  return all;
}

py::dict build_info() {
  py::dict d;
  d["nvcc"] = DBLR_NVCC;
  d["runtime"] = dblr::runtime_version();
  return d;
}

// ([{name, capability, memory, multiprocessors}], why there is none or None)
py::tuple devices() {
  std::string reason;
  const std::vector<dblr::Device> found = dblr::devices(reason);
  py::list all;
  for (const dblr::Device& device : found) {
    py::dict d;
    d["name"] = device.name;
    d["capability"] = py::make_tuple(device.major, device.minor);
    d["memory"] = device.memory;
    d["multiprocessors"] = device.multiprocessors;
    all.append(d);
  }
  return py::make_tuple(all, found.empty() ? py::object(py::str(reason)) : py::object(py::none()));
}

py::object self_check(int device) {
  std::string reason;
  {
    py::gil_scoped_release release;
    reason = dblr::self_check(device);
  }
  return reason.empty() ? py::object(py::none()) : py::object(py::str(reason));
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The CUDA library of dblr_fast. Importing it touches no driver.";
  m.def("built_archs", &built_archs, "Compute capabilities it was built for; '+ptx' for what newer GPUs compile.");
  m.def("build_info", &build_info, "Version of nvcc, and of the CUDA runtime linked in.");
  m.def("driver_version", &dblr::driver_version, "The newest CUDA that the driver serves (13000 is 13.0), 0 without one.");
  m.def("devices", &devices, "([{name, capability, memory, multiprocessors}], why there is none or None).");
  m.def("self_check", &self_check, py::arg("device"),
        "Runs a small kernel on a GPU: None when it wrote what it should, else what went wrong.");
}
