// The copy engine (TMA): boxes of 4-D tensors to and from shared memory, with the 128-byte swizzle.
#include <cstring>

#include "block.h"

namespace emulated {

namespace {

constexpr int kRow = 128;  // bytes of a box's innermost dimension: the width of the swizzle

int rows_of(const TensorMap& map) { return map.box[1] * map.box[2] * map.box[3]; }
int bytes_of(const TensorMap& map) { return rows_of(map) * kRow; }

void check(const char* instruction, const TensorMap& map) {
  if (map.box[0] * map.element != kRow) fault(instruction, "a box must be 128 bytes wide for its swizzle");
  for (int i = 0; i < 4; i++) {
    if (map.box[i] < 1 || map.box[i] > 256) {
      fault(instruction, "a box cannot be " + std::to_string(map.box[i]) + " long");
    }
    if (map.dims[i] < 1) fault(instruction, "the tensor is empty");
  }
  if (reinterpret_cast<std::uintptr_t>(map.data) % 16 != 0 || map.dims[0] * map.element % 16 != 0) {
    fault(instruction, "the tensor's address and strides must be multiples of 16 bytes");
  }
}

// 16-byte chunks of a row change places by the row's number, taken from the shared address itself.
SharedAddress swizzled(SharedAddress address) { return address ^ ((address >> 7 & 7) << 4); }

// Calls visit(bytes within the box, the element's place in the tensor or null outside it) for every element.
template <class F> void for_elements(const TensorMap& map, int c, int x, int y, int n, F visit) {
  const auto inside = [](std::ptrdiff_t at, std::ptrdiff_t size) { return at >= 0 && at < size; };
  int row = 0;
  for (int in = 0; in < map.box[3]; in++) {
    for (int iy = 0; iy < map.box[2]; iy++) {
      for (int ix = 0; ix < map.box[1]; ix++, row++) {
        const std::ptrdiff_t py = y + iy, px = x + ix, pn = n + in;
        const bool good = inside(px, map.dims[1]) && inside(py, map.dims[2]) && inside(pn, map.dims[3]);
        const std::ptrdiff_t pixel = (pn * map.dims[2] + py) * map.dims[1] + px;
        for (int ic = 0; ic < map.box[0]; ic++) {
          const std::ptrdiff_t at = (pixel * map.dims[0] + c + ic) * map.element;
          visit(row * kRow + ic * map.element,
                good && inside(c + ic, map.dims[0]) ? static_cast<unsigned char*>(map.data) + at : nullptr);
        }
      }
    }
  }
}

void read_shared(StoredBox& box) {
  if (box.read) return;
  box.read = true;
  const unsigned char* const memory = shared_at("store_box", block(), kSharedBase, 0, 1);
  for_elements(box.map, box.c, box.x, box.y, box.n, [&](int at, const unsigned char* to) {
    const unsigned char* const now = memory + (swizzled(box.from + static_cast<SharedAddress>(at)) - kSharedBase);
    if (to && std::memcmp(&box.bytes[static_cast<std::size_t>(at)], now, static_cast<std::size_t>(box.map.element))) {
      fault("store_box", "the shared memory at " + hex(box.from + static_cast<SharedAddress>(at)) +
                             " was written while the box was on its way");
    }
  });
}

void write_global(const StoredBox& box) {
  for_elements(box.map, box.c, box.x, box.y, box.n, [&](int at, unsigned char* to) {
    if (to) std::memcpy(to, &box.bytes[static_cast<std::size_t>(at)], static_cast<std::size_t>(box.map.element));
  });
}

}  // namespace

void prefetch_map(const TensorMap& map) {
  needs_capability("prefetch.tensormap", 9);
  check("prefetch.tensormap", map);
}

// The copy engine writes by another proxy than threads read by: an mbarrier's arrival alone does not hold its write
// behind reads that are still under way (seen on a GPU), a fence of the thread that read does.
void check_read(const Block& there, SharedAddress to, SharedAddress end) {
  for (const Thread& t : there.threads) {
    for (const SharedAddress unit : t.read) {
      if (unit >= to && unit < end) {
        fault("load_box", "what thread " + std::to_string(t.index) + " read at " + hex(unit) +
                              " has not passed a fence_proxy_async of that thread");
      }
    }
  }
}

// From here until it lands the destination is undefined: it holds NaN.
void load_box(SharedAddress to, const TensorMap& map, int c, int x, int y, int n, SharedAddress barrier,
              std::uint16_t blocks) {
  needs_capability("load_box", 9);
  check("load_box", map);
  const unsigned mask = blocks ? blocks : 1u << block().rank;
  if (mask >> cluster->blocks.size()) fault("load_box", "the mask " + hex(mask) + " names blocks beyond the cluster");
  for (std::size_t i = 0; i < cluster->blocks.size(); i++) {
    if (!(mask >> i & 1)) continue;
    Block& there = cluster->blocks[i];
    if (there.live == 0) fault("load_box", "block " + std::to_string(i) + " of the cluster has exited");
    check_read(there, to, to + static_cast<SharedAddress>(bytes_of(map)));
    std::memset(shared_at("load_box", there, to, static_cast<std::size_t>(bytes_of(map)), 128), 0xff,
                static_cast<std::size_t>(bytes_of(map)));
    if (!memory_barrier("load_box", there, barrier).fenced) {
      fault("load_box", "no fence_barrier_init has followed the initialisation of the barrier at " + hex(barrier));
    }
    cluster->in_flight.push_back({map, c, x, y, n, &there, to, barrier});
  }
}

void land(std::size_t index) {
  const LoadedBox box = cluster->in_flight[index];
  cluster->in_flight[index] = cluster->in_flight.back();
  cluster->in_flight.pop_back();
  unsigned char* const memory = box.block->shared;
  for_elements(box.map, box.c, box.x, box.y, box.n, [&](int at, const unsigned char* from) {
    unsigned char* const to = memory + (swizzled(box.to + static_cast<SharedAddress>(at)) - kSharedBase);
    if (from) {
      std::memcpy(to, from, static_cast<std::size_t>(box.map.element));
    } else {
      std::memset(to, 0, static_cast<std::size_t>(box.map.element));
    }
  });
  complete_bytes("load_box", *box.block, box.barrier, bytes_of(box.map));
}

// The copy engine may read at once or as late as at the wait: both must find the same bytes.
void store_box(const TensorMap& map, int c, int x, int y, int n, SharedAddress from) {
  needs_capability("store_box", 9);
  check("store_box", map);
  const unsigned char* const memory = block().shared;
  const SharedAddress end = from + static_cast<SharedAddress>(bytes_of(map));
  shared_at("store_box", block(), from, static_cast<std::size_t>(bytes_of(map)), 128);
  if (!block().fenced_proxy) fault("store_box", "no fence_proxy_async has come before it in this block");
  for (const Warp& w : block().warps) {
    for (const SharedAddress unit : w.not_fenced) {
      if (unit >= from && unit < end) {
        fault("store_box", "what stmatrix wrote at " + hex(unit) + " has not passed a fence_proxy_async of its warp");
      }
    }
  }
  StoredBox box{map, c, x, y, n, from, std::vector<unsigned char>(static_cast<std::size_t>(bytes_of(map))), false};
  for (int row = 0; row < rows_of(map); row++) {
    for (int chunk = 0; chunk < kRow; chunk += 16) {
      const int at = row * kRow + chunk;
      std::memcpy(&box.bytes[static_cast<std::size_t>(at)],
                  memory + (swizzled(from + static_cast<SharedAddress>(at)) - kSharedBase), 16);
    }
  }
  self->boxes.push_back(std::move(box));
  self->boxes_open++;
}

void store_commit() {
  self->box_groups.push_back(self->boxes_open);
  self->boxes_open = 0;
}

void store_wait(int pending, bool read_only) {
  std::size_t groups = 0, boxes = 0;
  while (self->box_groups.size() - groups > static_cast<std::size_t>(pending)) boxes += self->box_groups[groups++];
  for (std::size_t i = 0; i < boxes; i++) read_shared(self->boxes[i]);
  if (read_only) return;
  for (std::size_t i = 0; i < boxes; i++) write_global(self->boxes[i]);
  self->boxes.erase(self->boxes.begin(), self->boxes.begin() + static_cast<std::ptrdiff_t>(boxes));
  self->box_groups.erase(self->box_groups.begin(), self->box_groups.begin() + static_cast<std::ptrdiff_t>(groups));
}

void finish_boxes() {
  for (StoredBox& box : self->boxes) {
    read_shared(box);
    write_global(box);
  }
  self->boxes.clear();
}

void fence_proxy_async() {
  needs_capability("fence.proxy.async", 9);
  Warp& w = warp();
  block().fenced_proxy = true;
  self->read.clear();
  w.fenced |= 1u << lane();
  if (w.fenced == w.full) w.not_fenced.clear();
}

}  // namespace emulated
