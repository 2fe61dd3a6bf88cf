#pragma once

#include <cstddef>
#include <cstdint>

namespace dblr {

// 64-bit hash of `bytes` bytes, chained from `seed`. For noticing changes, not for security. Reads at the
// speed of memory: four independent multiply-rotate lanes, as in xxHash64.
std::uint64_t fingerprint(const void* data, std::size_t bytes, std::uint64_t seed);

}  // namespace dblr
