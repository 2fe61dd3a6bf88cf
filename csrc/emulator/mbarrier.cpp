// mbarrier: a barrier in shared memory that counts arrivals of threads and bytes of the copy engine.
#include <cstring>

#include "block.h"

namespace emulated {

namespace {

// What an initialised barrier's eight bytes hold here; its state is kept aside.
constexpr std::uint64_t kMark = 0x7ff5ba441e47ba44ull;

void advance(MemoryBarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.phase++;
  barrier.pending = barrier.count;
  wake(barrier.waiting);
}

void arrive(const char* instruction, Block& b, SharedAddress address) {
  MemoryBarrier& barrier = memory_barrier(instruction, b, address);
  if (barrier.pending == 0) {
    fault(instruction, "the barrier at " + hex(address) + " has had all its " + std::to_string(barrier.count) +
                           " arrivals in phase " + std::to_string(barrier.phase));
  }
  barrier.pending--;
  advance(barrier);
}

}  // namespace

MemoryBarrier& memory_barrier(const char* instruction, Block& b, SharedAddress address) {
  unsigned char* const memory = shared_at(instruction, b, address, 8, 8);
  const auto found = b.memory_barriers.find(address);
  if (found == b.memory_barriers.end()) {
    fault(instruction, "the barrier at " + hex(address) + " has not been initialised");
  }
  std::uint64_t mark;
  std::memcpy(&mark, memory, 8);
  if (mark != kMark) fault(instruction, "the barrier at " + hex(address) + " has been overwritten");
  return found->second;
}

void complete_bytes(const char* instruction, Block& b, SharedAddress address, int bytes) {
  MemoryBarrier& barrier = memory_barrier(instruction, b, address);
  barrier.bytes -= bytes;
  if (barrier.bytes < 0 && barrier.pending == 0) {
    fault(instruction, "more bytes arrived at the barrier at " + hex(address) + " than it awaits");
  }
  advance(barrier);
}

void barrier_init(SharedAddress address, int arrivals) {
  needs_capability("mbarrier.init", 9);
  unsigned char* const memory = shared_at("mbarrier.init", block(), address, 8, 8);
  if (arrivals < 1 || arrivals >= 1 << 20) fault("mbarrier.init", std::to_string(arrivals) + " arrivals");
  if (block().memory_barriers.count(address)) {
    fault("mbarrier.init", "the barrier at " + hex(address) + " has been initialised before");
  }
  std::memcpy(memory, &kMark, 8);
  MemoryBarrier& barrier = block().memory_barriers[address];
  barrier.count = barrier.pending = arrivals;
  barrier.initialised_by = self->index;
}

void fence_barrier_init() {
  needs_capability("fence.mbarrier_init", 9);
  for (auto& [address, barrier] : block().memory_barriers) {
    if (barrier.initialised_by == self->index) barrier.fenced = true;
  }
}

void barrier_arrive(SharedAddress address) { arrive("mbarrier.arrive", block(), address); }

void barrier_arrive_in(SharedAddress address, int rank) {
  if (rank < 0 || rank >= static_cast<int>(cluster->blocks.size())) {
    fault("mbarrier.arrive", "there is no block " + std::to_string(rank) + " in the cluster");
  }
  Block& there = cluster->blocks[static_cast<std::size_t>(rank)];
  if (there.live == 0) fault("mbarrier.arrive", "block " + std::to_string(rank) + " of the cluster has exited");
  if (&there != &block() && !memory_barrier("mbarrier.arrive", there, address).fenced) {
    fault("mbarrier.arrive", "no fence_barrier_init has followed the initialisation of the barrier at " + hex(address));
  }
  arrive("mbarrier.arrive", there, address);
}

void barrier_arrive_expect(SharedAddress address, int bytes) {
  MemoryBarrier& barrier = memory_barrier("mbarrier.arrive.expect_tx", block(), address);
  if (bytes < 0 || barrier.bytes + bytes >= 1 << 20) fault("mbarrier.arrive.expect_tx", "too many bytes");
  barrier.bytes += bytes;
  arrive("mbarrier.arrive.expect_tx", block(), address);
}

void barrier_wait(SharedAddress address, int parity) {
  if (parity != 0 && parity != 1) fault("mbarrier.wait", "parity " + std::to_string(parity) + " is neither 0 nor 1");
  for (;;) {  // as try_wait is repeated: who comes late may find the next phase complete, and waits for the one after
    MemoryBarrier& barrier = memory_barrier("mbarrier.wait", block(), address);
    if ((barrier.phase & 1) != parity) return;
    barrier.waiting.push_back(self);
    wait("mbarrier.wait", address, parity);
  }
}

}  // namespace emulated
