// Enough of CUDA to run the kernels of csrc/cuda with a plain C++ compiler, one block after the other, its threads as
// fibers of one thread. For tests only.
//
// A fiber runs until it waits at a barrier, so a missing barrier shows when the order of the threads is reversed
// (`emulation::reversed()`): tests run both ways and compare bits. A barrier that only some threads reach ends the
// program. Shared memory is static: it starts with what the block before left, as on the device.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define __global__ [[maybe_unused]] static
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct alignas(16) uint4 {
  std::uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  std::uint32_t x, y;
};

namespace emulation {

// ------------------------------------------------------------------------------------------- switching between stacks

#if defined(__x86_64__)

// swapcontext asks the kernel twice per switch; a shuffle is 64 switches a warp. So: the registers that a callee keeps.
using Context = void*;

extern "C" void mnmt_switch_stack(void** from, void* to);
asm(R"(
.pushsection .text
.type mnmt_switch_stack, @function
mnmt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size mnmt_switch_stack, . - mnmt_switch_stack
.popsection
)");

inline void switch_context(Context* from, Context* to) { mnmt_switch_stack(from, *to); }

inline void make_context(Context* context, char* stack, std::size_t size, void (*entry)()) {
  auto* top = reinterpret_cast<std::uintptr_t*>((reinterpret_cast<std::uintptr_t>(stack) + size) & ~std::uintptr_t{15});
  *--top = 0;  // where entry would return to; also aligns the stack as a call does
  *--top = reinterpret_cast<std::uintptr_t>(entry);
  for (int i = 0; i < 6; ++i) *--top = 0;
  *context = top;
}

#else

using Context = ucontext_t;

inline void switch_context(Context* from, Context* to) { swapcontext(from, to); }

inline void make_context(Context* context, char* stack, std::size_t size, void (*entry)()) {
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = size;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
}

#endif

// -------------------------------------------------------------------------------------------------- blocks and threads

struct Index {
  unsigned x = 0;
};

struct Barrier {
  int arrived = 0, expected = 0;
  long generation = 0;
};

struct Warp {
  Barrier barrier;
  std::uint32_t exchange[2][32][6];  // two buffers: a lane is never more than one exchange ahead
};

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack;
  bool done = false;
  int exchanges = 0;
};

struct State {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Barrier block;
  Context scheduler;
  std::function<void()> body;
  int current = 0;
  bool progress = false;
  bool reversed = false;
  Index thread_index, block_index;
};

inline State& state() {
  static State s;
  return s;
}

inline bool& reversed() { return state().reversed; }

inline void wait(Barrier& barrier) {
  State& s = state();
  const long generation = barrier.generation;
  s.progress = true;
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) switch_context(&s.fibers[s.current].context, &s.scheduler);
}

inline void enter() {
  State& s = state();
  s.body();
  s.fibers[s.current].done = s.progress = true;
  switch_context(&s.fibers[s.current].context, &s.scheduler);
}

inline void run_block(int threads) {
  constexpr std::size_t kStack = 1 << 18;
  State& s = state();
  s.fibers.resize(threads);
  s.warps.assign(threads / 32, Warp{});
  s.block = Barrier{};
  s.block.expected = threads;
  for (Warp& warp : s.warps) warp.barrier.expected = 32;
  for (Fiber& fiber : s.fibers) {
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    fiber.done = false;
    fiber.exchanges = 0;
    make_context(&fiber.context, fiber.stack.get(), kStack, &enter);
  }
  for (int left = threads; left > 0;) {
    s.progress = false;
    left = 0;
    for (int i = 0; i < threads; ++i) {
      s.current = s.reversed ? threads - 1 - i : i;
      if (s.fibers[s.current].done) continue;
      s.thread_index.x = static_cast<unsigned>(s.current);
      switch_context(&s.scheduler, &s.fibers[s.current].context);
      left += !s.fibers[s.current].done;
    }
    if (left > 0 && !s.progress) {
      std::fprintf(stderr, "a barrier that %d threads of a block wait at and others never reach\n", left);
      std::abort();
    }
  }
}

inline void run(std::int64_t blocks, int threads, std::function<void()> body) {
  State& s = state();
  s.body = std::move(body);
  for (std::int64_t b = 0; b < blocks; ++b) {
    s.block_index.x = static_cast<unsigned>(s.reversed ? blocks - 1 - b : b);
    run_block(threads);
  }
}

// Publishes this lane's words and returns the warp's.
inline const std::uint32_t (*exchange(const std::uint32_t* words, int count))[6] {
  State& s = state();
  Warp& warp = s.warps[s.current / 32];
  auto& buffer = warp.exchange[s.fibers[s.current].exchanges++ % 2];
  for (int i = 0; i < count; ++i) buffer[s.current % 32][i] = words[i];
  wait(warp.barrier);
  return buffer;
}

// mma.m16n8k*: words of A and B as the PTX manual spreads them over the lanes; product(x, y) of two words.
template <class Sum, class Product>
void mma(Sum (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], const Product& product) {
  const std::uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const auto* lanes = exchange(mine, 6);
  const int lane = state().current % 32;
  for (int e = 0; e < 4; ++e) {
    const int row = lane / 4 + (e >= 2 ? 8 : 0), column = lane % 4 * 2 + e % 2;
    for (int k = 0; k < 8; ++k) {  // words along the inner dimension
      const std::uint32_t x = lanes[row % 8 * 4 + k % 4][(row >= 8 ? 1 : 0) + (k >= 4 ? 2 : 0)];
      const std::uint32_t y = lanes[column * 4 + k % 4][4 + (k >= 4 ? 1 : 0)];
      c[e] += product(x, y);
    }
  }
}

}  // namespace emulation

#define threadIdx (emulation::state().thread_index)
#define blockIdx (emulation::state().block_index)

inline void __syncthreads() { emulation::wait(emulation::state().block); }
inline void __syncwarp() { emulation::exchange(nullptr, 0); }

inline std::uint32_t __float_as_uint(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline float __shfl_xor_sync(unsigned, float x, int mask) {
  const std::uint32_t bits = __float_as_uint(x);
  const auto* lanes = emulation::exchange(&bits, 1);
  return __uint_as_float(lanes[(emulation::state().current % 32) ^ mask][0]);
}
inline unsigned __ballot_sync(unsigned, bool predicate) {
  const std::uint32_t mine = predicate;
  const auto* lanes = emulation::exchange(&mine, 1);
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane) ballot |= (lanes[lane][0] & 1u) << lane;
  return ballot;
}

template <class T>
T __ldcs(const T* p) {
  if (reinterpret_cast<std::uintptr_t>(p) % alignof(T)) std::abort();  // a misaligned address traps on the device
  T x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
template <class T>
T __ldg(const T* p) {
  return __ldcs(p);
}
template <class T>
void __stcs(T* p, T x) {
  if (reinterpret_cast<std::uintptr_t>(p) % alignof(T)) std::abort();
  std::memcpy(p, &x, sizeof x);
}
template <class T>
T atomicAdd(T* p, T x) {
  const T before = *p;
  *p += x;
  return before;
}
inline int __popc(std::uint32_t x) { return __builtin_popcount(x); }

inline float half_to_float(std::uint16_t bits) {
  _Float16 x;
  std::memcpy(&x, &bits, 2);
  return static_cast<float>(x);
}
inline std::uint16_t float_to_half(float x) {
  const _Float16 y = static_cast<_Float16>(x);
  std::uint16_t bits;
  std::memcpy(&bits, &y, 2);
  return bits;
}
