#if defined(__GNUC__) && !defined(__clang__)
// False alarms from the intrinsics' own headers (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "cpu/vocabulary_rows_kernels.h"

#include "cpu/simd.h"
#include "cpu/simd_exp.h"

namespace mnmt {
namespace MNMT_ISA {
namespace {

constexpr int kUnroll = 4;  // accumulators of each sum, which is also a shorter chain of roundings
constexpr int kStep = kUnroll * kLanes;
constexpr std::int64_t kBlock = 2048;  // terms that are summed in fp32, 32 or 64 to a lane; blocks are summed in fp64
constexpr float kLowest = -3.402823466e38f;
constexpr float kInfinity = __builtin_inff();

// ------------------------------------------------------------------------------------------------------------- summing

enum class Row { teacher, student, student_mixture };

struct LaneSums {
  F32 exps = zero(), tempered = zero(), tempered_y = zero(), logits = zero(), mixture = zero(), mixture_logits = zero();
};

MNMT_INLINE LaneSums add(const LaneSums& a, const LaneSums& b) {
  return {add(a.exps, b.exps),     add(a.tempered, b.tempered), add(a.tempered_y, b.tempered_y),
          add(a.logits, b.logits), add(a.mixture, b.mixture),   add(a.mixture_logits, b.mixture_logits)};
}

template <Row kind, bool tempered>
MNMT_INLINE void add_terms(LaneSums* sums, F32 x, F32 m, F32 inverse_temperature) {
  const F32 e_x = exp(x);
  sums->exps = add(sums->exps, e_x);
  F32 y = x, e_y = e_x;
  if (tempered) {
    y = mul(x, inverse_temperature);
    e_y = exp(y);
    sums->tempered = add(sums->tempered, e_y);
  }
  if (kind == Row::teacher) {
    sums->tempered_y = fma(e_y, max(set1(kExpLowest), y), sums->tempered_y);  // finite, and e^y is 0 where it differs
  } else {
    sums->logits = add(sums->logits, x);
  }
  if (kind == Row::student_mixture) {
    sums->mixture = add(sums->mixture, m);
    sums->mixture_logits = add(sums->mixture_logits, mul_or_zero(m, x));
  }
}

// n is a multiple of kStep.
template <class T, Row kind, bool tempered>
void sum_block(const T* logits, const float* mixture, std::int64_t n, RowScale scale, RowSums* row) {
  constexpr bool mixed = kind == Row::student_mixture;
  const F32 top = set1(scale.max), inverse_temperature = set1(scale.inverse_temperature);
  LaneSums sums[kUnroll];
  for (std::int64_t i = 0; i < n; i += kStep) {
    for (int u = 0; u < kUnroll; ++u) {
      const F32 x = sub(load(logits + i + u * kLanes), top);
      const F32 m = mixed ? load(mixture + i + u * kLanes) : zero();
      add_terms<kind, tempered>(&sums[u], x, m, inverse_temperature);
    }
  }
  const LaneSums all = add(add(sums[0], sums[1]), add(sums[2], sums[3]));
  const double exps = reduce_add(all.exps);
  row->exps += exps;
  row->tempered += tempered ? reduce_add(all.tempered) : exps;
  if (kind == Row::teacher) row->tempered_y += reduce_add(all.tempered_y);
  if (kind != Row::teacher) row->logits += reduce_add(all.logits);
  if (mixed) row->mixture += reduce_add(all.mixture);
  if (mixed) row->mixture_logits += reduce_add(all.mixture_logits);
}

template <class T, Row kind, bool tempered>
RowSums sum_as(const T* logits, const float* mixture, std::int64_t n, RowScale scale) {
  constexpr bool mixed = kind == Row::student_mixture;
  RowSums row;
  const std::int64_t whole = n / kStep * kStep;
  for (std::int64_t i = 0; i < whole; i += kBlock)
    sum_block<T, kind, tempered>(logits + i, mixed ? mixture + i : nullptr, whole - i < kBlock ? whole - i : kBlock,
                                 scale, &row);
  if (whole == n) return row;
  // The rest goes through a copy that is filled up with masked words. They add 0 to every sum but that of the logits.
  T z[kStep];
  float m[kStep] = {};
  double rest = row.logits;
  for (int i = 0; i < kStep; ++i) {
    narrow(-kInfinity, &z[i]);
    if (i >= n - whole) continue;
    z[i] = logits[whole + i];
    if (mixed) m[i] = mixture[whole + i];
    rest += static_cast<double>(widen(z[i])) - scale.max;
  }
  sum_block<T, kind, tempered>(z, m, kStep, scale, &row);
  row.logits = rest;
  return row;
}

template <class T, Row kind>
RowSums sum(const void* logits, const float* mixture, std::int64_t n, RowScale scale) {
  const T* z = static_cast<const T*>(logits);
  return scale.inverse_temperature == 1.0f ? sum_as<T, kind, false>(z, mixture, n, scale)
                                           : sum_as<T, kind, true>(z, mixture, n, scale);
}

template <class T>
float largest(const void* logits, std::int64_t n) {
  const T* z = static_cast<const T*>(logits);
  F32 m[kUnroll] = {set1(kLowest), set1(kLowest), set1(kLowest), set1(kLowest)};
  std::int64_t i = 0;
  for (; i + kUnroll * kLanes <= n; i += kUnroll * kLanes)
    for (int u = 0; u < kUnroll; ++u) m[u] = max(load(z + i + u * kLanes), m[u]);
  for (; i < n; i += kLanes) {
    const int some = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    m[0] = max(load_some(z + i, some, kLowest), m[0]);
  }
  return reduce_max(max(max(m[0], m[1]), max(m[2], m[3])));
}

// ------------------------------------------------------------------------------------------------------------- writing

// As `store`, but a subnormal may become 0: what the machine's own rounding to bf16 does.
template <class T>
MNMT_INLINE void store_normal(T* p, F32 a) {
  store(p, a);
}
#if defined(MNMT_ISA_avx512_bf16)
MNMT_INLINE void store_normal(bf16* p, F32 a) {
  const __m256bh rounded = _mm512_cvtneps_pbh(a.v);
  std::memcpy(p, &rounded, sizeof rounded);
}
#endif

// In both, the last few elements go through a copy of one whole vector.

template <class T, bool accumulate>
void write_teacher_as(const T* logits, float* mixture, std::int64_t n, RowScale scale, float share) {
  const F32 top = set1(scale.max), inverse_temperature = set1(scale.inverse_temperature), shares = set1(share);
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F32 e_y = exp(mul(sub(load(logits + i), top), inverse_temperature));
    store(mixture + i, accumulate ? fma(shares, e_y, load(mixture + i)) : mul(shares, e_y));
  }
  if (i == n) return;
  T z[kLanes] = {};
  float m[kLanes] = {};
  std::memcpy(z, logits + i, (n - i) * sizeof(T));
  std::memcpy(m, mixture + i, (n - i) * sizeof(float));
  write_teacher_as<T, accumulate>(z, m, kLanes, scale, share);
  std::memcpy(mixture + i, m, (n - i) * sizeof(float));
}

template <class T>
void write_teacher(const void* logits, float* mixture, std::int64_t n, RowScale scale, float share, bool accumulate) {
  const T* z = static_cast<const T*>(logits);
  accumulate ? write_teacher_as<T, true>(z, mixture, n, scale, share)
             : write_teacher_as<T, false>(z, mixture, n, scale, share);
}

template <class T, class Out, bool mixed, bool tempered>
void write_student_as(const T* logits, const float* mixture, Out* out, std::int64_t n, RowScale scale, float plain,
                      float share, float temperature) {
  const F32 top = set1(scale.max), inverse_temperature = set1(scale.inverse_temperature);
  const F32 a = set1(plain), b = set1(share), c = set1(-temperature);
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F32 x = sub(load(logits + i), top);
    F32 g = mul(a, exp(x));
    if (tempered) g = fma(b, exp(mul(x, inverse_temperature)), g);
    if (mixed) g = fma(c, load(mixture + i), g);
    store_normal(out + i, g);
  }
  if (i == n) return;
  T z[kLanes] = {};
  float m[kLanes] = {};
  Out o[kLanes];
  std::memcpy(z, logits + i, (n - i) * sizeof(T));
  if (mixed) std::memcpy(m, mixture + i, (n - i) * sizeof(float));
  write_student_as<T, Out, mixed, tempered>(z, m, o, kLanes, scale, plain, share, temperature);
  std::memcpy(out + i, o, (n - i) * sizeof(Out));
}

template <class T, class Out>
void write_student(const void* logits, const float* mixture, void* out, std::int64_t n, RowScale scale, float plain,
                   float tempered, float temperature) {
  const T* z = static_cast<const T*>(logits);
  Out* o = static_cast<Out*>(out);
  const bool at_one = scale.inverse_temperature == 1.0f;
  const auto write = mixture == nullptr ? write_student_as<T, Out, false, false>
                     : at_one           ? write_student_as<T, Out, true, false>
                                        : write_student_as<T, Out, true, true>;
  write(z, mixture, o, n, scale, plain, tempered, temperature);
}

// ----------------------------------------------------------------------------------------------------- single elements

template <class T>
float get(const void* data, std::int64_t i) {
  return widen(static_cast<const T*>(data)[i]);
}

template <class T>
void put(void* data, std::int64_t i, float x) {
  narrow(x, static_cast<T*>(data) + i);
}

void exps(const float* x, float* e_x, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(e_x + i, exp(load(x + i)));
  if (i < n) store_some(e_x + i, exp(load_some(x + i, static_cast<int>(n - i))), static_cast<int>(n - i));
}

}  // namespace

extern const VocabularyRowKernels vocabulary_row_kernels;
const VocabularyRowKernels vocabulary_row_kernels{
    {largest<float>, largest<bf16>, largest<f16>},
    {sum<float, Row::teacher>, sum<bf16, Row::teacher>, sum<f16, Row::teacher>},
    {sum<float, Row::student>, sum<bf16, Row::student>, sum<f16, Row::student>},
    {sum<float, Row::student_mixture>, sum<bf16, Row::student_mixture>, sum<f16, Row::student_mixture>},
    {write_teacher<float>, write_teacher<bf16>, write_teacher<f16>},
    {{write_student<float, float>, write_student<float, bf16>, write_student<float, f16>},
     {write_student<bf16, float>, write_student<bf16, bf16>, write_student<bf16, f16>},
     {write_student<f16, float>, write_student<f16, bf16>, write_student<f16, f16>}},
    {get<float>, get<bf16>, get<f16>},
    {put<float>, put<bf16>, put<f16>},
    exps,
};

}  // namespace MNMT_ISA
}  // namespace mnmt
