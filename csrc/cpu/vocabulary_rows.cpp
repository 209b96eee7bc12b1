// Three passes over a row, of which the nearer caches serve the last two: the largest logit, the sums of exponentials,
// and, where something is written, the exponentials again. Tried and no faster: largest logit and sums in one pass over
// blocks; exponentials kept in fp32 from the second pass to the third. A row belongs to one thread and its blocks to a
// fixed order, so no result depends on the number of threads.
#include "mnmt/vocabulary_rows.h"

#include <cmath>

#include "cpu/vocabulary_rows_kernels.h"
#include "mnmt/isa.h"
#include "mnmt/parallel.h"

namespace mnmt {

MNMT_PER_ISA(VocabularyRowKernels, vocabulary_row_kernels)

namespace {

std::int64_t bytes_before(std::int64_t row, const VocabularyRows& in, Dtype type) {
  return row * in.vocabulary * static_cast<std::int64_t>(bytes_of(type));
}

RowView logits_of(std::int64_t row, const VocabularyRows& in) {
  return {static_cast<const char*>(in.logits) + bytes_before(row, in, in.logits_type), in.logits_type, in.vocabulary};
}

void teacher_row(const VocabularyRowKernels& kernels, const VocabularyRows& in, const TeacherMixture& teacher,
                 std::int64_t row, float* result) {
  const RowView logits = logits_of(row, in);
  const RowScale scale{kernels.largest(logits), 1.0f / in.temperature};
  const RowSums sums = kernels.sum_teacher(logits, scale);

  const double target_x = static_cast<double>(kernels.get(logits.type, logits.data, in.targets[row])) - scale.max;
  result[0] = static_cast<float>(std::log(sums.exps) - target_x);
  result[1] = static_cast<float>(std::log(sums.tempered) - sums.tempered_y / sums.tempered);
  kernels.write_teacher(logits, teacher.mixture + row * in.vocabulary, scale,
                        static_cast<float>(teacher.weights[row] / sums.tempered), teacher.accumulate);
}

void student_row(const VocabularyRowKernels& kernels, const VocabularyRows& in, const StudentLoss& student,
                 std::int64_t row, float* result) {
  const RowView logits = logits_of(row, in);
  const std::int64_t target = in.targets[row];
  const float* mixture = student.mixture ? student.mixture + row * in.vocabulary : nullptr;
  const double temperature = mixture ? in.temperature : 1.0;
  const RowScale scale{kernels.largest(logits), static_cast<float>(1.0 / temperature)};
  const RowSums sums = kernels.sum_student(logits, mixture, scale);

  const double target_x = static_cast<double>(kernels.get(logits.type, logits.data, target)) - scale.max;
  const double log_sum = std::log(sums.exps), tempered_log_sum = std::log(sums.tempered);
  const double nll = log_sum - target_x;  // >= 0: the sum contains e^0 = 1
  const double kd = temperature * (temperature * tempered_log_sum * sums.mixture - sums.mixture_logits);
  result[0] = static_cast<float>(nll);
  result[1] = static_cast<float>(log_sum - sums.logits / static_cast<double>(in.vocabulary));
  result[2] = mixture ? static_cast<float>(kd) : 0.0f;
  if (!student.out) return;

  // The target's entry is found before its logit may be overwritten, and from p - 1 = expm1(-nll), which loses nothing
  // where p is nearly 1.
  const double weight = student.weights ? student.weights[row] : 1.0;
  const double teachers = mixture ? temperature * student.mixture_weights[row] : 0.0;
  double at_target = weight * (std::expm1(-nll) + student.label_smoothing);
  if (mixture)
    at_target += teachers * std::exp(target_x / temperature - tempered_log_sum) - temperature * mixture[target];

  const bool one_softmax = scale.inverse_temperature == 1.0f;
  const double plain = (one_softmax ? weight + teachers : weight) / sums.exps;
  const double tempered = one_softmax ? 0.0 : teachers / sums.tempered;
  char* out = static_cast<char*>(student.out) + bytes_before(row, in, student.out_type);
  kernels.write_student(logits, mixture, out, student.out_type, scale,
                        {static_cast<float>(plain), static_cast<float>(tempered), static_cast<float>(temperature)});
  kernels.put(student.out_type, out, target, static_cast<float>(at_target));
}

}  // namespace

void teacher_rows(const VocabularyRows& in, const TeacherMixture& teacher, float* results) {
  const VocabularyRowKernels& kernels = vocabulary_row_kernels_per_isa.active();
  parallel_for(in.rows, in.threads,
               [&](std::int64_t row) { teacher_row(kernels, in, teacher, row, results + 2 * row); });
}

void student_rows(const VocabularyRows& in, const StudentLoss& student, float* results) {
  const VocabularyRowKernels& kernels = vocabulary_row_kernels_per_isa.active();
  parallel_for(in.rows, in.threads,
               [&](std::int64_t row) { student_row(kernels, in, student, row, results + 3 * row); });
}

void exponentials(const float* x, float* e_x, std::int64_t n) {
  vocabulary_row_kernels_per_isa.active().exps(x, e_x, n);
}

}  // namespace mnmt
