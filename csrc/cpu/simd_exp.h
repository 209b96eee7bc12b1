// e^x over a vector; for *_simd.cpp, under the rule of simd.h.
#pragma once

#include "cpu/simd.h"

namespace mnmt {
namespace MNMT_ISA {

// Inlined, but not where the sanitizers check every temporary: there the compiler would take minutes.
#if defined(__SANITIZE_ADDRESS__)
#define MNMT_INLINE_LARGE static __attribute__((noinline))
#else
#define MNMT_INLINE_LARGE MNMT_INLINE
#endif

// Below this, e^x is exactly 0. (Smaller than any fp32 that is not subnormal: beside the e^0 = 1 that every softmax
// contains, nothing.)
constexpr float kExpLowest = -88.0f;

// a b, but 0 where a is 0, whatever b: p log p is 0 where p is 0.
#if defined(MNMT_ISA_scalar)
MNMT_INLINE F32 mul_or_zero(F32 a, F32 b) {
  F32 r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = a.v[i] == 0.0f ? 0.0f : a.v[i] * b.v[i];
  return r;
}
MNMT_INLINE F32 power_of_two(F32 t) {
  F32 r;
  for (int i = 0; i < kLanes; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, &t.v[i], 4);
    bits <<= 23;
    std::memcpy(&r.v[i], &bits, 4);
  }
  return r;
}
#elif defined(MNMT_ISA_avx2)
MNMT_INLINE F32 mul_or_zero(F32 a, F32 b) {
  const __m256 some = _mm256_cmp_ps(a.v, _mm256_setzero_ps(), _CMP_NEQ_UQ);
  return {_mm256_and_ps(some, _mm256_mul_ps(a.v, b.v))};
}
MNMT_INLINE F32 power_of_two(F32 t) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(t.v), 23))}; }
#else
MNMT_INLINE F32 mul_or_zero(F32 a, F32 b) {
  return {_mm512_maskz_mul_ps(_mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_NEQ_UQ), a.v, b.v)};
}
MNMT_INLINE F32 power_of_two(F32 t) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(t.v), 23))}; }
#endif

// e^x for x <= 88 with a relative error under 1e-7 (1 unit in the last place) where multiply-add is fused and 1.8e-7
// where not; exactly 1 at 0 and 0 from about -87.7 down; NaN stays NaN.
//
// x = n log 2 + r with |r| <= log(2) / 2, and e^x = 2^n e^r. Adding kRound rounds to an integer in the low bits of the
// sum, and those already hold n + 127, the exponent field of 2^n: shifting them into place makes 2^n, or 0 for
// n = -127. log 2 is taken off in two parts, of which the first has so few bits that n times it is exact. e^r is
// 1 + r + r^2 q(r) with q of least relative error (3e-9).
MNMT_INLINE_LARGE F32 exp(F32 x) {
  const float kRound = 12582912.0f + 127.0f;  // 1.5 * 2^23: one unit in the last place is 1
  x = max(set1(kExpLowest), x);               // in this order a NaN of x is kept
  const F32 t = fma(x, set1(1.44269504f), set1(kRound));
  const F32 n = sub(t, set1(kRound));
  F32 r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  F32 p = set1(1.3814540579915047e-3f);
  p = fma(p, r, set1(8.36874544620514e-3f));
  p = fma(p, r, set1(4.166838899254799e-2f));
  p = fma(p, r, set1(1.666652113199234e-1f));
  p = fma(p, r, set1(4.999999403953552e-1f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  return mul(p, power_of_two(t));
}

}  // namespace MNMT_ISA
}  // namespace mnmt
