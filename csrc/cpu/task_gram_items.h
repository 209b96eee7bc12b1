// How ops over a parameter space share it out: items of a fixed number of consecutive elements, whatever the borders of
// fragments within, so that neither many small fragments nor one large one leaves a thread idle or costs a call each.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace mnmt {

class Items {
 public:
  // `sizes`: elements of each fragment, in order; empty fragments may be among them.
  Items(const std::vector<std::int64_t>& sizes, std::int64_t elements) : elements_(elements), borders_(1, 0) {
    borders_.reserve(sizes.size() + 1);
    for (const std::int64_t size : sizes) borders_.push_back(borders_.back() + size);
  }

  std::int64_t count() const { return (borders_.back() + elements_ - 1) / elements_; }

  // piece(fragment, begin, end) for the parts of fragments that make up item i, in order.
  template <class Piece>
  void walk(std::int64_t i, const Piece& piece) const {
    std::int64_t at = i * elements_;
    const std::int64_t end = std::min(at + elements_, borders_.back());
    std::size_t f = std::upper_bound(borders_.begin(), borders_.end(), at) - borders_.begin() - 1;
    for (; at < end; at = borders_[++f]) {
      const std::int64_t stop = std::min(end, borders_[f + 1]);
      if (at < stop) piece(f, at - borders_[f], stop - borders_[f]);
    }
  }

 private:
  std::int64_t elements_;
  std::vector<std::int64_t> borders_;  // of the fragments in the parameter space, F + 1
};

}  // namespace mnmt
