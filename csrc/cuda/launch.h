// Starting kernels from host code, on a GPU or under the emulator (the same launchers serve both).
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef DBLR_EMULATED
#include "../emulator/launch.h"
#else
#include <cuda_runtime.h>
#endif

namespace dblr {

using Index = std::ptrdiff_t;
using Stream = void*;  // a cudaStream_t

// What went wrong on the device, as one sentence.
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Launch {
  unsigned x = 1, y = 1, z = 1;  // blocks
  unsigned threads = 128;        // of a block
  std::size_t shared = 0;        // bytes of dynamic shared memory
  unsigned cluster = 1;          // blocks of a cluster, along x (sm_90)
};

// What launchers need to know of the current device. Asked of the driver once for each device.
struct DeviceFacts {
  int major = 0, minor = 0;
  int multiprocessors = 0;
  std::size_t shared = 0;  // bytes that a block can have
};
const DeviceFacts& device_facts();

// Throws DeviceError unless the current device can run kernels that need compute capability `least` (80, 90).
void require_capability(int least);
// Throws DeviceError unless it is of compute capability 9.0: code for sm_90a runs on nothing newer. `otherwise`: what to
// take instead of `name`.
void require_hopper(const char* name, const char* otherwise);

#ifdef DBLR_EMULATED

template <class P>
void launch(const char* name, void (*kernel)(P), const Launch& how, const P& parameters, Stream stream) {
  const std::string fault = emulated::launch(name, {how.x, how.y, how.z, how.threads, how.shared, how.cluster}, stream,
                                             [kernel, parameters] { kernel(parameters); });
  if (!fault.empty()) throw DeviceError(fault);
}

template <class P> int clusters_at_once(const char*, void (*)(P), const Launch& how) {
  return emulated::clusters_at_once(how.cluster, how.shared);
}

#else

// Throws DeviceError naming the kernel unless `error` is cudaSuccess.
void check(const char* name, cudaError_t error);
// A launch as the driver wants it. Points into itself.
struct LaunchConfig {
  LaunchConfig(const Launch& how, Stream stream) {
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = how.cluster;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    config.gridDim = dim3(how.x, how.y, how.z);
    config.blockDim = dim3(how.threads);
    config.dynamicSmemBytes = how.shared;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &cluster;
    config.numAttrs = how.cluster > 1 ? 1 : 0;
  }
  LaunchConfig(const LaunchConfig&) = delete;
  cudaLaunchAttribute cluster{};
  cudaLaunchConfig_t config{};
};

// Lets a kernel use more than 48 KiB of dynamic shared memory (once for each kernel, device and size).
void allow_shared(const char* name, const void* kernel, std::size_t bytes);
// As below.
int ask_clusters(const char* name, const void* kernel, const Launch& how);

// Kernels take one parameter, a struct by value. Nothing is launched for an empty grid.
template <class P>
void launch(const char* name, void (*kernel)(P), const Launch& how, const P& parameters, Stream stream) {
  if (how.x == 0 || how.y == 0 || how.z == 0) return;
  if (how.shared > 48 * 1024) allow_shared(name, reinterpret_cast<const void*>(kernel), how.shared);
  const LaunchConfig given(how, stream);
  check(name, cudaLaunchKernelEx(&given.config, kernel, parameters));
}

// How many clusters as `how` wants them the current device runs at once, whatever the grid; asked of the driver once
// for each kernel and device.
template <class P> int clusters_at_once(const char* name, void (*kernel)(P), const Launch& how) {
  return ask_clusters(name, reinterpret_cast<const void*>(kernel), how);
}

#endif

}  // namespace dblr
