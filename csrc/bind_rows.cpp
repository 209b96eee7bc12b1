#include "bind.h"
#include "mnmt/vocabulary_rows.h"

namespace mnmt {
namespace {

namespace py = pybind11;

VocabularyRows rows_of(Address logits, int type, std::int64_t rows, std::int64_t vocabulary, Address targets,
                       float temperature, int threads) {
  VocabularyRows in;
  in.rows = rows;
  in.vocabulary = vocabulary;
  in.logits = at<const void>(logits);
  in.logits_type = static_cast<Dtype>(type);
  in.targets = at<const std::int64_t>(targets);
  in.temperature = temperature;
  in.threads = threads;
  return in;
}

void bind_teacher(py::module_& m) {
  m.def(
      "teacher_rows",
      [](Address logits, int type, std::int64_t rows, std::int64_t vocabulary, Address mixture, Address weights,
         Address targets, float temperature, bool accumulate, Address results, int threads) {
        teacher_rows(rows_of(logits, type, rows, vocabulary, targets, temperature, threads),
                     {at<float>(mixture), at<const float>(weights), accumulate}, at<float>(results));
      },
      py::arg("logits"), py::arg("type"), py::arg("rows"), py::arg("vocabulary"), py::arg("mixture"),
      py::arg("weights"), py::arg("targets"), py::arg("temperature"), py::arg("accumulate"), py::arg("results"),
      py::arg("threads"), py::call_guard<py::gil_scoped_release>(),
      "adds a teacher to the mixture; results: negative log-likelihood of the target, entropy");
}

void bind_student(py::module_& m) {
  m.def(
      "student_rows",
      [](Address logits, int type, std::int64_t rows, std::int64_t vocabulary, Address out, int out_type,
         Address targets, Address weights, Address mixture, Address mixture_weights, float label_smoothing,
         float temperature, Address results, int threads) {
        student_rows(rows_of(logits, type, rows, vocabulary, targets, temperature, threads),
                     {at<const float>(weights), at<const float>(mixture), at<const float>(mixture_weights),
                      label_smoothing, at<void>(out), static_cast<Dtype>(out_type)},
                     at<float>(results));
      },
      py::arg("logits"), py::arg("type"), py::arg("rows"), py::arg("vocabulary"), py::arg("out"), py::arg("out_type"),
      py::arg("targets"), py::arg("weights"), py::arg("mixture"), py::arg("mixture_weights"),
      py::arg("label_smoothing"), py::arg("temperature"), py::arg("results"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>(),
      "losses of a student's rows (target, uniform, teachers) and their gradient; address 0: not there");
}

}  // namespace

void bind_rows(py::module_& m) {
  bind_teacher(m);
  bind_student(m);
}

}  // namespace mnmt
