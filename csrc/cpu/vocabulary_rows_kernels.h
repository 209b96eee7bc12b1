// Inner loops of vocabulary_rows.cpp over one row, one table per instruction set. Arrays go by Dtype.
#pragma once

#include <cstdint>

namespace mnmt {

// With `max` the row's largest logit: x = logit - max <= 0 and y = x / temperature.
struct RowScale {
  float max, inverse_temperature;
};

// Sums over a row of the student's logits z and the mixture's m, or of a teacher's logits.
struct RowSums {
  double exps = 0;            // e^x
  double tempered = 0;        // e^y
  double tempered_y = 0;      // e^y y (teacher)
  double logits = 0;          // x (student)
  double mixture = 0;         // m (student with a mixture)
  double mixture_logits = 0;  // m x (student with a mixture)
};

struct VocabularyRowKernels {
  // The largest logit; the lowest finite number where all are -inf (masked words).
  float (*largest[3])(const void* logits, std::int64_t n);

  using Sum = RowSums (*)(const void* logits, const float* mixture, std::int64_t n, RowScale scale);
  Sum sum_teacher[3], sum_student[3], sum_student_mixture[3];

  // mixture (+)= share e^y
  using WriteTeacher = void (*)(const void* logits, float* mixture, std::int64_t n, RowScale scale, float share,
                                bool accumulate);
  WriteTeacher write_teacher[3];

  // out = plain e^x + tempered e^y - temperature m; without a mixture only the first. [type of logits][type of out]
  using WriteStudent = void (*)(const void* logits, const float* mixture, void* out, std::int64_t n, RowScale scale,
                                float plain, float tempered, float temperature);
  WriteStudent write_student[3][3];

  float (*get[3])(const void* data, std::int64_t i);
  void (*put[3])(void* data, std::int64_t i, float x);
  void (*exps)(const float* x, float* e_x, std::int64_t n);  // mnmt::exponentials
};

}  // namespace mnmt
