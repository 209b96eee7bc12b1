// Inner loops of vocabulary_rows.cpp over one row, one table per instruction set.
#pragma once

#include <cstdint>

#include "mnmt/types.h"

namespace mnmt {

// A row of n elements.
struct RowView {
  const void* data;
  Dtype type;
  std::int64_t n;
};

// With `max` the row's largest logit: x = logit - max <= 0 and y = x / temperature.
struct RowScale {
  float max, inverse_temperature;
};

// Sums over a row of logits and, m, of the teachers' mixture. Those that are not asked for stay 0.
struct RowSums {
  double exps;            // e^x
  double tempered;        // e^y
  double tempered_y;      // e^y y (teacher)
  double logits;          // x (student)
  double mixture;         // m (student with a mixture)
  double mixture_logits;  // m x (student with a mixture)
};

// out = plain e^x + tempered e^y - mixture m; without a mixture only the first.
struct StudentShares {
  float plain, tempered, mixture;
};

struct VocabularyRowKernels {
  // The largest logit; the lowest finite number where all are -inf (masked words).
  float (*largest)(RowView logits);

  RowSums (*sum_teacher)(RowView logits, RowScale scale);
  RowSums (*sum_student)(RowView logits, const float* mixture, RowScale scale);  // mixture: null for none

  // mixture (+)= share e^y
  void (*write_teacher)(RowView logits, float* mixture, RowScale scale, float share, bool accumulate);

  // mixture: null for none; out may be the logits' own memory where the types are the same
  void (*write_student)(RowView logits, const float* mixture, void* out, Dtype out_type, RowScale scale,
                        StudentShares shares);

  float (*get)(Dtype type, const void* data, std::int64_t i);
  void (*put)(Dtype type, void* data, std::int64_t i, float x);
  void (*exps)(const float* x, float* e_x, std::int64_t n);  // mnmt::exponentials
};

}  // namespace mnmt
