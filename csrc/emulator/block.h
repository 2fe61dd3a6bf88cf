// The state of what runs: a cluster of blocks, their warps and threads. For the emulator's own sources.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_language.h"
#include "fibers.h"
#include "instructions.h"
#include "launch.h"

namespace emulated {

// Shared addresses start here, as on sm_90, where the system has the first KiB.
constexpr SharedAddress kSharedBase = 1024;

struct Block;

// What a kernel did wrong. Thrown in its thread; run() returns it with the place.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] void fault(const char* instruction, const std::string& what);
std::string hex(std::uint64_t v);

struct AsyncCopy {  // cp.async under way
  unsigned char* to;
  const void* from;
  bool valid;
};

struct StoredBox {  // a box on its way to global memory
  TensorMap map;
  int c, x, y, n;
  SharedAddress from;
  std::vector<unsigned char> bytes;  // as the copy engine may already have read them
  bool read = false;                 // it has read them
};

struct Sums {  // accumulators of a thread whose products are under way, or were
  float* d;
  std::vector<float> value;  // once all products issued and executed so far are added
  int under_way = 0;
};

struct ProductShape {  // what all four warps of a warpgroup must agree on
  std::uint64_t a;     // A's descriptor; 0 where A is in registers
  std::uint64_t b;
  int columns;
  bool transposed;  // A is in shared memory, and both operands lie depth by depth
  bool f16;

  bool operator!=(const ProductShape& o) const {
    return a != o.a || b != o.b || columns != o.columns || transposed != o.transposed || f16 != o.f16;
  }
};

struct Product {  // of a warp: its lane's share
  int sums;       // index into Thread::sums
  std::uint32_t a[4];
  ProductShape shape;
};

struct Thread {
  unsigned index = 0;
  Block* block = nullptr;
  Fiber* fiber = nullptr;  // null until it first runs
  bool exited = false;

  const char* waits = nullptr;  // the instruction in which it waits, if it does
  SharedAddress waits_at = 0;   // a barrier's address or number
  int waits_for = 0;            // parity, or threads

  std::vector<AsyncCopy> copies;
  std::vector<std::size_t> copy_groups;  // copies of each committed group, the oldest first
  std::size_t copies_open = 0;           // not committed yet

  std::vector<SharedAddress> read;  // 16-byte units read by ldmatrix or load_vector since its last fence_proxy_async

  std::vector<StoredBox> boxes;
  std::vector<std::size_t> box_groups;
  std::size_t boxes_open = 0;

  std::vector<Sums> sums;
  std::vector<Product> products;
  std::vector<std::size_t> product_groups;
  std::size_t products_open = 0;
  bool products_fenced = false;
};

// A warp's lanes gather at an instruction; the last to come does it for all.
struct Warp {
  const char* instruction = nullptr;
  std::uint64_t variant = 0;
  bool needs_all = false;
  unsigned arrived = 0, live = 0, full = 0;
  void* operands[32] = {};
  void (*work)(void** operands, unsigned lanes) = nullptr;

  int registers = 0, registers_wanted = 0;  // of a lane
  std::vector<int> register_changes;
  std::size_t products_done = 0;
  unsigned fenced = 0;                     // lanes that fenced since the warp's last stmatrix
  std::vector<SharedAddress> not_fenced;   // 16-byte units written by stmatrix since
};

struct Gathering {  // threads at a barrier of the block or the cluster
  unsigned arrived = 0, expected = 0;
  std::vector<Thread*> waiting;
};

struct MemoryBarrier {  // mbarrier
  int count = 0, pending = 0;
  std::int64_t bytes = 0;  // awaited from the copy engine
  int phase = 0;
  bool fenced = false;
  unsigned initialised_by = 0;
  std::vector<Thread*> waiting;
};

struct Block {
  Dim3 index;
  int rank = 0;  // in the cluster
  unsigned char* shared = nullptr;
  std::size_t bytes = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  unsigned live = 0;
  Gathering barriers[16];
  std::map<SharedAddress, MemoryBarrier> memory_barriers;
  std::vector<std::vector<ProductShape>> products;  // of each warpgroup
  bool fenced_proxy = false;
  int free_registers = 0;
  std::vector<Thread*> want_registers;
};

struct LoadedBox {  // a box on its way to shared memory
  TensorMap map;
  int c, x, y, n;
  Block* block;
  SharedAddress to, barrier;
};

// Threads that can run, by warp, and the order in which they do.
struct Ready {
  std::vector<std::vector<Thread*>> threads;  // of each warp of the cluster
  std::vector<std::size_t> warps;             // those that have any
  std::size_t favoured = 0;
  // Bits that are all zero in a drawn number when another warp than the favoured one runs next: with none of them
  // warps advance together, with all of them one runs as far as it can before another does.
  std::uint64_t loyalty = 0;

  void reset(std::size_t count);
  void add(Thread* thread);
  Thread* take();  // null if there is none
};

struct Cluster {
  Grid grid{};
  const std::function<void()>* body = nullptr;
  std::vector<Block> blocks;
  Ready ready;
  std::vector<LoadedBox> in_flight;
  Gathering barrier;
  unsigned live = 0;
  std::string fault;
  std::uint64_t laziness = 0;  // bits, as of Ready::loyalty: how seldom a box lands while threads can run
};

extern Cluster* cluster;
extern Thread* self;

inline Block& block() { return *self->block; }
inline Warp& warp() { return self->block->warps[self->index / 32]; }
inline int lane() { return static_cast<int>(self->index % 32); }

// ---- scheduler.cpp ----
std::uint64_t draw();  // a random number
void seed_draws(std::uint64_t seed);
void run_cluster();
// The thread waits (why is said for reports) until another wakes it.
void wait(const char* instruction, SharedAddress at = 0, int what_for = 0);
void wake(Thread* thread);
void wake(std::vector<Thread*>& threads);
std::string place(const Thread& thread);

// ---- gather.cpp ----
// All lanes of the warp meet; `work` gets each lane's operands. needs_all: an exited lane is a fault.
void collective(const char* instruction, std::uint64_t variant, bool needs_all, void* operands,
                void (*work)(void** operands, unsigned lanes));
void thread_exits();  // whoever waited for it alone goes on

// ---- shared.cpp ----
// The memory at an address of a block, checked.
unsigned char* shared_at(const char* instruction, Block& block, SharedAddress address, std::size_t bytes,
                         std::size_t alignment);
// Takes note of 16 bytes that this thread reads, in blocks that the copy engine writes to (they have mbarriers).
void note_read(SharedAddress address);
void needs_capability(const char* instruction, int major);

// ---- boxes.cpp ----
void land(std::size_t index);  // cluster->in_flight[index] arrives
void finish_boxes();           // of a thread that exits

// ---- products.cpp ----
std::string check_end();  // what is wrong with a cluster whose threads have all exited, or ""

// ---- mbarrier.cpp ----
MemoryBarrier& memory_barrier(const char* instruction, Block& block, SharedAddress address);
void complete_bytes(const char* instruction, Block& block, SharedAddress address, int bytes);

}  // namespace emulated
