#include "launch.h"

#include <map>
#include <mutex>
#include <utility>

namespace dblr {

#ifdef DBLR_EMULATED

const DeviceFacts& device_facts() {
  static thread_local DeviceFacts facts;
  const emulated::Device device = emulated::device();
  facts = {device.major, device.minor, device.multiprocessors, device.shared};
  return facts;
}

#else

void check(const char* name, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // leave no error behind for others
  const char* advice = error == cudaErrorNoKernelImageForDevice
                           ? "; build dblr_fast for this GPU (DBLR_FAST_CUDA_ARCHS) or take the torch backend"
                           : "";
  throw DeviceError(std::string(name) + " failed on the GPU: " + cudaGetErrorString(error) + advice);
}

void allow_shared(const char* name, const void* kernel, std::size_t bytes) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, std::size_t> allowed;
  int device = 0;
  check(name, cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  std::size_t& now = allowed[{kernel, device}];
  if (now >= bytes) return;
  check(name, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  now = bytes;
}

int ask_clusters(const char* name, const void* kernel, const Launch& how) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int> known;
  int device = 0;
  check(name, cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find({kernel, device});
  if (found != known.end()) return found->second;
  if (how.shared > 48 * 1024) allow_shared(name, kernel, how.shared);
  Launch one = how;
  one.x = how.cluster;
  int count = 0;
  const LaunchConfig given(one, nullptr);
  check(name, cudaOccupancyMaxActiveClusters(&count, kernel, &given.config));
  known[{kernel, device}] = count;
  return count;
}

const DeviceFacts& device_facts() {
  static std::mutex mutex;
  static std::map<int, DeviceFacts> known;  // references into a map stay valid
  int device = 0;
  check("asking for the current device", cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  const auto ask = [&](cudaDeviceAttr what) {
    int value = 0;
    check("asking the device's attributes", cudaDeviceGetAttribute(&value, what, device));
    return value;
  };
  const DeviceFacts facts{ask(cudaDevAttrComputeCapabilityMajor), ask(cudaDevAttrComputeCapabilityMinor),
                          ask(cudaDevAttrMultiProcessorCount),
                          static_cast<std::size_t>(ask(cudaDevAttrMaxSharedMemoryPerBlockOptin))};
  return known.emplace(device, facts).first->second;
}

#endif

void require_capability(int least) {
  const DeviceFacts& facts = device_facts();
  const int has = facts.major * 10 + facts.minor;
  if (has >= least) return;
  const auto dotted = [](int v) { return std::to_string(v / 10) + "." + std::to_string(v % 10); };
  throw DeviceError("these kernels need a GPU of compute capability " + dotted(least) + " or later, this one has " +
                    dotted(has) + "; take the torch backend");
}

void require_hopper(const char* name, const char* otherwise) {
  require_capability(90);
  const DeviceFacts& facts = device_facts();
  if (facts.major == 9 && facts.minor == 0) return;
  throw DeviceError(std::string(name) + " runs on GPUs of compute capability 9.0 alone, this one has " +
                    std::to_string(facts.major) + "." + std::to_string(facts.minor) + "; take " + otherwise);
}

}  // namespace dblr
