// Instruction sets of the CPU kernels, and which of them runs.
#pragma once

#include <string>
#include <vector>

namespace mnmt {

// Each includes the ones before it. avx512 means F, BW, VL, DQ; avx512_bf16 adds BF16 and VPOPCNTDQ (Zen 4, Sapphire
// Rapids and later).
enum class Isa : int { scalar = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };

// The best that was compiled and that this processor has, unless MNMT_ISA or set_isa says less.
Isa active_isa();

// All that can run here, worst first.
std::vector<std::string> available_isas();

const char* name(Isa isa);

// For tests and comparisons; throws std::invalid_argument for a name that cannot run here.
void set_isa(const std::string& name);

// Chooses an op's inner loops: `table` is a pointer to the op's table of function pointers, one object per instruction
// set.
template <class Table>
struct PerIsa {
  const Table* scalar;
  const Table* avx2;
  const Table* avx512;
  const Table* avx512_bf16;

  const Table& active() const {
    const Table* all[] = {scalar, avx2, avx512, avx512_bf16};
    return *all[static_cast<int>(active_isa())];
  }
};

}  // namespace mnmt

// MNMT_PER_ISA(GramKernels, gram_kernels) declares `extern const GramKernels gram_kernels` in the namespace of every
// instruction set and defines `static const PerIsa<GramKernels> gram_kernels_per_isa`. Use inside namespace mnmt.
#if defined(MNMT_HAVE_avx512_bf16)
#define MNMT_PER_ISA(Table, object) \
  namespace scalar {                \
  extern const Table object;        \
  }                                 \
  namespace avx2 {                  \
  extern const Table object;        \
  }                                 \
  namespace avx512 {                \
  extern const Table object;        \
  }                                 \
  namespace avx512_bf16 {           \
  extern const Table object;        \
  }                                 \
  static const PerIsa<Table> object##_per_isa{&scalar::object, &avx2::object, &avx512::object, &avx512_bf16::object};
#else
#define MNMT_PER_ISA(Table, object) \
  namespace scalar {                \
  extern const Table object;        \
  }                                 \
  static const PerIsa<Table> object##_per_isa{&scalar::object, nullptr, nullptr, nullptr};
#endif
