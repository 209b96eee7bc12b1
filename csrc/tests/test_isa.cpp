// Every instruction set that this machine has reads a stream of any length alike, and an unknown one is refused.
#include <stdexcept>
#include <vector>

#include "check.h"
#include "mnmt/bandwidth.h"
#include "mnmt/isa.h"

int main() {
  for (const auto& isa : mnmt::available_isas()) {
    mnmt::set_isa(isa);
    CHECK(isa == mnmt::name(mnmt::active_isa()));
    for (int n : {0, 1, 7, 63, 64, 65537, 1 << 19}) {
      std::vector<float> x(n, 0.5f);
      for (int threads : {1, 2, 3}) CHECK(mnmt::read_stream(x.data(), n, threads) == 0.5 * n);
    }
  }
  bool refused = false;
  try {
    mnmt::set_isa("sse9");
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused);
}
