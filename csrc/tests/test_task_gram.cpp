// The Gram matrix and the combination against fp64 sums over the same values: every instruction set, element type, size
// with and without tails, rows that start anywhere, ragged and empty fragments; the same bits for any number of
// threads.
#include "mnmt/task_gram.h"

#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "mnmt/isa.h"

namespace {

using mnmt::Dtype;

// Multiples of 1/4 up to 4, which every element type holds exactly.
double value_of(Dtype dtype, const unsigned char* p) {
  if (dtype == Dtype::f32) {
    float x;
    std::memcpy(&x, p, 4);
    return x;
  }
  std::uint16_t bits;
  std::memcpy(&bits, p, 2);
  const int exponent_bits = dtype == Dtype::bf16 ? 8 : 5, mantissa_bits = 15 - exponent_bits;
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  if (exponent == 0) return 0.0;
  const double mantissa = 1.0 + (bits & ((1 << mantissa_bits) - 1)) / std::ldexp(1.0, mantissa_bits);
  return (bits >> 15 ? -1 : 1) * std::ldexp(mantissa, exponent - (1 << (exponent_bits - 1)) + 1);
}

void put(Dtype dtype, float x, unsigned char* p) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (dtype == Dtype::f32) {
    std::memcpy(p, &x, 4);
    return;
  }
  std::uint16_t half = static_cast<std::uint16_t>(bits >> 16);
  if (dtype == Dtype::f16)
    half = x == 0 ? 0 : static_cast<std::uint16_t>((bits >> 16 & 0x8000u) | ((bits >> 13 & 0x3ffffu) - (112u << 10)));
  std::memcpy(p, &half, 2);
}

struct Case {
  Dtype dtype;
  int tasks;
  std::vector<std::int64_t> sizes;
  bool weighted, combined;
};

// Each list of fragments in one exactly sized allocation that begins `offset` elements into itself.
class Problem {
 public:
  Problem(const Case& c, int offset, unsigned seed) : bytes_(mnmt::bytes_of(c.dtype)), offset_(offset) {
    std::mt19937 random(seed);
    problem.dtype = c.dtype;
    problem.tasks = c.tasks;
    problem.sizes = c.sizes;
    for (const auto n : c.sizes) total_ += n;
    values_.resize(c.tasks, std::vector<unsigned char>((total_ + offset) * bytes_));
    for (auto& task : values_) {
      for (std::int64_t i = 0; i < total_ + offset; ++i)
        put(c.dtype, 0.25f * (static_cast<int>(random() % 33) - 16), &task[i * bytes_]);
      add_fragments(task, &problem.gradients);
    }
    for (int k = 0; k < c.tasks && c.combined; ++k) problem.coefficients.push_back(0.5f * (k % 3) - 0.5f);
    out_.resize((total_ + offset) * bytes_);
    if (c.combined) add_fragments(out_, &problem.combination);
    for (std::int64_t i = 0; i < total_ + offset; ++i) weights_.push_back(0.25f * (i % 5));
    if (c.weighted) {
      const float* at = weights_.data() + offset;
      for (const auto n : c.sizes) problem.diagonal.push_back(at), at += n;
    }
  }

  double value(int task, std::int64_t i) const { return at(values_[task], i); }
  double weight(std::int64_t i) const { return problem.diagonal.empty() ? 1.0 : weights_[i + offset_]; }
  double combination(std::int64_t i) const { return at(out_, i); }
  std::int64_t total() const { return total_; }

  mnmt::TaskGram problem;

 private:
  template <class Pointer>
  void add_fragments(std::vector<unsigned char>& bytes, std::vector<Pointer>* fragments) {
    unsigned char* at = bytes.data() + offset_ * bytes_;
    for (const auto n : problem.sizes) fragments->push_back(at), at += n * bytes_;
  }
  double at(const std::vector<unsigned char>& bytes, std::int64_t i) const {
    return value_of(problem.dtype, &bytes[(i + offset_) * bytes_]);
  }

  std::int64_t bytes_, offset_, total_ = 0;
  std::vector<std::vector<unsigned char>> values_;
  std::vector<unsigned char> out_;
  std::vector<float> weights_;
};

void check(const Case& c, int offset, unsigned seed) {
  Problem p(c, offset, seed);
  const int K = c.tasks;
  std::vector<double> gram(K * K, -1.0);
  mnmt::task_gram(p.problem, gram.data(), 1);
  for (int i = 0; i < K; ++i)
    for (int j = 0; j < K; ++j) {
      double sum = 0.0, size = 0.0;
      for (std::int64_t n = 0; n < p.total(); ++n) {
        const double term = p.weight(n) * p.value(i, n) * p.value(j, n);
        sum += term;
        size += std::fabs(term);
      }
      CHECK_NEAR(gram[i * K + j], sum, 1e-6 * size);
      CHECK(gram[i * K + j] == gram[j * K + i]);
    }
  for (std::int64_t n = 0; c.combined && n < p.total(); ++n) {
    double sum = 0.0;
    for (int k = 0; k < K; ++k) sum += p.problem.coefficients[k] * p.value(k, n);
    CHECK_NEAR(p.combination(n), sum, c.dtype == Dtype::f32 ? 0.0 : std::fabs(sum) / 256);
  }
  for (const int threads : {2, 3, 5}) {
    std::vector<double> again(K * K);
    mnmt::task_gram(p.problem, again.data(), threads);
    CHECK(std::memcmp(gram.data(), again.data(), K * K * sizeof(double)) == 0);
  }
}

}  // namespace

int main() {
  const std::vector<std::vector<std::int64_t>> cuts{{}, {0}, {1}, {7}, {63}, {129}, {0, 5, 0, 700, 1, 0}, {2049, 3}};
  for (const auto& isa : mnmt::available_isas()) {
    mnmt::set_isa(isa);
    unsigned seed = 0;
    for (const auto dtype : {Dtype::f32, Dtype::bf16, Dtype::f16})
      for (const int tasks : {1, 2, 3, 4, 5, 8, 17})
        for (const auto& sizes : cuts)
          for (const bool weighted : {false, true}) {
            check({dtype, tasks, sizes, weighted, seed % 2 == 0}, static_cast<int>(seed % 4), seed);
            seed += 3;
          }
    check({Dtype::f32, 2, {70000, 1, 66001}, false, true}, 1, seed);  // several items, borders within
    check({Dtype::bf16, 3, {70000, 1, 66001}, true, false}, 3, seed);
  }
}
