#include "device.h"

#include <cuda_runtime.h>

namespace dblr {
namespace {

constexpr int kCount = 1000;  // not a multiple of the block, so that the bound is tested too
constexpr int kBlock = 256;

// registers: 16, spills: 0
__global__ void squares(int* out, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) out[i] = i * i;
}

// Remembers the current device and puts it back.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    if (cudaGetDevice(&before_) != cudaSuccess) before_ = -1;
    error = cudaSetDevice(device);
  }
  ~OnDevice() {
    if (before_ >= 0) cudaSetDevice(before_);
  }
  cudaError_t error;

 private:
  int before_ = -1;
};

std::string check(int* memory, int* host) {
  squares<<<(kCount + kBlock - 1) / kBlock, kBlock>>>(memory, kCount);
  cudaError_t error = cudaGetLastError();  // "no kernel image" appears here
  if (error == cudaSuccess) error = cudaMemcpy(host, memory, kCount * sizeof(int), cudaMemcpyDeviceToHost);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  for (int i = 0; i < kCount; i++) {
    if (host[i] != i * i) return "a test kernel wrote wrong values";
  }
  return "";
}

}  // namespace

std::vector<Device> devices(std::string& reason) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();  // leave no error behind for others
    reason = driver_version() == 0 ? "there is no NVIDIA driver" : cudaGetErrorString(error);
    return {};
  }
  std::vector<Device> all;
  for (int i = 0; i < count; i++) {
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, i) == cudaSuccess) {
      all.push_back({p.name, p.major, p.minor, p.totalGlobalMem, p.multiProcessorCount});
    }
  }
  if (all.empty()) reason = "the driver shows no device";
  return all;
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

int runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

std::string self_check(int device) {
  OnDevice on(device);
  if (on.error != cudaSuccess) {
    cudaGetLastError();
    return cudaGetErrorString(on.error);
  }
  int* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, kCount * sizeof(int));
  if (error != cudaSuccess) {
    cudaGetLastError();
    return cudaGetErrorString(error);
  }
  std::vector<int> host(kCount, -1);
  const std::string reason = check(memory, host.data());
  cudaFree(memory);
  return reason;
}

}  // namespace dblr
