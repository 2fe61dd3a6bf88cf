// Threads that meet: lanes at an instruction of their warp, threads at barriers of the block and the cluster.
#include "block.h"

namespace emulated {

namespace {

std::string lanes_of(unsigned mask) {
  std::string text;
  for (int i = 0; i < 32; i++) {
    if (!(mask >> i & 1)) continue;
    int end = i;
    while (end < 31 && mask >> (end + 1) & 1) end++;
    text += (text.empty() ? "" : ", ") + std::to_string(i) + (end > i ? "-" + std::to_string(end) : "");
    i = end;
  }
  return text;
}

void complete(Block& block, unsigned number) {
  Warp& w = block.warps[number];
  const unsigned lanes = w.arrived;
  w.arrived = 0;
  w.work(w.operands, lanes);
  for (unsigned i = 0; i < 32; i++) {
    Thread* const thread = lanes >> i & 1 ? &block.threads[number * 32 + i] : nullptr;
    if (thread && thread != self) wake(thread);
  }
}

void release(Gathering& barrier) {
  barrier.arrived = 0;
  for (Thread* thread : barrier.waiting) {
    if (thread != self) wake(thread);
  }
  barrier.waiting.clear();
}

void meet(const char* instruction, Gathering& barrier, unsigned expected, SharedAddress at) {
  barrier.expected = expected;
  barrier.arrived++;
  if (barrier.arrived == expected) {
    release(barrier);
  } else {
    barrier.waiting.push_back(self);
    wait(instruction, at);
  }
}

}  // namespace

void collective(const char* instruction, std::uint64_t variant, bool needs_all, void* operands,
                void (*work)(void** operands, unsigned lanes)) {
  Warp& w = warp();
  const std::string number = std::to_string(self->index / 32);
  if (w.arrived && (w.instruction != instruction || w.variant != variant)) {
    fault(instruction, "lane " + std::to_string(lane()) + " of warp " + number + " is here" +
                           (w.instruction == instruction ? " with other operands" : "") + " while lanes " +
                           lanes_of(w.arrived) + " wait in " + w.instruction);
  }
  if (needs_all && w.live != w.full) {
    fault(instruction, "lanes " + lanes_of(w.full & ~w.live) + " of warp " + number + " have exited");
  }
  if (needs_all && w.full != 0xffffffffu) fault(instruction, "warp " + number + " has fewer than 32 threads");
  w.instruction = instruction;
  w.variant = variant;
  w.needs_all = needs_all;
  w.work = work;
  w.operands[lane()] = operands;
  w.arrived |= 1u << lane();
  if (w.arrived == w.live) {
    complete(block(), self->index / 32);
  } else {
    wait(instruction);
  }
}

void sync_threads() { meet("sync_threads", block().barriers[0], block().live, 0); }

void sync_some(int id, int threads) {
  if (id < 1 || id > 15) fault("sync_some", "there is no barrier " + std::to_string(id) + ", only 1 to 15");
  if (threads < 32 || threads % 32 != 0) fault("sync_some", std::to_string(threads) + " threads are no whole warps");
  Gathering& barrier = block().barriers[id];
  if (barrier.arrived && barrier.expected != static_cast<unsigned>(threads)) {
    fault("sync_some", "barrier " + std::to_string(id) + " is awaited by " + std::to_string(barrier.expected) +
                           " threads elsewhere and by " + std::to_string(threads) + " here");
  }
  meet("sync_some", barrier, static_cast<unsigned>(threads), static_cast<SharedAddress>(id));
}

void sync_warp() {
  collective("sync_warp", 0, false, nullptr, [](void**, unsigned) {});
}

void sync_cluster() {
  needs_capability("sync_cluster", 9);
  meet("sync_cluster", cluster->barrier, cluster->live, 0);
}

int cluster_rank() {
  needs_capability("cluster_rank", 9);
  return block().rank;
}

void thread_exits() {
  finish_boxes();
  Block& b = block();
  Warp& w = warp();
  self->exited = true;
  w.live &= ~(1u << lane());
  b.live--;
  cluster->live--;
  if (b.live == 0) {
    for (const LoadedBox& box : cluster->in_flight) {
      if (box.block == &b) fault("load_box", "the block exits while a box for " + hex(box.to) + " is on its way");
    }
  }
  if (w.arrived) {
    if (w.needs_all) {
      fault(w.instruction, "lane " + std::to_string(lane()) + " has exited while lanes " + lanes_of(w.arrived) +
                               " of its warp wait");
    }
    if (w.arrived == w.live) complete(b, self->index / 32);
  }
  Gathering& all = b.barriers[0];
  if (all.arrived && all.arrived == b.live) release(all);
  if (cluster->barrier.arrived && cluster->barrier.arrived == cluster->live) release(cluster->barrier);
}

}  // namespace emulated
