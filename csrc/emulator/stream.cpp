#include <utility>
#include <vector>

#include "launch.h"

namespace emulated {

namespace {

struct Kept {
  std::string name;
  Grid grid;
  std::function<void()> body;
};

bool capturing = false;
std::vector<Kept> kept;
std::set<const void*> named;
long until_refusal = -1;
Grid latest{};

}  // namespace

std::string launch(const char* name, const Grid& grid, const void* stream, std::function<void()> body) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return "";
  named.insert(stream);
  latest = grid;
  if (until_refusal >= 0 && until_refusal-- == 0) return std::string(name) + ": the launch was refused";
  if (!capturing) return run(name, grid, body);
  kept.push_back({name, grid, std::move(body)});
  return "";
}

void capture_begin() {
  kept.clear();
  capturing = true;
}

std::size_t captured() { return kept.size(); }

void capture_end() { capturing = false; }

std::string replay(std::size_t first, std::size_t last) {
  for (std::size_t i = first; i < last && i < kept.size(); i++) {
    const std::string fault = run(kept[i].name.c_str(), kept[i].grid, kept[i].body);
    if (!fault.empty()) return fault;
  }
  return "";
}

void refuse_after(long launches) { until_refusal = launches; }

Grid last_grid() { return latest; }

std::set<const void*> streams() { return std::exchange(named, {}); }

}  // namespace emulated
