#include "threads.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#include "tensor.h"

namespace dblr {
namespace {

std::atomic<OpenMP> openmp{nullptr};
const pid_t loaded_in = getpid();

// Tasks in a row of which one thread takes the first that is left, and others, when they have no more, the last.
class Share {
 public:
  void set(Index begin, Index end) { left_.store({static_cast<Half>(begin), static_cast<Half>(end)}); }
  bool claim() { return !claimed_.exchange(true, std::memory_order_relaxed); }
  bool first(Index& task) {
    return take([&](Left& left) { task = left.begin++; });
  }
  bool last(Index& task) {
    return take([&](Left& left) { task = --left.end; });
  }

 private:
  using Half = std::uint32_t;
  struct Left {
    Half begin, end;
  };
  template <class F> bool take(const F& f) {
    Left now = left_.load(std::memory_order_relaxed), then;
    do {
      if (now.begin >= now.end) return false;
      then = now;
      f(then);
    } while (!left_.compare_exchange_weak(now, then, std::memory_order_relaxed));
    return true;
  }
  alignas(64) std::atomic<Left> left_{Left{0, 0}};  // a cache line each
  std::atomic<bool> claimed_{false};
};

// The same for a thread from region to region: it finds in its own caches what it wrote in the region before.
int number_of_this_thread() {
  static std::atomic<int> threads{0};
  thread_local const int number = threads.fetch_add(1);
  return number;
}

struct Region {
  Task task;
  const void* context;
  std::size_t scratch_bytes;
  char* scratch;
  std::vector<Share> shares;

  Region(Task task, const void* context, Index tasks, std::size_t scratch_bytes, char* scratch, int threads)
      : task(task), context(context), scratch_bytes(scratch_bytes), scratch(scratch), shares(threads) {
    for (Index i = 0; i < threads; i++) shares[i].set(tasks * i / threads, tasks * (i + 1) / threads);
  }

  void work() {
    const int slots = static_cast<int>(shares.size()), wanted = number_of_this_thread() % slots;
    int mine = 0;
    while (mine < slots && !shares[(wanted + mine) % slots].claim()) mine++;
    if (mine == slots) return;  // more threads came than were asked for
    mine = (wanted + mine) % slots;
    char* const memory = scratch + mine * scratch_bytes;
    Index i;
    while (shares[mine].first(i)) task(context, i, memory);
    for (int other = 1; other < slots; other++) {
      while (shares[(mine + other) % slots].last(i)) task(context, i, memory);
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
  Region region(task, context, tasks, scratch_bytes, scratch_of_this_thread(scratch_bytes * threads), threads);
  if (threads == 1) {
    region.work();
  } else if (has_openmp()) {
    openmp.load()(enter, &region, static_cast<unsigned>(threads), 0);
  } else {
    run_on_own_threads(region, threads);
  }
}

}  // namespace dblr
