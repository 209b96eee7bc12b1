// What crosses the border to Python: element types, and lists of fragments as pointers and lengths.
//
// A *fragment* is a contiguous run of one parameter's elements; a parameter space (all parameters of a model, or a
// rank's shard of them) is an ordered list of fragments, and each of K tasks has one list, all cut alike.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mnmt {

enum class Dtype : int { f32 = 0, bf16 = 1, f16 = 2 };

// Storage only: arithmetic happens on floats (cpu/simd.h widens and narrows).
struct bf16 {
  std::uint16_t bits;
};
struct f16 {
  std::uint16_t bits;
};

inline std::size_t bytes_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

}  // namespace mnmt
