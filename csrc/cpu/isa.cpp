#include "mnmt/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace mnmt {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512_bf16"};

bool can_run(Isa isa) {
#if defined(MNMT_HAVE_avx512_bf16)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  switch (isa) {
    case Isa::scalar: return true;
    case Isa::avx2: return avx2;
    case Isa::avx512: return avx512;
    case Isa::avx512_bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vpopcntdq");
  }
#endif
  return isa == Isa::scalar;
}

Isa parse(const std::string& name) {
  for (int i = 0; i < 4; ++i)
    if (name == kNames[i] && can_run(static_cast<Isa>(i))) return static_cast<Isa>(i);
  std::string known;
  for (const auto& other : available_isas()) known += (known.empty() ? "" : ", ") + other;
  throw std::invalid_argument("instruction set '" + name + "' cannot run here; available: " + known);
}

Isa choose() {
  if (const char* asked = std::getenv("MNMT_ISA"); asked && *asked) return parse(asked);
  Isa best = Isa::scalar;
  for (int i = 0; i < 4; ++i)
    if (can_run(static_cast<Isa>(i))) best = static_cast<Isa>(i);
  return best;
}

std::atomic<int>& chosen() {
  static std::atomic<int> isa{static_cast<int>(choose())};
  return isa;
}

}  // namespace

Isa active_isa() { return static_cast<Isa>(chosen().load(std::memory_order_relaxed)); }

const char* name(Isa isa) { return kNames[static_cast<int>(isa)]; }

void set_isa(const std::string& name) { chosen().store(static_cast<int>(parse(name))); }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (int i = 0; i < 4; ++i)
    if (can_run(static_cast<Isa>(i))) names.push_back(kNames[i]);
  return names;
}

}  // namespace mnmt
