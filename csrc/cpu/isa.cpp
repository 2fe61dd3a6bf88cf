#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#ifdef DBLR_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace dblr {
namespace {

struct Isa {
  const char* name;
  const Table* (*table)();
  const char* (*lacks)();  // null, or what the CPU lacks
};

const char* nothing() { return nullptr; }
#ifdef DBLR_X86
#ifdef DBLR_AMX
bool has_amx_bf16() {
  unsigned a, b, c, d;  // bits 22 and 24: AMX-BF16 and the tiles
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1);
}
#endif
const char* lacks_avx2() {
  const bool all = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return all ? nullptr : "AVX2, FMA and F16C";
}
const char* lacks_avx512() {
  const bool all = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return all && !lacks_avx2() ? nullptr : "AVX-512 (F, BW, DQ and VL)";
}
#ifdef DBLR_AMX
const char* lacks_amx() {
  constexpr long kAskForState = 0x1023, kTiles = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA: once a process
  static const bool all = !lacks_avx512() && __builtin_cpu_supports("avx512bf16") && has_amx_bf16() &&
                          syscall(SYS_arch_prctl, kAskForState, kTiles) == 0;
  return all ? nullptr : "AMX-BF16, or this system does not grant it";
}
#endif
#endif

// Best last. A model serves tests and is never chosen by itself.
const Isa kModels[] = {
#ifdef DBLR_X86
    {"avx512_model", table_avx512_model, lacks_avx2},
    {"amx_model", table_avx512_model, lacks_avx2},
#else
    {nullptr, nullptr, nullptr},
#endif
};
const Isa kIsas[] = {
    {"portable", table_portable, nothing},
#ifdef DBLR_X86
    {"avx2", table_avx2, lacks_avx2},
    {"avx512", table_avx512, lacks_avx512},
#ifdef DBLR_AMX
    {"amx", table_avx512, lacks_amx},  // the same, but for bf16
#endif
#endif
};

std::atomic<const Isa*> chosen{nullptr};

std::string reason(const Isa& isa) {
  const char* lacks = isa.lacks();
  return lacks ? std::string("this CPU lacks ") + lacks : "";
}

const Isa* named(const std::string& name) {
  std::string known;
  for (const Isa& isa : kIsas) {
    if (name == isa.name) return &isa;
    known += std::string(isa.name) + ", ";
  }
  for (const Isa& isa : kModels) {
    if (!isa.name) continue;
    if (name == isa.name) return &isa;
    known += std::string(isa.name) + ", ";
  }
  throw std::invalid_argument("The instruction set (DBLR_FAST_ISA) must be one of " +
                              known.substr(0, known.size() - 2) + ", got '" + name + "'.");
}

const Isa* usable(const std::string& name) {
  const Isa* isa = named(name);
  const std::string why = reason(*isa);
  if (!why.empty()) {
    throw std::invalid_argument("The instruction set '" + name + "' was asked for, but " + why +
                                ": unset DBLR_FAST_ISA to use the best one that it has.");
  }
  return isa;
}

const Isa* current() {
  const Isa* isa = chosen.load();
  if (isa) return isa;
  const char* wanted = std::getenv("DBLR_FAST_ISA");
  if (wanted && *wanted) {
    isa = usable(wanted);
  } else {
    for (const Isa& each : kIsas) {
      if (reason(each).empty()) isa = &each;
    }
  }
  chosen.store(isa);
  return isa;
}

}  // namespace

std::vector<std::pair<std::string, std::string>> isas() {
  std::vector<std::pair<std::string, std::string>> all;
  for (const Isa& isa : kIsas) all.emplace_back(isa.name, reason(isa));
  for (const Isa& isa : kModels) {
    if (isa.name) all.emplace_back(isa.name, reason(isa));
  }
  return all;
}

std::string isa() { return current()->name; }
void set_isa(const std::string& name) { chosen.store(usable(name)); }
const Table& table() { return *current()->table(); }

const Bf16Kernels* bf16_kernels() {
#ifdef DBLR_X86
  if (isa() == "avx512" && __builtin_cpu_supports("avx512bf16")) return bf16_avx512();
  if (isa() == "avx512_model") return bf16_avx512_model();
#endif
  return nullptr;
}

const AmxKernels* amx_kernels() {
#ifdef DBLR_X86
#ifdef DBLR_AMX
  if (isa() == "amx") return bf16_amx();
#endif
  if (isa() == "amx_model") return bf16_amx_model();
#endif
  return nullptr;
}

}  // namespace dblr
