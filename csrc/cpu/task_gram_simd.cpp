// All pairs of rows of a tile. Rows are taken in groups of kGroup; a pair of groups keeps one vector of fp32 sums per
// pair of rows in registers while it walks the tile, and adds them to fp64 sums at its end. On its way it prefetches
// its share of the next tile: otherwise memory would rest while the later groups work on rows that the cache has
// already.
#include "cpu/simd.h"
#include "cpu/task_gram_kernels.h"

namespace mnmt {
namespace MNMT_ISA {
namespace {

// Each step of the inner loop has kGroup^2 * kUnroll independent sums: enough to hide the latency of fma, few enough
// for the registers (16, or 32 with AVX-512).
#if defined(MNMT_ISA_scalar) || defined(MNMT_ISA_avx2)
constexpr int kGroup = 2, kUnroll = 2;
#else
constexpr int kGroup = 4, kUnroll = 1;
#endif
static_assert(kGramPadding % kGroup == 0, "rows come in whole groups");

constexpr int kSums = kLanes / 2;    // doubles per pair of rows
constexpr std::int64_t kWidth = 64;  // staged rows are a multiple of this long, which every step divides

// sums[0 .. kSums) += a, its halves added to each other in fp32 first.
MNMT_INLINE void add_wide(double* sums, F32 a) {
#if defined(MNMT_ISA_scalar)
  for (int i = 0; i < kSums; ++i) sums[i] += a.v[i] + a.v[i + kSums];
#elif defined(MNMT_ISA_avx2)
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  _mm256_store_pd(sums, _mm256_add_pd(_mm256_load_pd(sums), _mm256_cvtps_pd(half)));
#else
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  _mm512_store_pd(sums, _mm512_add_pd(_mm512_load_pd(sums), _mm512_cvtps_pd(half)));
#endif
}

// What is multiplied straight from the rows: vectors of floats and, where the processor has a product for them, vectors
// of pairs of bf16 (exact products, fp32 sums; subnormal elements and sums count as zero). Other rows are staged.
template <class T>
constexpr bool kDirect = false;
template <class T>
struct Operand;

template <>
constexpr bool kDirect<float> = true;
template <>
struct Operand<float> {
  static constexpr int kElements = kLanes;
  using Vector = F32;
  MNMT_INLINE Vector of(const float* p) { return load(p); }
  MNMT_INLINE F32 fma(Vector a, Vector b, F32 c) { return MNMT_ISA::fma(a, b, c); }
};

#if defined(MNMT_ISA_avx512_bf16)
template <>
constexpr bool kDirect<bf16> = true;
template <>
struct Operand<bf16> {
  static constexpr int kElements = 2 * kLanes;
  using Vector = __m512i;
  MNMT_INLINE Vector of(const bf16* p) { return _mm512_loadu_si512(p); }
  MNMT_INLINE F32 fma(Vector a, Vector b, F32 c) {
    return {_mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b))};
  }
};
#endif

template <class T>
constexpr std::int64_t kStep = Operand<T>::kElements * kUnroll;

struct Ahead {  // where each row of the group begins that is to be prefetched, and bytes per element
  const char* rows[kGroup];
  std::int64_t bytes;
};

// All pairs of a row of `left` with a row of `right`, kGroup each, over n elements; if the two are one group
// (kTriangle), only those with the first not after the second.
template <class T, bool kWeighted, bool kTriangle>
void add_groups(const T* const* left, const T* const* right, const float* weights, std::int64_t n, Ahead ahead,
                double* sums) {
  using Op = Operand<T>;
  const T *a[kGroup], *b[kGroup];
  F32 acc[kUnroll][kGroup][kGroup];
#pragma GCC unroll 4
  for (int i = 0; i < kGroup; ++i) {
    a[i] = left[i];
    b[i] = right[i];
#pragma GCC unroll 8
    for (int j = 0; j < kGroup * kUnroll; ++j) acc[j / kGroup][i][j % kGroup] = zero();
  }
  for (std::int64_t p = 0; p < n; p += kStep<T>) {
#pragma GCC unroll 2
    for (int u = 0; u < kUnroll; ++u) {
      const std::int64_t q = p + u * Op::kElements;
      typename Op::Vector y[kGroup];
#pragma GCC unroll 4
      for (int j = 0; j < kGroup; ++j) y[j] = Op::of(b[j] + q);
#pragma GCC unroll 4
      for (int i = 0; i < kGroup; ++i) {
        typename Op::Vector x = kTriangle ? y[i] : Op::of(a[i] + q);
        if constexpr (kWeighted) x = mul(x, load(weights + q));
#pragma GCC unroll 4
        for (int j = kTriangle ? i : 0; j < kGroup; ++j) acc[u][i][j] = Op::fma(x, y[j], acc[u][i][j]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kGroup; ++r) __builtin_prefetch(ahead.rows[r] + p * ahead.bytes);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kGroup; ++i)
#pragma GCC unroll 4
    for (int j = kTriangle ? i : 0; j < kGroup; ++j) {
      F32 sum = acc[0][i][j];
      if constexpr (kUnroll == 2) sum = add(sum, acc[kUnroll - 1][i][j]);
      add_wide(sums + (i * kGroup + j) * kSums, sum);
    }
}

std::int64_t groups_of(int tasks) { return (tasks + kGroup - 1) / kGroup; }

std::int64_t pairs_of(std::int64_t groups) { return groups * (groups + 1) / 2; }

// `rows` are those of the tile, or what they were staged as; n is a multiple of kStep<T>.
template <class T, bool kWeighted>
void add_pairs(const GramTile& tile, const T* const* rows, const float* weights, std::int64_t n, double* sums) {
  const std::int64_t groups = groups_of(tile.tasks), pairs = pairs_of(groups);
  std::int64_t pair = 0;
  for (std::int64_t i = 0; i < groups; ++i)
    for (std::int64_t j = i; j < groups; ++j, ++pair) {
      Ahead ahead;
      ahead.bytes = tile.dtype == Dtype::f32 ? 4 : 2;
      const std::int64_t first = pair * tile.tasks / pairs, last = ((pair + 1) * tile.tasks - 1) / pairs;
      for (std::int64_t r = 0; r < kGroup; ++r)
        ahead.rows[r] = static_cast<const char*>(tile.rows[first + r < last ? first + r : last]) + tile.n * ahead.bytes;
      const auto add = i == j ? add_groups<T, kWeighted, true> : add_groups<T, kWeighted, false>;
      add(rows + i * kGroup, rows + j * kGroup, weights, n, ahead, sums + pair * kGroup * kGroup * kSums);
    }
}

std::int64_t widened(std::int64_t n) { return (n + kWidth - 1) / kWidth * kWidth; }

// out = x as floats, and zeros up to a multiple of kWidth.
template <class T>
void stage(const T* x, std::int64_t n, float* out) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(x + i));
  if (i < n) {
    store(out + i, load_some(x + i, static_cast<int>(n - i)));
    i += kLanes;
  }
  for (; i < widened(n); i += kLanes) store(out + i, zero());
}

// The elements of the tile from `from` on, by way of staged rows.
template <class T>
void add_staged(const GramTile& tile, std::int64_t from, const GramMemory& memory) {
  const std::int64_t n = tile.n - from, width = widened(n), rows = groups_of(tile.tasks) * kGroup;
  for (int k = 0; k < tile.tasks; ++k) stage(static_cast<const T*>(tile.rows[k]) + from, n, memory.staged + k * width);
  for (std::int64_t k = 0; k < rows; ++k)
    memory.rows[k] = memory.staged + (k < tile.tasks ? k : tile.tasks - 1) * width;
  if (tile.weights) {
    float* weights = memory.staged + tile.tasks * width;
    stage(tile.weights + from, n, weights);
    add_pairs<float, true>(tile, memory.rows, weights, width, memory.sums);
  } else {
    add_pairs<float, false>(tile, memory.rows, nullptr, width, memory.sums);
  }
}

// tile.combination = sum_k coefficients[k] rows[k], summed in fp32.
template <class T>
void combine(const GramTile& tile) {
  const T* const* rows = reinterpret_cast<const T* const*>(tile.rows);
  T* out = static_cast<T*>(tile.combination);
  std::int64_t p = 0;
  for (; p + 4 * kLanes <= tile.n; p += 4 * kLanes) {
    F32 sum[4] = {zero(), zero(), zero(), zero()};
    for (int k = 0; k < tile.tasks; ++k) {
      const F32 a = set1(tile.coefficients[k]);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sum[i] = fma(a, load(rows[k] + p + i * kLanes), sum[i]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) store(out + p + i * kLanes, sum[i]);
  }
  for (; p < tile.n; p += kLanes) {
    const int some = static_cast<int>(tile.n - p < kLanes ? tile.n - p : kLanes);
    F32 sum = zero();
    for (int k = 0; k < tile.tasks; ++k) sum = fma(set1(tile.coefficients[k]), load_some(rows[k] + p, some), sum);
    store_some(out + p, sum, some);
  }
}

template <class T>
void add_tile_of(const GramTile& tile, const GramMemory& memory) {
  std::int64_t done = 0;
  if constexpr (kDirect<T>) {
    const T* const* rows = reinterpret_cast<const T* const*>(tile.rows);
    const std::int64_t whole = tile.n - tile.n % kStep<T>;
    if (!tile.weights) {
      add_pairs<T, false>(tile, rows, nullptr, done = whole, memory.sums);
    } else if constexpr (sizeof(T) == sizeof(float)) {
      add_pairs<T, true>(tile, rows, tile.weights, done = whole, memory.sums);
    }
  }
  if (done < tile.n) add_staged<T>(tile, done, memory);
  if (tile.combination) combine<T>(tile);
}

void add_tile(const GramTile& tile, const GramMemory& memory) {
  switch (tile.dtype) {
    case Dtype::f32: return add_tile_of<float>(tile, memory);
    case Dtype::bf16: return add_tile_of<bf16>(tile, memory);
    case Dtype::f16: return add_tile_of<f16>(tile, memory);
  }
}

// Rows that are multiplied as they lie may take 32 KiB together, staged ones 16 KiB beside their source. Never fewer
// than 512 elements, or adding up the pairs' sums would cost as much as the products; never more than 2048, for the
// sake of fp32 sums.
std::int64_t tile_elements(Dtype dtype, int tasks, bool weighted) {
  const bool direct = dtype == Dtype::f32 || (dtype == Dtype::bf16 && kDirect<bf16> && !weighted);
  const std::int64_t n = (direct ? 32768 / static_cast<std::int64_t>(bytes_of(dtype)) : 4096) / tasks / kWidth * kWidth;
  return n < 512 ? 512 : n > 2048 ? 2048 : n;
}

std::int64_t sums_size(int tasks) { return pairs_of(groups_of(tasks)) * kGroup * kGroup * kSums; }

std::int64_t staged_size(int tasks, std::int64_t n) { return (tasks + 1) * widened(n); }

void pairs(const double* sums, int tasks, double* out) {
  const std::int64_t groups = groups_of(tasks);
  for (std::int64_t i = 0; i < tasks; ++i)
    for (std::int64_t j = i; j < tasks; ++j) {
      const std::int64_t I = i / kGroup, J = j / kGroup, pair = I * groups - I * (I - 1) / 2 + J - I;
      const double* lanes = sums + ((pair * kGroup + i % kGroup) * kGroup + j % kGroup) * kSums;
      double sum = 0.0;
      for (int l = 0; l < kSums; ++l) sum += lanes[l];
      *out++ = sum;
    }
}

}  // namespace

extern const GramKernels gram_kernels;
const GramKernels gram_kernels{tile_elements, sums_size, staged_size, add_tile, pairs};

}  // namespace MNMT_ISA
}  // namespace mnmt
