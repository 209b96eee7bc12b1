// Natural logarithms as fixed-point numbers. Beside simd.h, by its rules.
//
// The fp32 logarithm of 1e-10 is 23.03 give or take 1e-6, so where two such are near each other little is left of their
// difference. With 23 bits behind the point (and 9 before it: no float's logarithm is beyond 104) the difference is
// exact and both logarithms are right to 1e-7, whatever their size.
#pragma once

#include "cpu/simd.h"

namespace mnmt {
namespace MNMT_ISA {

constexpr float kLogUnit = 1.0f / (1 << 23);

#if defined(MNMT_ISA_scalar)

struct I32 {
  std::int32_t v[kLanes];
};
#define MNMT_LANES for (int i = 0; i < kLanes; ++i)
MNMT_INLINE I32 bits_of(F32 a) {
  I32 r;
  std::memcpy(r.v, a.v, sizeof r.v);
  return r;
}
MNMT_INLINE F32 float_of(I32 a) {
  F32 r;
  std::memcpy(r.v, a.v, sizeof r.v);
  return r;
}
MNMT_INLINE I32 set1(std::int32_t x) {
  I32 r;
  MNMT_LANES r.v[i] = x;
  return r;
}
MNMT_INLINE I32 add(I32 a, I32 b) {
  I32 r;
  MNMT_LANES r.v[i] = a.v[i] + b.v[i];
  return r;
}
MNMT_INLINE I32 sub(I32 a, I32 b) {
  I32 r;
  MNMT_LANES r.v[i] = a.v[i] - b.v[i];
  return r;
}
MNMT_INLINE I32 mul(I32 a, I32 b) {
  I32 r;
  MNMT_LANES r.v[i] = a.v[i] * b.v[i];
  return r;
}
MNMT_INLINE I32 bit_and(I32 a, I32 b) {
  I32 r;
  MNMT_LANES r.v[i] = a.v[i] & b.v[i];
  return r;
}
MNMT_INLINE I32 exponent_of(I32 a) {
  I32 r;
  MNMT_LANES r.v[i] = a.v[i] >> 23;
  return r;
}
MNMT_INLINE F32 to_float(I32 a) {
  F32 r;
  MNMT_LANES r.v[i] = static_cast<float>(a.v[i]);
  return r;
}
MNMT_INLINE I32 round_to_int(F32 a) {
  I32 r;
  MNMT_LANES r.v[i] = static_cast<std::int32_t>(__builtin_lrintf(a.v[i]));
  return r;
}
MNMT_INLINE I32 load(const std::int32_t* p) {
  I32 r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
MNMT_INLINE void store(std::int32_t* p, I32 a) { std::memcpy(p, a.v, sizeof a.v); }
#undef MNMT_LANES

#elif defined(MNMT_ISA_avx2)

struct I32 {
  __m256i v;
};
MNMT_INLINE I32 bits_of(F32 a) { return {_mm256_castps_si256(a.v)}; }
MNMT_INLINE F32 float_of(I32 a) { return {_mm256_castsi256_ps(a.v)}; }
MNMT_INLINE I32 set1(std::int32_t x) { return {_mm256_set1_epi32(x)}; }
MNMT_INLINE I32 add(I32 a, I32 b) { return {_mm256_add_epi32(a.v, b.v)}; }
MNMT_INLINE I32 sub(I32 a, I32 b) { return {_mm256_sub_epi32(a.v, b.v)}; }
MNMT_INLINE I32 mul(I32 a, I32 b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
MNMT_INLINE I32 bit_and(I32 a, I32 b) { return {_mm256_and_si256(a.v, b.v)}; }
MNMT_INLINE I32 exponent_of(I32 a) { return {_mm256_srai_epi32(a.v, 23)}; }
MNMT_INLINE F32 to_float(I32 a) { return {_mm256_cvtepi32_ps(a.v)}; }
MNMT_INLINE I32 round_to_int(F32 a) { return {_mm256_cvtps_epi32(a.v)}; }
MNMT_INLINE I32 load(const std::int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
MNMT_INLINE void store(std::int32_t* p, I32 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v); }

#else  // avx512, avx512_bf16

struct I32 {
  __m512i v;
};
MNMT_INLINE I32 bits_of(F32 a) { return {_mm512_castps_si512(a.v)}; }
MNMT_INLINE F32 float_of(I32 a) { return {_mm512_castsi512_ps(a.v)}; }
MNMT_INLINE I32 set1(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
MNMT_INLINE I32 add(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
MNMT_INLINE I32 sub(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
MNMT_INLINE I32 mul(I32 a, I32 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
MNMT_INLINE I32 bit_and(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
MNMT_INLINE I32 exponent_of(I32 a) { return {_mm512_srai_epi32(a.v, 23)}; }
MNMT_INLINE F32 to_float(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }
MNMT_INLINE I32 round_to_int(F32 a) { return {_mm512_cvtps_epi32(a.v)}; }
MNMT_INLINE I32 load(const std::int32_t* p) { return {_mm512_loadu_si512(p)}; }
MNMT_INLINE void store(std::int32_t* p, I32 a) { _mm512_storeu_si512(p, a.v); }

#endif

// log(x) / kLogUnit, rounded; x > 0, finite and normal. x = 2^e m with m in [sqrt(1/2), sqrt(2)), and log(m) by the
// polynomial of Cephes' logf. Its log(2) is 355/512 - 2.12e-4, whose first part has no rounding here.
MNMT_INLINE I32 log_fixed(F32 x) {
  const I32 root = set1(std::int32_t{0x3f3504f3});  // sqrt(1/2)
  const I32 above = sub(bits_of(x), root);
  const I32 e = exponent_of(above);
  const F32 f = sub(float_of(add(bit_and(above, set1(std::int32_t{0x7fffff})), root)), set1(1.0f));
  F32 p = set1(7.0376836292e-2f);
  p = fma(p, f, set1(-1.1514610310e-1f));
  p = fma(p, f, set1(1.1676998740e-1f));
  p = fma(p, f, set1(-1.2420140846e-1f));
  p = fma(p, f, set1(1.4249322787e-1f));
  p = fma(p, f, set1(-1.6668057665e-1f));
  p = fma(p, f, set1(2.0000714765e-1f));
  p = fma(p, f, set1(-2.4999993993e-1f));
  p = fma(p, f, set1(3.3333331174e-1f));
  const F32 f2 = mul(f, f);
  F32 y = mul(mul(p, f), f2);
  y = fma(to_float(e), set1(-2.12194440e-4f), y);
  y = add(f, fma(f2, set1(-0.5f), y));
  return add(mul(e, set1(std::int32_t{355 << 14})), round_to_int(mul(y, set1(1.0f / kLogUnit))));
}

}  // namespace MNMT_ISA
}  // namespace mnmt
