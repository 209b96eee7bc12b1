// Rows of softmax against fp64 for every instruction set, type, place and odd size, and the exponential alone. Vectors
// are of exact size and start at an odd element, so that the sanitizers see a step beside a row.
#include "mnmt/vocabulary_rows.h"

#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "mnmt/isa.h"

using mnmt::Dtype;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// ------------------------------------------------------------------------------------------------ matrices of any type

float widen(const char* p, Dtype type) {
  float x = 0.0f;
  if (type == Dtype::f32) std::memcpy(&x, p, 4);
  if (type == Dtype::bf16) std::memcpy(reinterpret_cast<char*>(&x) + 2, p, 2);
  if (type == Dtype::f16) {
    _Float16 half;
    std::memcpy(&half, p, 2);
    x = static_cast<float>(half);
  }
  return x;
}

void narrow(float x, Dtype type, char* p) {  // bf16 cuts: the truth is made from what was stored
  if (type == Dtype::f32) std::memcpy(p, &x, 4);
  if (type == Dtype::bf16) std::memcpy(p, reinterpret_cast<char*>(&x) + 2, 2);
  if (type == Dtype::f16) {
    const _Float16 half = static_cast<_Float16>(x);
    std::memcpy(p, &half, 2);
  }
}

struct Matrix {
  Dtype type;
  std::vector<char> bytes;

  Matrix(Dtype type, std::size_t n) : type(type), bytes((n + 1) * mnmt::bytes_of(type)) {}
  char* data(std::size_t i = 0) { return bytes.data() + (i + 1) * mnmt::bytes_of(type); }
  double at(std::size_t i) { return widen(data(i), type); }
};

// Half a unit in the last place, and what fp32 arithmetic adds.
double tolerance(Dtype type, double magnitude) {
  const double relative = type == Dtype::f32 ? 0.0 : type == Dtype::bf16 ? 1.0 / 256 : 1.0 / 2048;
  const double smallest = type == Dtype::f16 ? 6e-8 : 0.0;  // spacing of subnormal fp16
  return relative * magnitude + smallest + 3e-6 * magnitude + 1e-6;
}

// ----------------------------------------------------------------------------------------------------------
// exponential

void test_exponentials(const std::string& isa) {
  std::vector<float> x;
  for (double v = 0.0; v >= -87.0; v -= 0.00037) x.push_back(static_cast<float>(v));
  const std::size_t usual = x.size();
  for (float v : {-89.0f, -1e4f, -3.4e38f, -std::numeric_limits<float>::infinity()}) x.push_back(v);
  x.push_back(std::numeric_limits<float>::quiet_NaN());
  std::vector<float> y(x.size(), -1.0f);
  mnmt::exponentials(x.data(), y.data(), static_cast<std::int64_t>(x.size()));
  CHECK(y[0] == 1.0f);
  const double bound = isa == "scalar" ? 1.8e-7 : 1.0e-7;  // without and with fused multiply-add
  for (std::size_t i = 0; i < usual; ++i) {
    const double truth = std::exp(static_cast<double>(x[i]));
    CHECK_NEAR(y[i] / truth, 1.0, bound);
  }
  for (std::size_t i = usual; i + 1 < x.size(); ++i) CHECK(y[i] == 0.0f);
  CHECK(std::isnan(y.back()));
}

// -----------------------------------------------------------------------------------------------------------------
// rows

struct Case {
  std::int64_t rows, V;
  Dtype in, out;
  float temperature;
  bool mixed, in_place;
};

std::vector<double> log_softmax(Matrix& logits, std::int64_t row, std::int64_t V, double temperature) {
  std::vector<double> log_p(V);
  double top = -kInfinity, sum = 0.0;
  for (std::int64_t v = 0; v < V; ++v) top = std::fmax(top, log_p[v] = logits.at(row * V + v) / temperature);
  for (double z : log_p) sum += std::exp(z - top);
  for (double& z : log_p) z -= top + std::log(sum);
  return log_p;
}

struct Inputs {
  Matrix logits;
  std::vector<std::int64_t> targets;
  std::vector<float> weights, mixture, mixture_weights;
};

Inputs make(const Case& c, std::mt19937& random) {
  std::normal_distribution<float> normal(0.0f, 4.0f);
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  Inputs in{Matrix(c.in, c.rows * c.V), {}, {}, {}, {}};
  for (std::int64_t i = 0; i < c.rows * c.V; ++i) narrow(normal(random), c.in, in.logits.data(i));
  for (std::int64_t t = 0; t < c.rows; ++t) {
    in.targets.push_back(t == 0 ? c.V - 1 : static_cast<std::int64_t>(random() % c.V));
    in.weights.push_back(uniform(random));
    in.mixture_weights.push_back(uniform(random));
    for (std::int64_t v = 0; v < c.V; ++v)
      in.mixture.push_back(2.0f * uniform(random) * in.mixture_weights[t] / static_cast<float>(c.V));
  }
  return in;
}

mnmt::VocabularyRows rows_of(const Case& c, Inputs& in, int threads) {
  mnmt::VocabularyRows rows;
  rows.rows = c.rows;
  rows.vocabulary = c.V;
  rows.logits = in.logits.data();
  rows.logits_type = c.in;
  rows.targets = in.targets.data();
  rows.temperature = c.temperature;
  rows.threads = threads;
  return rows;
}

void test_student(const Case& c, std::mt19937& random) {
  constexpr float kSmoothing = 0.1f;
  Inputs in = make(c, random);
  const Inputs original = in;
  std::vector<std::vector<char>> outs;
  for (int threads : {1, 3}) {
    in = original;
    Matrix separate(c.out, c.rows * c.V);
    Matrix& out = c.in_place ? in.logits : separate;
    std::vector<float> results(3 * c.rows);
    mnmt::StudentLoss loss{in.weights.data(), nullptr, nullptr, kSmoothing, out.data(), c.out};
    if (c.mixed) loss.mixture = in.mixture.data(), loss.mixture_weights = in.mixture_weights.data();
    mnmt::student_rows(rows_of(c, in, threads), loss, results.data());
    outs.push_back(out.bytes);
    outs.back().insert(outs.back().end(), reinterpret_cast<char*>(results.data()),
                       reinterpret_cast<char*>(results.data() + results.size()));
    if (threads > 1) break;
    Matrix logits = original.logits;
    for (std::int64_t t = 0; t < c.rows; ++t) {
      const auto log_p = log_softmax(logits, t, c.V, 1.0), log_q = log_softmax(logits, t, c.V, c.temperature);
      double uniform = 0.0, kd = 0.0;
      for (std::int64_t v = 0; v < c.V; ++v) {
        const double m = c.mixed ? in.mixture[t * c.V + v] : 0.0, W = c.mixed ? in.mixture_weights[t] : 0.0;
        uniform -= log_p[v] / static_cast<double>(c.V);
        kd -= static_cast<double>(c.temperature) * c.temperature * m * log_q[v];
        const double hit = v == in.targets[t] ? 1.0 - kSmoothing : 0.0;
        const double gradient =
            in.weights[t] * (std::exp(log_p[v]) - hit) + c.temperature * (W * std::exp(log_q[v]) - m);
        CHECK_NEAR(out.at(t * c.V + v), gradient, tolerance(c.out, std::fabs(gradient)));
      }
      CHECK_NEAR(results[3 * t], -log_p[in.targets[t]], 1e-6 * (1.0 - log_p[in.targets[t]]));
      CHECK_NEAR(results[3 * t + 1], uniform, 1e-6 * (1.0 + uniform));
      CHECK_NEAR(results[3 * t + 2], kd, 2e-6 * (1.0 + kd));
    }
  }
  CHECK(outs[0] == outs[1]);
}

void test_teacher(const Case& c, std::mt19937& random) {
  Inputs in = make(c, random);
  for (bool accumulate : {false, true}) {
    std::vector<float> mixture = in.mixture, results(2 * c.rows), again = in.mixture, results_again(2 * c.rows);
    mnmt::teacher_rows(rows_of(c, in, 1), {mixture.data(), in.weights.data(), accumulate}, results.data());
    mnmt::teacher_rows(rows_of(c, in, 2), {again.data(), in.weights.data(), accumulate}, results_again.data());
    CHECK(mixture == again && results == results_again);
    for (std::int64_t t = 0; t < c.rows; ++t) {
      const auto log_p = log_softmax(in.logits, t, c.V, 1.0), log_q = log_softmax(in.logits, t, c.V, c.temperature);
      double entropy = 0.0;
      for (std::int64_t v = 0; v < c.V; ++v) {
        entropy -= std::exp(log_q[v]) * log_q[v];
        const double added = in.weights[t] * std::exp(log_q[v]);
        const double truth = added + (accumulate ? in.mixture[t * c.V + v] : 0.0f);
        CHECK_NEAR(mixture[t * c.V + v], truth, 2e-6 * truth + 1e-30);
      }
      CHECK_NEAR(results[2 * t], -log_p[in.targets[t]], 1e-6 * (1.0 - log_p[in.targets[t]]));
      CHECK_NEAR(results[2 * t + 1], entropy, 2e-6 * (1.0 + entropy));
    }
  }
}

// Words that are masked, and logits far apart: no NaN, and a certain target costs nothing.
void test_extremes() {
  const float minus_infinity = -std::numeric_limits<float>::infinity();
  Case c{3, 67, Dtype::f32, Dtype::f32, 2.0f, true, false};
  Inputs in{Matrix(c.in, c.rows * c.V), {5, 66, 0}, {1, 1, 1}, std::vector<float>(c.rows * c.V, 0.0f), {1, 1, 1}};
  for (std::int64_t v = 0; v < c.V; ++v) {
    narrow(v == 5 ? 1e4f : -1e4f, c.in, in.logits.data(v));
    narrow(v == 66 ? 0.0f : minus_infinity, c.in, in.logits.data(c.V + v));
    narrow(1e4f, c.in, in.logits.data(2 * c.V + v));
  }
  in.mixture[5] = in.mixture[c.V + 66] = in.mixture[2 * c.V + 3] = 1.0f;
  const float log_size = std::log(static_cast<float>(c.V));

  std::vector<float> mixture(c.rows * c.V), of_teacher(2 * c.rows), of_student(3 * c.rows), out(c.rows * c.V);
  mnmt::teacher_rows(rows_of(c, in, 2), {mixture.data(), in.weights.data(), false}, of_teacher.data());
  const float teacher_truth[] = {0.0f, 0.0f, 0.0f, 0.0f, log_size, log_size};
  for (int i = 0; i < 6; ++i) CHECK_NEAR(of_teacher[i], teacher_truth[i], 1e-6 * log_size);
  CHECK(mixture[5] == 1.0f && mixture[6] == 0.0f && mixture[c.V + 66] == 1.0f && mixture[c.V] == 0.0f);

  const mnmt::StudentLoss loss{nullptr, in.mixture.data(), in.mixture_weights.data(), 0.0f, out.data(), Dtype::f32};
  mnmt::student_rows(rows_of(c, in, 2), loss, of_student.data());
  CHECK(of_student[0] == 0.0f && of_student[2] == 0.0f && of_student[3] == 0.0f && of_student[5] == 0.0f);
  CHECK_NEAR(of_student[1], 2e4 * 66 / 67, 1e-2);
  CHECK(of_student[4] == -minus_infinity);
  for (int i : {6, 7}) CHECK_NEAR(of_student[i], log_size, 1e-6 * log_size);
  CHECK_NEAR(of_student[8], 4.0 * log_size, 1e-5);
  for (std::int64_t v = 0; v < 2 * c.V; ++v) CHECK(out[v] == 0.0f);
}

}  // namespace

int main() {
  std::mt19937 random(20240229);
  const Dtype types[] = {Dtype::f32, Dtype::bf16, Dtype::f16};
  for (const auto& isa : mnmt::available_isas()) {
    mnmt::set_isa(isa);
    test_exponentials(isa);
    test_extremes();
    for (Dtype in : types) {
      for (std::int64_t V : {1, 7, 63, 64, 257, 4099}) {
        for (float temperature : {1.0f, 2.5f}) {
          test_teacher({3, V, in, in, temperature, true, false}, random);
          for (bool mixed : {false, true}) {
            test_student({3, V, in, in, temperature, mixed, true}, random);
            for (Dtype out : types) test_student({3, V, in, out, temperature, mixed, false}, random);
          }
        }
      }
      test_student({1, 65537, in, Dtype::bf16, 2.0f, true, false}, random);
      test_teacher({0, 5, in, in, 1.0f, true, false}, random);
    }
  }
}
