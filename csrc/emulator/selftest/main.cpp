// emulator_selftest [name...]: runs the named tests, or all. Prints "ok NAME" or "FAIL NAME: why".
// emulator_selftest --out-of-bounds read|write|global: what AddressSanitizer should end.
#include <cstdio>
#include <cstdlib>

#include "check.h"

[[gnu::noinline]] static void out_of_bounds_kernel(const std::string& what, const float* global) {
  volatile unsigned char* const shared = dblr::dynamic_shared();
  if (threadIdx.x == 3 && what == "read") (void)shared[1000];
  if (threadIdx.x == 3 && what == "write") shared[1000] = 1;
  if (what == "global") {
    dblr::copy_async(dblr::shared_address(dblr::dynamic_shared()), global + 4 * threadIdx.x, true);
    dblr::copy_async_commit();
    dblr::copy_async_wait<0>();
  }
}

static int out_of_bounds(const std::string& what) {
  float* const global = static_cast<float*>(std::aligned_alloc(16, 31 * 16));
  const std::string fault = selftest::fault_of({32, 1000}, [&] { out_of_bounds_kernel(what, global); });
  std::printf("%s\n", fault.c_str());
  return 0;
}

int main(int count, char** arguments) {
  if (count == 3 && arguments[1] == std::string("--out-of-bounds")) return out_of_bounds(arguments[2]);
  int failed = 0;
  for (const auto& [name, test] : selftest::tests()) {
    bool wanted = count < 2;
    for (int i = 1; i < count; i++) wanted = wanted || name == arguments[i];
    if (!wanted) continue;
    try {
      emulated::set_device({});
      test();
      std::printf("ok %s\n", name.c_str());
    } catch (const std::exception& error) {
      std::printf("FAIL %s: %s\n", name.c_str(), error.what());
      failed++;
    }
    std::fflush(stdout);
  }
  return failed != 0;
}
