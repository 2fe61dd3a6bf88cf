// Runs kernels on the host: a block's threads are fibers, in shuffled order between barriers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace emulated {

struct Grid {
  unsigned x, y, z;      // blocks
  unsigned threads;      // of a block
  std::size_t shared;    // bytes of dynamic shared memory
  unsigned cluster = 1;  // blocks of a cluster, along x
};

// Runs `body` once for every thread. Returns "", or one sentence with the first fault.
std::string run(const char* name, const Grid& grid, const std::function<void()>& body);

struct Device {
  int major = 9, minor = 0;
  int multiprocessors = 4;
  std::size_t shared = 232448;
};
Device device();
void set_device(const Device& device);

// The order of threads and blocks follows from the seed and the number of launches since it was set.
void set_seed(std::uint64_t seed);

}  // namespace emulated
