// Warp-wide matrix products for X X^T, whose rows are gradients or masks.
//
// In mma.m16n8k16 (16-bit) and m16n8k256 (bits) lane 4 g + t holds of the 16 rows of A the rows g and g + 8, and of the
// 8 columns of B the column g, and in both cases the places t and t + 4 of the 8 words along the inner dimension. So
// the words that a lane holds of row g serve as both operands of X X^T, straight from memory: a sum does not care which
// element is called which, as long as all rows agree.
#pragma once

#include "cuda/device.cuh"

namespace mnmt {
namespace cuda {

#if defined(__CUDACC__)

#define MNMT_MMA(shape_and_types, constraint)                                                                         \
  asm volatile("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+" constraint(c[0]), "+" constraint(c[1]), "+" constraint(c[2]), "+" constraint(c[3])               \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

__device__ inline void mma(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], bf16) {
  MNMT_MMA("m16n8k16.row.col.f32.bf16.bf16.f32", "f");
}
__device__ inline void mma(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], f16) {
  MNMT_MMA("m16n8k16.row.col.f32.f16.f16.f32", "f");
}
// c += popcount(a & b).
__device__ inline void mma_bits(int (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  MNMT_MMA("m16n8k256.row.col.s32.b1.b1.s32.and.popc", "r");
}
#undef MNMT_MMA

#else

template <class T>
void mma(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], T) {
  emulation::mma(c, a, b, [](std::uint32_t x, std::uint32_t y) {
    const Granule<T> u = {{x, 0, 0, 0}}, v = {{y, 0, 0, 0}};
    return element(u, 0) * element(v, 0) + element(u, 1) * element(v, 1);
  });
}
inline void mma_bits(int (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  emulation::mma(c, a, b, [](std::uint32_t x, std::uint32_t y) { return __popc(x & y); });
}

#endif

// Where entry e of a lane's accumulators stands in the 16 x 8 product.
__device__ inline int mma_row(int lane, int e) { return lane / 4 + e / 2 * 8; }
__device__ inline int mma_column(int lane, int e) { return lane % 4 * 2 + e % 2; }

}  // namespace cuda
}  // namespace mnmt
