#include "launch.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <vector>

#include "block.h"

#if defined(__SANITIZE_ADDRESS__)
#define DBLR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define DBLR_ASAN 1
#endif
#endif
#ifdef DBLR_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace emulated {

namespace {

constexpr std::size_t kGuard = 1024;  // bytes around shared memory that no one may touch
constexpr unsigned char kUntouched = 0xa5;

Device current;
std::uint64_t seed = 0, launches = 0;

std::string refuse(const Grid& grid) {
  const auto says = [](auto... parts) { return (std::string() + ... + parts); };
  const auto number = [](auto v) { return std::to_string(v); };
  if (grid.threads < 1 || grid.threads > 1024) return says("a block cannot have ", number(grid.threads), " threads");
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return "the grid is too large";
  if (grid.shared > current.shared) {
    return says("a block wants ", number(grid.shared), " bytes of shared memory, the device has ",
                number(current.shared));
  }
  if (grid.cluster < 1 || grid.cluster > 8 || grid.x % grid.cluster != 0) {
    return says(number(grid.x), " blocks are no whole clusters of ", number(grid.cluster), " (1 to 8)");
  }
  if (grid.cluster > 1 && current.major < 9) return "clusters need compute capability 9.0";
  return "";
}

// Shared memory of the blocks of a cluster, each between guards, aligned to 1024 bytes.
struct SharedMemory {
  std::size_t bytes, pitch;
  unsigned char* memory;

  SharedMemory(std::size_t bytes, unsigned blocks)
      : bytes(bytes), pitch((bytes + 1023) / 1024 * 1024 + 2 * kGuard),
        memory(static_cast<unsigned char*>(std::aligned_alloc(1024, pitch * blocks))) {
    if (!memory) throw std::bad_alloc();
    for (unsigned i = 0; i < blocks; i++) protect(i);
  }
  ~SharedMemory() {
#ifdef DBLR_ASAN
    __asan_unpoison_memory_region(memory, malloc_bytes());
#endif
    std::free(memory);
  }
  SharedMemory(const SharedMemory&) = delete;

  unsigned char* of(unsigned block) const { return memory + block * pitch + kGuard; }

  // Whether a store went beside the memory of a block (AddressSanitizer says so at once).
  bool touched(unsigned block) const {
#ifdef DBLR_ASAN
    (void)block;
    return false;
#else
    const auto bad = [](unsigned char c) { return c != kUntouched; };
    const unsigned char* const begin = of(block);
    return std::any_of(begin - kGuard, begin, bad) ||
           std::any_of(begin + bytes, begin + pitch - kGuard, bad);
#endif
  }

 private:
  unsigned blocks_ = 0;
  std::size_t malloc_bytes() const { return pitch * blocks_; }

  void protect(unsigned block) {
    blocks_ = block + 1;
    unsigned char* const begin = of(block);
    const std::size_t after = pitch - kGuard - bytes;
    std::memset(begin - kGuard, kUntouched, kGuard);
    std::memset(begin + bytes, kUntouched, after);
#ifdef DBLR_ASAN
    __asan_poison_memory_region(begin - kGuard, kGuard);
    __asan_poison_memory_region(begin + bytes, after);
#endif
  }
};

void reset(Thread& thread, Block& block, unsigned index) {
  thread.index = index;
  thread.block = &block;
  thread.fiber = nullptr;
  thread.exited = false;
  thread.waits = nullptr;
  thread.copies.clear();
  thread.copy_groups.clear();
  thread.copies_open = 0;
  thread.boxes.clear();
  thread.box_groups.clear();
  thread.boxes_open = 0;
  thread.sums.clear();
  thread.products.clear();
  thread.product_groups.clear();
  thread.products_open = 0;
  thread.products_fenced = false;
}

void reset(Block& block, const Grid& grid, const Dim3& index, int rank, unsigned char* shared) {
  block.index = index;
  block.rank = rank;
  block.shared = shared;
  block.bytes = grid.shared;
  std::memset(shared, 0xff, grid.shared);
  block.threads.resize(grid.threads);
  for (unsigned i = 0; i < grid.threads; i++) reset(block.threads[i], block, i);
  const int registers = static_cast<int>(std::min(256u, 65536 / ((grid.threads + 31) / 32 * 32) / 8 * 8));
  block.warps.assign((grid.threads + 31) / 32, Warp{});
  for (std::size_t i = 0; i < block.warps.size(); i++) {
    const unsigned lanes = std::min(32u, grid.threads - static_cast<unsigned>(i) * 32);
    block.warps[i].live = block.warps[i].full = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
    block.warps[i].registers = registers;
  }
  block.live = grid.threads;
  for (Gathering& barrier : block.barriers) barrier = {};
  block.memory_barriers.clear();
  block.products.assign((block.warps.size() + 3) / 4, {});
  block.fenced_proxy = false;
  block.free_registers = 65536 - registers * 32 * static_cast<int>(block.warps.size());
  block.want_registers.clear();
}

std::string run_all(Cluster& now, const Grid& grid) {
  const std::uint64_t clusters = static_cast<std::uint64_t>(grid.x / grid.cluster) * grid.y * grid.z;
  std::vector<std::uint32_t> order(clusters);
  std::iota(order.begin(), order.end(), 0u);
  for (std::size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[draw() % i]);
  now.blocks.resize(grid.cluster);
  const SharedMemory memory(grid.shared, grid.cluster);
  for (const std::uint32_t number : order) {
    const unsigned across = grid.x / grid.cluster;
    for (unsigned i = 0; i < grid.cluster; i++) {
      const Dim3 index{number % across * grid.cluster + i, number / across % grid.y, number / across / grid.y};
      reset(now.blocks[i], grid, index, static_cast<int>(i), memory.of(i));
    }
    now.live = grid.threads * grid.cluster;
    now.in_flight.clear();
    now.barrier = {};
    run_cluster();
    if (now.fault.empty()) now.fault = check_end();
    for (unsigned i = 0; i < grid.cluster && now.fault.empty(); i++) {
      if (memory.touched(i)) {
        now.fault = place(now.blocks[i].threads[0]) + " or another: a store beside the block's shared memory";
      }
    }
    if (!now.fault.empty()) return now.fault;
  }
  return "";
}

std::mutex one_at_a_time;

}  // namespace

Device device() { return current; }
void set_device(const Device& device) { current = device; }

int clusters_at_once(unsigned blocks, std::size_t shared) {
  if (current.major < 9 || shared > current.shared) return 0;
  const int size = static_cast<int>(blocks), whole = current.multiprocessors / current.group;
  return whole * (current.group / size) + current.multiprocessors % current.group / size;
}

void set_seed(std::uint64_t value) {
  seed = value;
  launches = 0;
}

std::string run(const char* name, const Grid& grid, const std::function<void()>& body) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return "";
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  std::string fault = refuse(grid);
  if (fault.empty()) {
    seed_draws(seed * 0x9e3779b97f4a7c15ull + launches++);
    Cluster now;
    now.grid = grid;
    now.body = &body;
    cluster = &now;
    blockDim = {grid.threads, 1, 1};
    gridDim = {grid.x, grid.y, grid.z};
    threadIdx = blockIdx = {0, 0, 0};
    fault = run_all(now, grid);
    cluster = nullptr;
    self = nullptr;
  }
  return fault.empty() ? "" : std::string(name) + ": " + fault;
}

}  // namespace emulated
