// F += s g^2 against fp64: every instruction set and element type, tails, pointers that start anywhere, ragged and
// empty fragments, and nothing beyond a fragment's end.
#include "mnmt/fisher_accumulate.h"

#include <cstring>
#include <vector>

#include "check.h"
#include "mnmt/isa.h"

namespace {

using mnmt::Dtype;

// 1 + i / 4 for i < 4, in each element type.
void put(Dtype dtype, int i, unsigned char* p) {
  const float x = 1.0f + 0.25f * i;
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const std::uint16_t half = dtype == Dtype::bf16 ? bits >> 16 : 0x3c00 + 0x100 * i;
  if (dtype == Dtype::f32)
    std::memcpy(p, &x, 4);
  else
    std::memcpy(p, &half, 2);
}

void check(Dtype dtype, const std::vector<std::int64_t>& sizes, std::int64_t offset, int threads) {
  const std::int64_t bytes = mnmt::bytes_of(dtype);
  std::int64_t total = offset;
  for (const auto n : sizes) total += n;
  std::vector<float> fisher(total + 1, 0.125f);
  std::vector<unsigned char> gradient(total * bytes);
  for (std::int64_t i = 0; i < total; ++i) put(dtype, static_cast<int>(i * 7 % 4), &gradient[i * bytes]);

  mnmt::FisherAccumulate problem{dtype, sizes, {}, {}, 0.3f};
  std::int64_t at = offset;
  for (const auto n : sizes) {
    problem.fisher.push_back(fisher.data() + at);
    problem.gradients.push_back(gradient.data() + at * bytes);
    at += n;
  }
  mnmt::fisher_accumulate(problem, threads);
  mnmt::fisher_accumulate(problem, threads);
  for (std::int64_t i = 0; i < total + 1; ++i) {
    const double g = 1.0 + 0.25 * static_cast<int>(i * 7 % 4);
    const double expected = i < offset || i == total ? 0.125 : 0.125 + 2 * static_cast<double>(0.3f) * g * g;
    CHECK_NEAR(fisher[i], expected, i < offset || i == total ? 0.0 : 3e-7 * expected);
  }
}

}  // namespace

int main() {
  for (const auto& isa : mnmt::available_isas()) {
    mnmt::set_isa(isa);
    for (const auto dtype : {Dtype::f32, Dtype::bf16, Dtype::f16})
      for (const std::int64_t offset : {0, 1, 3})
        for (const int threads : {1, 3}) {
          for (const std::int64_t n : {0, 1, 7, 63, 64, 65537}) check(dtype, {n}, offset, threads);
          check(dtype, {}, offset, threads);
          check(dtype, {0, 5, 0, 70000, 1, 0, 66001, 0}, offset, threads);
        }
  }
}
