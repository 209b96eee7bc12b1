#include "cpu/masks_kernels.h"
#include "cpu/simd.h"
#include "cpu/simd_mask.h"

namespace mnmt {
namespace MNMT_ISA {
namespace {

MNMT_INLINE std::uint64_t pack_word(const float* x, F32 threshold) {
  std::uint64_t word = 0;
  for (int j = 0; j < 64; j += kLanes) word |= static_cast<std::uint64_t>(greater_equal(load(x + j), threshold)) << j;
  return word;
}

void pack(const float* x, std::int64_t n, float threshold, std::uint64_t* words) {
  const F32 t = set1(threshold);
  for (; n >= 64; n -= 64, x += 64) *words++ = pack_word(x, t);
  if (n == 0) return;
  *words = 0;
  for (int i = 0; i < n; ++i) *words |= static_cast<std::uint64_t>(x[i] >= threshold) << i;
}

// Words, several at once: load, both, and bit counts added to an accumulator.
#if defined(MNMT_ISA_scalar)

constexpr int kWords = 1;
using Words = std::uint64_t;
MNMT_INLINE Words load_words(const std::uint64_t* p) { return *p; }
MNMT_INLINE Words add_bits(Words sum, Words a, Words b) { return sum + static_cast<Words>(popcount(a & b)); }
MNMT_INLINE std::int64_t total(Words sum) { return static_cast<std::int64_t>(sum); }

#elif defined(MNMT_ISA_avx2)

constexpr int kWords = 4;
using Words = __m256i;
MNMT_INLINE Words load_words(const std::uint64_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
MNMT_INLINE Words add_bits(Words sum, Words a, Words b) {  // Mula's way: a table of the bits in four, looked up twice
  const Words table = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const Words four = _mm256_set1_epi8(15), both = _mm256_and_si256(a, b);
  const Words bits = _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(both, four)),
                                     _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(both, 4), four)));
  return _mm256_add_epi64(sum, _mm256_sad_epu8(bits, _mm256_setzero_si256()));
}
MNMT_INLINE std::int64_t total(Words sum) {
  std::int64_t x[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), sum);
  return x[0] + x[1] + x[2] + x[3];
}

#else  // avx512, avx512_bf16

constexpr int kWords = 8;
using Words = __m512i;
MNMT_INLINE Words load_words(const std::uint64_t* p) { return _mm512_loadu_si512(p); }
MNMT_INLINE Words add_bits(Words sum, Words a, Words b) {
  const Words both = _mm512_and_si512(a, b);
#if defined(MNMT_ISA_avx512_bf16)
  return _mm512_add_epi64(sum, _mm512_popcnt_epi64(both));
#else
  const Words table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const Words four = _mm512_set1_epi8(15);
  const Words bits = _mm512_add_epi8(_mm512_shuffle_epi8(table, _mm512_and_si512(both, four)),
                                     _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(both, 4), four)));
  return _mm512_add_epi64(sum, _mm512_sad_epu8(bits, _mm512_setzero_si512()));
#endif
}
MNMT_INLINE std::int64_t total(Words sum) {
  std::int64_t x[8];
  _mm512_storeu_si512(x, sum);
  return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

#endif

void shared_bits(const std::uint64_t* const a[2], const std::uint64_t* const b[2], std::int64_t words,
                 std::int64_t counts[4]) {
  Words s00{}, s01{}, s10{}, s11{};
  std::int64_t w = 0;
  for (; w + kWords <= words; w += kWords) {
    const Words a0 = load_words(a[0] + w), a1 = load_words(a[1] + w);
    const Words b0 = load_words(b[0] + w), b1 = load_words(b[1] + w);
    s00 = add_bits(s00, a0, b0);
    s01 = add_bits(s01, a0, b1);
    s10 = add_bits(s10, a1, b0);
    s11 = add_bits(s11, a1, b1);
  }
  counts[0] = total(s00);
  counts[1] = total(s01);
  counts[2] = total(s10);
  counts[3] = total(s11);
  for (; w < words; ++w)
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) counts[2 * i + j] += popcount(a[i][w] & b[j][w]);
}

}  // namespace

extern const MaskKernels mask_kernels;
const MaskKernels mask_kernels{pack, shared_bits};

}  // namespace MNMT_ISA
}  // namespace mnmt
