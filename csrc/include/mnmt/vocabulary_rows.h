// Softmax rows over the vocabulary for the losses of mnmt_scale/kernels/ops: a chunk of logits is read about twice, and
// what comes back is a few numbers per row and, where wanted, the chunk's gradient or the teachers' mixture.
#pragma once

#include <cstdint>

#include "mnmt/types.h"

namespace mnmt {

// All matrices are [rows, vocabulary], contiguous, of any alignment; per-row arrays have `rows` entries.
struct VocabularyRows {
  std::int64_t rows = 0, vocabulary = 0;
  const void* logits = nullptr;
  Dtype logits_type = Dtype::f32;
  const std::int64_t* targets = nullptr;  // 0 <= y < vocabulary
  float temperature = 1.0f;
  int threads = 1;
};

struct TeacherMixture {
  float* mixture = nullptr;  // row t (+)= weights[t] softmax(logits[t] / temperature)
  const float* weights = nullptr;
  bool accumulate = false;  // += instead of =
};

struct StudentLoss {
  const float* weights = nullptr;          // w0, null: all 1
  const float* mixture = nullptr;          // null: no teachers
  const float* mixture_weights = nullptr;  // W
  float label_smoothing = 0.0f;
  void* out = nullptr;  // null: losses only; may be `logits` where the types are the same
  Dtype out_type = Dtype::f32;
};

// results [rows, 2]: -log softmax(logits)[target]; entropy of softmax(logits / temperature).
void teacher_rows(const VocabularyRows& in, const TeacherMixture& teacher, float* results);

// results [rows, 3]: -log p_target; mean_v -log p_v; and, with q = softmax(logits / temperature),
// temperature^2 sum_v mixture_v (-log q_v).
//
// out = w0 (p - (1 - label_smoothing) onehot(target)) + temperature (W q - mixture).
void student_rows(const VocabularyRows& in, const StudentLoss& student, float* results);

// e_x[i] = e^x[i] for x <= 88 as the rows take it (cpu/simd_exp.h); for tests.
void exponentials(const float* x, float* e_x, std::int64_t n);

}  // namespace mnmt
