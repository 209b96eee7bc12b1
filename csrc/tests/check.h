// Just enough to test with: a failed check says where, and the program ends with 1.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>

#define CHECK(condition)                                                            \
  do {                                                                              \
    if (!(condition)) {                                                             \
      std::fprintf(stderr, "%s:%d: %s is false\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                 \
    }                                                                               \
  } while (0)

#define CHECK_NEAR(a, b, tolerance)                                                                                  \
  do {                                                                                                               \
    const double a_ = (a), b_ = (b), t_ = (tolerance);                                                               \
    if (!(std::fabs(a_ - b_) <= t_)) {                                                                               \
      std::fprintf(stderr, "%s:%d: %s = %.17g, %s = %.17g, apart by more than %g\n", __FILE__, __LINE__, #a, a_, #b, \
                   b_, t_);                                                                                          \
      std::exit(1);                                                                                                  \
    }                                                                                                                \
  } while (0)
