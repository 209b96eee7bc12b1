// Comparisons as bits, one per lane and lane 0 lowest, and the elements that they pick. Beside simd.h, by its rules.
#pragma once

#include "cpu/simd.h"

namespace mnmt {
namespace MNMT_ISA {

#if defined(MNMT_ISA_scalar)

#define MNMT_LANES for (int i = 0; i < kLanes; ++i)
MNMT_INLINE std::uint32_t greater(F32 a, F32 b) {
  std::uint32_t bits = 0;
  MNMT_LANES bits |= static_cast<std::uint32_t>(a.v[i] > b.v[i]) << i;
  return bits;
}
MNMT_INLINE std::uint32_t greater_equal(F32 a, F32 b) {
  std::uint32_t bits = 0;
  MNMT_LANES bits |= static_cast<std::uint32_t>(a.v[i] >= b.v[i]) << i;
  return bits;
}
// Lanes whose bit pattern without the lowest `shift` bits is `prefix`.
MNMT_INLINE std::uint32_t has_prefix(F32 a, int shift, std::uint32_t prefix) {
  std::uint32_t u[kLanes], bits = 0;
  std::memcpy(u, a.v, sizeof u);
  MNMT_LANES bits |= static_cast<std::uint32_t>(u[i] >> shift == prefix) << i;
  return bits;
}
// Writes the lanes whose bit is set to out[0], out[1], ...; may write anything to the rest of out[0 .. kLanes).
MNMT_INLINE void pick(float* out, F32 a, std::uint32_t bits) {
  MNMT_LANES {
    *out = a.v[i];
    out += bits >> i & 1u;
  }
}
MNMT_INLINE std::int64_t popcount(std::uint64_t x) {
  x -= x >> 1 & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
  x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return static_cast<std::int64_t>(x * 0x0101010101010101u >> 56);
}
#undef MNMT_LANES

#else

MNMT_INLINE std::int64_t popcount(std::uint64_t x) { return __builtin_popcountll(x); }

#if defined(MNMT_ISA_avx2)

MNMT_INLINE std::uint32_t greater(F32 a, F32 b) {
  return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)));
}
MNMT_INLINE std::uint32_t greater_equal(F32 a, F32 b) {
  return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)));
}
MNMT_INLINE std::uint32_t has_prefix(F32 a, int shift, std::uint32_t prefix) {
  const __m256i top = _mm256_srl_epi32(_mm256_castps_si256(a.v), _mm_cvtsi32_si128(shift));
  const __m256i same = _mm256_cmpeq_epi32(top, _mm256_set1_epi32(static_cast<int>(prefix)));
  return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(same)));
}

// For each 8 bits the set ones' places, as the bytes of a word.
struct Places {
  std::uint64_t of[256];
  constexpr Places() : of() {
    for (int bits = 0; bits < 256; ++bits)
      for (int i = 0, at = 0; i < 8; ++i)
        if (bits >> i & 1) of[bits] |= static_cast<std::uint64_t>(i) << (8 * at++);
  }
};
static constexpr Places kPlaces;
MNMT_INLINE void pick(float* out, F32 a, std::uint32_t bits) {
  const __m256i places = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(kPlaces.of[bits])));
  _mm256_storeu_ps(out, _mm256_permutevar8x32_ps(a.v, places));
}

#else  // avx512, avx512_bf16

MNMT_INLINE std::uint32_t greater(F32 a, F32 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
MNMT_INLINE std::uint32_t greater_equal(F32 a, F32 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
MNMT_INLINE std::uint32_t has_prefix(F32 a, int shift, std::uint32_t prefix) {
  const __m512i top = _mm512_srl_epi32(_mm512_castps_si512(a.v), _mm_cvtsi32_si128(shift));
  return _mm512_cmpeq_epi32_mask(top, _mm512_set1_epi32(static_cast<int>(prefix)));
}
MNMT_INLINE void pick(float* out, F32 a, std::uint32_t bits) {
  // through a register: the form that compresses straight to memory is slow on Zen 4
  _mm512_storeu_ps(out, _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), a.v));
}

#endif
#endif

}  // namespace MNMT_ISA
}  // namespace mnmt
