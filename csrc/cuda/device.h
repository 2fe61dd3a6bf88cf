// What GPUs there are, and whether this build's code runs on them.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace dblr {

struct Device {
  std::string name;
  int major, minor;  // compute capability
  std::size_t memory;  // bytes
  int multiprocessors;
};

// The GPUs that the driver shows; when there is none, `reason` says why.
std::vector<Device> devices(std::string& reason);

// Versions as CUDA counts them (13000 is 13.0); the driver's is 0 when there is none.
int driver_version();
int runtime_version();

// Runs a small kernel on a GPU and compares what it wrote: empty when right, else what went wrong.
std::string self_check(int device);

}  // namespace dblr
