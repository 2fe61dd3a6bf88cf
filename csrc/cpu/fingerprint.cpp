#include "fingerprint.h"

#include <cstring>

namespace dblr {
namespace {

constexpr std::uint64_t kA = 0x9E3779B185EBCA87u, kB = 0xC2B2AE3D27D4EB4Fu, kC = 0x165667B19E3779F9u;

std::uint64_t rotate(std::uint64_t x, int bits) { return x << bits | x >> (64 - bits); }
std::uint64_t mix(std::uint64_t lane, std::uint64_t word) { return rotate(lane + word * kB, 31) * kA; }

}  // namespace

std::uint64_t fingerprint(const void* data, std::size_t bytes, std::uint64_t seed) {
  const char* p = static_cast<const char*>(data);
  std::uint64_t lanes[4] = {seed + kA + kB, seed + kB, seed, seed - kA};
  std::size_t left = bytes;
  for (; left >= 32; left -= 32, p += 32) {
    std::uint64_t words[4];
    std::memcpy(words, p, 32);
    for (int i = 0; i < 4; i++) lanes[i] = mix(lanes[i], words[i]);
  }
  std::uint64_t h = rotate(lanes[0], 1) + rotate(lanes[1], 7) + rotate(lanes[2], 12) + rotate(lanes[3], 18);
  for (std::uint64_t lane : lanes) h = (h ^ mix(0, lane)) * kA + kC;
  h += bytes;
  for (; left > 0; p += left < 8 ? left : 8, left -= left < 8 ? left : 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, p, left < 8 ? left : 8);
    h = rotate(h ^ mix(0, word), 27) * kA + kC;
  }
  h = (h ^ h >> 33) * kB;
  h = (h ^ h >> 29) * kC;
  return h ^ h >> 32;
}

}  // namespace dblr
