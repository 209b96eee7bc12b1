// One vector type per instruction set, so that an inner loop is written once. Included by *_simd.cpp only, which CMake
// compiles once per instruction set with MNMT_ISA defined; everything here lives in that set's namespace.
//
// Rule for *_simd.cpp: no std:: templates or inline functions of shared headers that the linker might merge. It keeps
// one copy of an inline function of external linkage, and if that is the AVX-512 one, the scalar path dies on older
// machines.
#pragma once

#include <cstdint>
#include <cstring>

#if !defined(MNMT_ISA_scalar)
#if defined(__GNUC__) && !defined(__clang__)
// False alarms from the intrinsics' own headers (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

#include "mnmt/types.h"

namespace mnmt {
namespace MNMT_ISA {

#define MNMT_INLINE static inline __attribute__((always_inline))

// ---------------------------------------------------------------------------------------------------- single elements

MNMT_INLINE float widen(float x) { return x; }
MNMT_INLINE float widen(bf16 x) {
  const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
MNMT_INLINE float float_of_bits(std::uint32_t bits) {
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
MNMT_INLINE std::uint32_t bits_of_float(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
// By hand, since compilers know _Float16 only of late. Exact.
MNMT_INLINE float widen(f16 x) {
  const std::uint32_t sign = (x.bits & 0x8000u) << 16, rest = (x.bits & 0x7fffu) << 13;
  const float y = rest >= 0x0f800000u   ? float_of_bits(rest | 0x7f800000u)  // infinity, NaN
                  : rest >= 0x00800000u ? float_of_bits(rest + (112u << 23))
                                        : float_of_bits(rest + (113u << 23)) - 6.103515625e-05f;  // subnormal
  return float_of_bits(bits_of_float(y) | sign);
}
MNMT_INLINE void narrow(float x, float* out) { *out = x; }
MNMT_INLINE void narrow(float x, bf16* out) {  // to nearest, ties to even; NaN stays NaN
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) {
    out->bits = static_cast<std::uint16_t>((bits >> 16) | 0x40u);
    return;
  }
  out->bits = static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
MNMT_INLINE void narrow(float x, f16* out) {
  const std::uint32_t u = bits_of_float(x), a = u & 0x7fffffffu;
  const std::uint32_t h = a > 0x7f800000u    ? 0x7e00u  // NaN
                          : a >= 0x477ff000u ? 0x7c00u  // rounds to infinity
                          : a < 0x38800000u  ? bits_of_float(float_of_bits(a) + 0.5f) - 0x3f000000u  // subnormal
                                             : (a - (112u << 23) + 0xfffu + (a >> 13 & 1u)) >> 13;
  out->bits = static_cast<std::uint16_t>((u >> 16 & 0x8000u) | h);
}

// --------------------------------------------------------------------------------------------------------- F32 vectors

#if defined(MNMT_ISA_scalar)

constexpr int kLanes = 8;
struct F32 {
  float v[kLanes];
};
#define MNMT_LANES for (int i = 0; i < kLanes; ++i)
MNMT_INLINE F32 set1(float x) {
  F32 r;
  MNMT_LANES r.v[i] = x;
  return r;
}
MNMT_INLINE F32 add(F32 a, F32 b) {
  F32 r;
  MNMT_LANES r.v[i] = a.v[i] + b.v[i];
  return r;
}
MNMT_INLINE F32 sub(F32 a, F32 b) {
  F32 r;
  MNMT_LANES r.v[i] = a.v[i] - b.v[i];
  return r;
}
MNMT_INLINE F32 mul(F32 a, F32 b) {
  F32 r;
  MNMT_LANES r.v[i] = a.v[i] * b.v[i];
  return r;
}
MNMT_INLINE F32 fma(F32 a, F32 b, F32 c) {
  F32 r;
  MNMT_LANES r.v[i] = a.v[i] * b.v[i] + c.v[i];
  return r;
}
MNMT_INLINE F32 max(F32 a, F32 b) {
  F32 r;
  MNMT_LANES r.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
  return r;
}
MNMT_INLINE F32 min(F32 a, F32 b) {
  F32 r;
  MNMT_LANES r.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
  return r;
}
template <class T>
MNMT_INLINE F32 load(const T* p) {
  F32 r;
  MNMT_LANES r.v[i] = widen(p[i]);
  return r;
}
template <class T>
MNMT_INLINE void store(T* p, F32 a) {
  MNMT_LANES narrow(a.v[i], p + i);
}
#undef MNMT_LANES

#elif defined(MNMT_ISA_avx2)

constexpr int kLanes = 8;
struct F32 {
  __m256 v;
};
MNMT_INLINE F32 set1(float x) { return {_mm256_set1_ps(x)}; }
MNMT_INLINE F32 add(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
MNMT_INLINE F32 sub(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
MNMT_INLINE F32 mul(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
MNMT_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
MNMT_INLINE F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
MNMT_INLINE F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
MNMT_INLINE F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
MNMT_INLINE F32 load(const bf16* p) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16))};
}
MNMT_INLINE F32 load(const f16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
MNMT_INLINE void store(float* p, F32 a) { _mm256_storeu_ps(p, a.v); }
MNMT_INLINE void store(bf16* p, F32 a) {
  const __m256i x = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(x, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i y = _mm256_blendv_epi8(rounded, quiet, nan);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packus_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1)));
}
MNMT_INLINE void store(f16* p, F32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}

#else  // avx512, avx512_bf16

constexpr int kLanes = 16;
struct F32 {
  __m512 v;
};
MNMT_INLINE F32 set1(float x) { return {_mm512_set1_ps(x)}; }
MNMT_INLINE F32 add(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
MNMT_INLINE F32 sub(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
MNMT_INLINE F32 mul(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
MNMT_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
MNMT_INLINE F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
MNMT_INLINE F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
MNMT_INLINE F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
MNMT_INLINE F32 load(const bf16* p) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
}
MNMT_INLINE F32 load(const f16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
MNMT_INLINE void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
MNMT_INLINE void store(bf16* p, F32 a) {
  const __m512i x = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i y = _mm512_mask_or_epi32(rounded, nan, _mm512_srli_epi32(x, 16), _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(y));
}
MNMT_INLINE void store(f16* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}

#endif

// ------------------------------------------------------------------------------------------- for all instruction sets

MNMT_INLINE F32 zero() { return set1(0.0f); }

// The first n < kLanes elements, `rest` in the other lanes.
template <class T>
MNMT_INLINE F32 load_some(const T* p, int n, float rest = 0.0f) {
  float x[kLanes];
  for (int i = 0; i < kLanes; ++i) x[i] = i < n ? widen(p[i]) : rest;
  return load(x);
}

template <class T>
MNMT_INLINE void store_some(T* p, F32 a, int n) {
  float x[kLanes];
  store(x, a);
  for (int i = 0; i < n; ++i) narrow(x[i], p + i);
}

// Sum over lanes, halves first: the same order for every instruction set of the same width.
MNMT_INLINE float reduce_add(F32 a) {
  float x[kLanes];
  store(x, a);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
}

MNMT_INLINE float reduce_max(F32 a) {
  float x[kLanes];
  store(x, a);
  float m = x[0];
  for (int i = 1; i < kLanes; ++i) m = x[i] > m ? x[i] : m;
  return m;
}

}  // namespace MNMT_ISA
}  // namespace mnmt
