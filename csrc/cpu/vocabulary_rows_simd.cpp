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

// --------------------------------------------------------------------------------------------------- rows of any type

// body(an element of this type): the element's only use is its type.
template <class Body>
MNMT_INLINE auto with_type(Dtype type, const Body& body) {
  if (type == Dtype::f32) return body(float{});
  if (type == Dtype::bf16) return body(bf16{});
  return body(f16{});
}

template <class T>
MNMT_INLINE const T* as(T, const void* data) {
  return static_cast<const T*>(data);
}
template <class T>
MNMT_INLINE T* as(T, void* data) {
  return static_cast<T*>(data);
}

// As `store`, but of the subnormals of bf16, where the machine rounds to bf16 itself, it makes 0.
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

float get(Dtype type, const void* data, std::int64_t i) {
  return with_type(type, [&](auto t) { return widen(as(t, data)[i]); });
}

void put(Dtype type, void* data, std::int64_t i, float x) {
  with_type(type, [&](auto t) { narrow(x, as(t, data) + i); });
}

// The last elements of a row, too few for a vector, are worked on in a copy that is filled up with masked words (-inf),
// whose exponentials are 0, and with zeros of the mixture.
struct Rest {
  float logits[kStep], mixture[kStep];

  template <class T>
  Rest(const T* z, const float* m, std::int64_t n) {
    for (std::int64_t i = 0; i < kStep; ++i) {
      logits[i] = i < n ? widen(z[i]) : -kInfinity;
      mixture[i] = i < n && m ? m[i] : 0.0f;
    }
  }
};

// ------------------------------------------------------------------------------------------------------------- summing

template <class T>
float largest_of(const T* z, std::int64_t n) {
  F32 m[kUnroll] = {set1(kLowest), set1(kLowest), set1(kLowest), set1(kLowest)};
  std::int64_t i = 0;
  for (; i + kStep <= n; i += kStep)
    for (int u = 0; u < kUnroll; ++u) m[u] = max(load(z + i + u * kLanes), m[u]);
  if (i < n) {
    const Rest rest(z + i, nullptr, n - i);
    for (int u = 0; u < kUnroll; ++u) m[u] = max(load(rest.logits + u * kLanes), m[u]);
  }
  return reduce_max(max(max(m[0], m[1]), max(m[2], m[3])));
}

float largest(RowView row) {
  return with_type(row.type, [&](auto t) { return largest_of(as(t, row.data), row.n); });
}

enum class Row { teacher, student, student_mixture };

struct LaneSums {
  F32 exps = zero(), tempered = zero(), tempered_y = zero(), logits = zero(), mixture = zero(), mixture_logits = zero();
};

MNMT_INLINE_LARGE LaneSums add(const LaneSums& a, const LaneSums& b) {
  return {add(a.exps, b.exps),     add(a.tempered, b.tempered), add(a.tempered_y, b.tempered_y),
          add(a.logits, b.logits), add(a.mixture, b.mixture),   add(a.mixture_logits, b.mixture_logits)};
}

template <Row kind, bool tempered>
MNMT_INLINE_LARGE void add_terms(LaneSums* sums, F32 x, F32 m, F32 inverse_temperature) {
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
template <Row kind, bool tempered, class T>
void sum_block(const T* z, const float* mixture, std::int64_t n, RowScale scale, RowSums* all) {
  constexpr bool mixed = kind == Row::student_mixture;
  const F32 top = set1(scale.max), inverse_temperature = set1(scale.inverse_temperature);
  LaneSums sums[kUnroll];
  for (std::int64_t i = 0; i < n; i += kStep) {
    for (int u = 0; u < kUnroll; ++u) {
      const F32 x = sub(load(z + i + u * kLanes), top);
      const F32 m = mixed ? load(mixture + i + u * kLanes) : zero();
      add_terms<kind, tempered>(&sums[u], x, m, inverse_temperature);
    }
  }
  const LaneSums block = add(add(sums[0], sums[1]), add(sums[2], sums[3]));
  const double exps = reduce_add(block.exps);
  all->exps += exps;
  all->tempered += tempered ? reduce_add(block.tempered) : exps;
  if (kind == Row::teacher) all->tempered_y += reduce_add(block.tempered_y);
  if (kind != Row::teacher) all->logits += reduce_add(block.logits);
  if (mixed) all->mixture += reduce_add(block.mixture);
  if (mixed) all->mixture_logits += reduce_add(block.mixture_logits);
}

template <Row kind, bool tempered, class T>
RowSums sum_of(const T* z, const float* mixture, std::int64_t n, RowScale scale) {
  constexpr bool mixed = kind == Row::student_mixture;
  RowSums all = {};
  const std::int64_t whole = n / kStep * kStep;
  for (std::int64_t i = 0; i < whole; i += kBlock)
    sum_block<kind, tempered>(z + i, mixed ? mixture + i : nullptr, whole - i < kBlock ? whole - i : kBlock, scale,
                              &all);
  if (whole == n) return all;
  const Rest rest(z + whole, mixed ? mixture + whole : nullptr, n - whole);
  double logits = all.logits;  // the one sum to which a masked word does not add 0
  for (std::int64_t i = 0; i < n - whole; ++i) logits += static_cast<double>(rest.logits[i]) - scale.max;
  sum_block<kind, tempered>(rest.logits, rest.mixture, kStep, scale, &all);
  all.logits = logits;
  return all;
}

template <Row kind, bool tempered>
RowSums sum(RowView row, const float* mixture, RowScale scale) {
  return with_type(row.type, [&](auto t) { return sum_of<kind, tempered>(as(t, row.data), mixture, row.n, scale); });
}

RowSums sum_teacher(RowView row, RowScale scale) {
  return scale.inverse_temperature == 1.0f ? sum<Row::teacher, false>(row, nullptr, scale)
                                           : sum<Row::teacher, true>(row, nullptr, scale);
}

RowSums sum_student(RowView row, const float* mixture, RowScale scale) {
  if (mixture == nullptr) return sum<Row::student, false>(row, nullptr, scale);
  return scale.inverse_temperature == 1.0f ? sum<Row::student_mixture, false>(row, mixture, scale)
                                           : sum<Row::student_mixture, true>(row, mixture, scale);
}

// ------------------------------------------------------------------------------------------------------------- writing

template <bool accumulate, class T>
void write_teacher_as(const T* z, float* mixture, std::int64_t n, RowScale scale, float share) {
  const F32 top = set1(scale.max), inverse_temperature = set1(scale.inverse_temperature), shares = set1(share);
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F32 e_y = exp(mul(sub(load(z + i), top), inverse_temperature));
    store(mixture + i, accumulate ? fma(shares, e_y, load(mixture + i)) : mul(shares, e_y));
  }
  if (i == n) return;
  Rest rest(z + i, accumulate ? mixture + i : nullptr, n - i);
  write_teacher_as<accumulate>(rest.logits, rest.mixture, kLanes, scale, share);
  std::memcpy(mixture + i, rest.mixture, (n - i) * sizeof(float));
}

void write_teacher(RowView row, float* mixture, RowScale scale, float share, bool accumulate) {
  with_type(row.type, [&](auto t) {
    const auto* z = as(t, row.data);
    accumulate ? write_teacher_as<true>(z, mixture, row.n, scale, share)
               : write_teacher_as<false>(z, mixture, row.n, scale, share);
  });
}

template <bool mixed, bool tempered, class T, class Out>
void write_student_as(const T* z, const float* mixture, Out* out, std::int64_t n, RowScale scale,
                      StudentShares shares) {
  const F32 top = set1(scale.max), inverse_temperature = set1(scale.inverse_temperature);
  const F32 a = set1(shares.plain), b = set1(shares.tempered), c = set1(-shares.mixture);
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F32 x = sub(load(z + i), top);
    F32 g = mul(a, exp(x));
    if (tempered) g = fma(b, exp(mul(x, inverse_temperature)), g);
    if (mixed) g = fma(c, load(mixture + i), g);
    store_normal(out + i, g);
  }
  if (i == n) return;
  const Rest rest(z + i, mixed ? mixture + i : nullptr, n - i);
  float g[kLanes];
  write_student_as<mixed, tempered>(rest.logits, rest.mixture, g, kLanes, scale, shares);
  for (std::int64_t j = i; j < n; ++j) narrow(g[j - i], out + j);
}

void write_student(RowView row, const float* mixture, void* out, Dtype out_type, RowScale scale, StudentShares shares) {
  with_type(row.type, [&](auto t) {
    const auto* z = as(t, row.data);
    with_type(out_type, [&](auto u) {
      auto* o = as(u, out);
      if (mixture == nullptr) return write_student_as<false, false>(z, nullptr, o, row.n, scale, shares);
      scale.inverse_temperature == 1.0f ? write_student_as<true, false>(z, mixture, o, row.n, scale, shares)
                                        : write_student_as<true, true>(z, mixture, o, row.n, scale, shares);
    });
  });
}

void exps(const float* x, float* e_x, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(e_x + i, exp(load(x + i)));
  if (i < n) store_some(e_x + i, exp(load_some(x + i, static_cast<int>(n - i))), static_cast<int>(n - i));
}

}  // namespace

extern const VocabularyRowKernels vocabulary_row_kernels;
const VocabularyRowKernels vocabulary_row_kernels{largest,       sum_teacher, sum_student, write_teacher,
                                                  write_student, get,         put,         exps};

}  // namespace MNMT_ISA
}  // namespace mnmt
