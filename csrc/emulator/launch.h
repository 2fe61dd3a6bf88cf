// Runs kernels on the host: a block's threads are fibers, in shuffled order between barriers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <set>
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

// What launchers call: the same, at once or as part of what is captured.
std::string launch(const char* name, const Grid& grid, const void* stream, std::function<void()> body);

struct Device {
  int major = 9, minor = 0;
  int multiprocessors = 4;
  std::size_t shared = 232448;
  int group = 1 << 30;  // multiprocessors that a cluster must lie within; the last group may be smaller
};
Device device();
void set_device(const Device& device);

// How many clusters of so many blocks, each with so much shared memory, the device runs at once.
int clusters_at_once(unsigned blocks, std::size_t shared);

// As a stream's capture: launches are kept and not run; `replay` runs them, with the parameters they were given.
void capture_begin();
std::size_t captured();  // how many have been kept so far
void capture_end();
std::string replay(std::size_t first, std::size_t last);  // those in between, as run

// The launch after so many more fails, as if the driver had refused it. Negative: none does.
void refuse_after(long launches);
// Of the latest launch.
Grid last_grid();
// The streams that launches named since this was last asked.
std::set<const void*> streams();

// The order of threads and blocks follows from the seed and the number of launches since it was set.
void set_seed(std::uint64_t seed);

}  // namespace emulated
