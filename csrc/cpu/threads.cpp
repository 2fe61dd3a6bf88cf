#include "threads.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <random>
#include <system_error>
#include <thread>
#include <vector>

namespace dblr {
namespace {

std::atomic<OpenMP> openmp{nullptr};
const pid_t loaded_in = getpid();

// Tasks in a row of which one thread takes the first that is left, and others, when they have no more, the last.
class Share {
 public:
  // backward: the first is the one before `end`.
  void set(Index begin, Index end, bool backward) {
    begin_ = begin;
    end_ = end;
    backward_ = backward;
    left_.store({0, static_cast<Half>(end - begin)}, std::memory_order_relaxed);
  }
  // next: the one after it, or -1.
  bool first(Index& task, Index& next) {
    Index place;
    if (!take([&](Left& left) { place = left.begin++; })) return false;
    task = at(place);
    next = place + 1 < end_ - begin_ ? at(place + 1) : -1;
    return true;
  }
  bool last(Index& task) {
    Index place;
    if (!take([&](Left& left) { place = --left.end; })) return false;
    task = at(place);
    return true;
  }

 private:
  using Half = std::uint32_t;
  struct Left {
    Half begin, end;
  };
  Index at(Index place) const { return backward_ ? end_ - 1 - place : begin_ + place; }
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
  Index begin_, end_;
  bool backward_;
};

// The same for a thread from region to region: it finds in its own caches what it wrote in the region before.
int number_of_this_thread() {
  static std::atomic<int> threads{0};
  thread_local const int number = threads.fetch_add(1);
  return number;
}

// What is waited for is at work on another thread, and takes a fraction of a millisecond at most.
template <class F> void wait_until(const F& done) {
  constexpr int kSpins = 1000;
  for (int i = 0; !done(); i++) {
    if (i >= kSpins) std::this_thread::yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

// In the self-test under ThreadSanitizer: once in a while a thread falls behind the others by more than a stage.
void fall_behind() {
#ifdef DBLR_FAST_DELAYS
  thread_local std::minstd_rand random(number_of_this_thread() + 1);
  if (random() % 16 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(30));
#endif
}

// Stages whose tasks are shared among threads.
class Region {
 public:
  Region(const std::vector<Stage>& stages, std::size_t scratch_bytes, char* scratch, int threads)
      : stages_(stages), scratch_bytes_(scratch_bytes), scratch_(scratch), claimed_(threads), progress_(stages.size()) {
    for (std::size_t s = 0; s < stages.size(); s++) progress_[s].prepare(stages[s], threads, stages.size() > 1);
  }

  void work() {
    const int slots = static_cast<int>(claimed_.size()), wanted = number_of_this_thread() % slots;
    int mine = 0;
    while (mine < slots && claimed_[(wanted + mine) % slots].exchange(true, std::memory_order_relaxed)) mine++;
    if (mine == slots) return;  // more threads came than were asked for
    mine = (wanted + mine) % slots;
    Index complete = 0, task, next;  // stages that this thread knows to be done
    for (Index s = 0; s < static_cast<Index>(stages_.size()); s++) {
      for (; complete < s - stages_[s].beside; complete++) {
        wait_until([&] { return progress_[complete].undone.load(std::memory_order_acquire) == 0; });
      }
      std::vector<Share>& shares = progress_[s].shares;
      while (shares[mine].first(task, next)) run(s, task, next, mine);
      for (int other = 1; other < slots; other++) {
        while (shares[(mine + other) % slots].last(task)) run(s, task, -1, mine);
      }
    }
  }

 private:
  struct Progress {
    std::vector<Share> shares;
    std::vector<Rect> parts;  // of each task, where a later stage may ask
    std::vector<std::atomic<bool>> done;
    std::atomic<Index> undone{0};

    void prepare(const Stage& stage, int threads, bool asked) {
      const Index tasks = stage.tasks;
      shares = std::vector<Share>(threads);
      // Neighbours begin side by side, or end there: what one begins a stage with, the other has long done in the last.
      for (Index i = 0; i < threads; i++) shares[i].set(tasks * i / threads, tasks * (i + 1) / threads, i % 2 != 0);
      undone.store(tasks, std::memory_order_relaxed);
      if (!asked || !stage.part) return;
      done = std::vector<std::atomic<bool>>(tasks);
      for (Index t = 0; t < tasks; t++) parts.push_back(stage.part(t));
    }
  };

  void run(Index s, Index task, Index next, int slot) {
    const Stage& stage = stages_[s];
    Progress& now = progress_[s];
    if (stage.near && s > 0) {
      const Progress& before = progress_[s - 1];
      const Rect& own = now.parts[task];
      const Rect near = {own.y0 - stage.near->up, own.y1 + stage.near->down, own.x0 - stage.near->sides,
                         own.x1 + stage.near->sides};
      for (std::size_t i = 0; i < before.parts.size(); i++) {
        const Rect& other = before.parts[i];
        if (other.y0 >= near.y1 || other.y1 <= near.y0 || other.x0 >= near.x1 || other.x1 <= near.x0) continue;
        wait_until([&] { return before.done[i].load(std::memory_order_acquire); });
      }
    }
    fall_behind();
    stage.run(task, next, scratch_ + slot * scratch_bytes_);
    if (!now.done.empty()) now.done[task].store(true, std::memory_order_release);
    now.undone.fetch_sub(1, std::memory_order_acq_rel);
  }

  const std::vector<Stage>& stages_;
  std::size_t scratch_bytes_;
  char* scratch_;
  std::vector<std::atomic<bool>> claimed_;
  std::vector<Progress> progress_;
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

void run_stages(int threads, const std::vector<Stage>& stages) {
  Index most = 0;
  std::size_t bytes = 0;
  for (const Stage& stage : stages) {
    most = std::max(most, stage.tasks);
    bytes = std::max(bytes, stage.scratch_bytes);
  }
  if (most == 0) return;
  threads = static_cast<int>(std::min<Index>(std::max(threads, 1), most));
  bytes = (bytes + 127) / 128 * 128;  // no two threads on one cache line, nor on its neighbour
  Region region(stages, bytes, scratch_of_this_thread(bytes * threads), threads);
  if (threads == 1) {
    region.work();
  } else if (has_openmp()) {
    openmp.load()(enter, &region, static_cast<unsigned>(threads), 0);
  } else {
    run_on_own_threads(region, threads);
  }
}

}  // namespace dblr
