// A block's shared memory and the asynchronous copies into it (cp.async).
#include <algorithm>
#include <cstring>

#include "block.h"

namespace emulated {

unsigned char* dynamic_shared() { return block().shared; }

SharedAddress shared_address(const void* p) {
  const Block& b = block();
  const auto offset = static_cast<const unsigned char*>(p) - b.shared;
  if (offset < 0 || offset > static_cast<std::ptrdiff_t>(b.bytes)) {
    fault("shared_address", "the pointer is " + std::to_string(offset) + " bytes from the start of the block's " +
                                std::to_string(b.bytes) + " bytes of shared memory");
  }
  return kSharedBase + static_cast<SharedAddress>(offset);
}

unsigned char* shared_at(const char* instruction, Block& b, SharedAddress address, std::size_t bytes,
                         std::size_t alignment) {
  if (address % alignment != 0) {
    fault(instruction, "the shared address " + hex(address) + " is no multiple of " + std::to_string(alignment));
  }
  if (address < kSharedBase || address - kSharedBase + bytes > b.bytes) {
    fault(instruction, std::to_string(bytes) + " bytes at the shared address " + hex(address) +
                           " are outside the block's " + hex(kSharedBase) + " to " + hex(kSharedBase + b.bytes));
  }
  return b.shared + (address - kSharedBase);
}

void note_read(SharedAddress address) {
  if (!block().memory_barriers.empty()) self->read.push_back(address);
}

void load_vector(std::uint32_t (&v)[4], SharedAddress from) {
  std::memcpy(v, shared_at("ld.shared.v4", block(), from, 16, 16), 16);
  note_read(from);
}

void needs_capability(const char* instruction, int major) {
  if (device().major < major) {
    fault(instruction, "it needs compute capability " + std::to_string(major) + ".0, the device has " +
                           std::to_string(device().major) + "." + std::to_string(device().minor));
  }
}

// The destination is undefined from here to the wait: it holds NaN.
void copy_async(SharedAddress to, const void* from, bool valid) {
  unsigned char* const memory = shared_at("cp.async", block(), to, 16, 16);
  if (reinterpret_cast<std::uintptr_t>(from) % 16 != 0) fault("cp.async", "the global address is no multiple of 16");
  std::memset(memory, 0xff, 16);
  self->copies.push_back({memory, from, valid});
  self->copies_open++;
}

void copy_async_commit() {
  self->copy_groups.push_back(self->copies_open);
  self->copies_open = 0;
}

void copy_async_wait(int pending) {
  std::size_t groups = 0, copies = 0;
  while (self->copy_groups.size() - groups > static_cast<std::size_t>(pending)) copies += self->copy_groups[groups++];
  for (std::size_t i = 0; i < copies; i++) {
    const AsyncCopy& copy = self->copies[i];
    if (copy.valid) {
      std::memcpy(copy.to, copy.from, 16);
    } else {
      std::memset(copy.to, 0, 16);
    }
  }
  self->copies.erase(self->copies.begin(), self->copies.begin() + static_cast<std::ptrdiff_t>(copies));
  self->copy_groups.erase(self->copy_groups.begin(), self->copy_groups.begin() + static_cast<std::ptrdiff_t>(groups));
}

}  // namespace emulated
