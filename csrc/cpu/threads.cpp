#include "threads.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "tensor.h"

namespace dblr {
namespace {

std::atomic<OpenMP> openmp{nullptr};
const pid_t loaded_in = getpid();

struct Region {
  Task task;
  const void* context;
  Index tasks;
  std::size_t scratch_bytes;
  char* scratch;
  int slots;
  std::atomic<Index> next_task{0};
  std::atomic<int> next_slot{0};

  void work() {
    const int slot = next_slot.fetch_add(1, std::memory_order_relaxed);
    if (slot >= slots) return;  // more threads came than were asked for
    char* const mine = scratch + slot * scratch_bytes;
    for (;;) {
      const Index i = next_task.fetch_add(1, std::memory_order_relaxed);
      if (i >= tasks) return;
      task(context, i, mine);
    }
  }
};

void enter(void* region) { static_cast<Region*>(region)->work(); }

// Kept by the calling thread from call to call, so that its pages are faulted in once.
char* scratch_of_this_thread(std::size_t bytes) {
  thread_local Buffer<char> kept;
  if (kept.size() < bytes) {
    kept = Buffer<char>();  // first give back what is too small
    kept = Buffer<char>(bytes);
  }
  return kept.data();
}

void run_on_own_threads(Region& region, int threads) {
  std::vector<std::thread> others;
  others.reserve(threads - 1);
  try {
    for (int i = 1; i < threads; i++) others.emplace_back(enter, &region);
  } catch (const std::system_error&) {  // no more threads to be had: go on with those that came
  }
  region.work();
  for (std::thread& thread : others) thread.join();
}

}  // namespace

void use_openmp(OpenMP entry) { openmp.store(entry); }
bool has_openmp() { return openmp.load() != nullptr && getpid() == loaded_in; }

void run_tasks(int threads, Index tasks, std::size_t scratch_bytes, Task task, const void* context) {
  if (tasks <= 0) return;
  threads = static_cast<int>(std::min<Index>(std::max(threads, 1), tasks));
  scratch_bytes = (scratch_bytes + 127) / 128 * 128;  // no two threads on one cache line, nor on its neighbour
  Region region{task, context, tasks, scratch_bytes, scratch_of_this_thread(scratch_bytes * threads), threads};
  if (threads == 1) {
    region.work();
  } else if (has_openmp()) {
    openmp.load()(enter, &region, static_cast<unsigned>(threads), 0);
  } else {
    run_on_own_threads(region, threads);
  }
}

}  // namespace dblr
