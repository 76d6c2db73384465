// Checks of what comes in through the C interface.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "kernels.h"

// Said of tensors that these kernels cannot take but the reference can: see library.py.
constexpr const char* UNSUITABLE = "unsuitable tensors";

constexpr std::int64_t BYTES[DTYPES] = {4, 2};

inline bool is_dtype(std::int32_t number) { return 0 <= number && number < DTYPES; }

inline bool valid_sizes(std::int64_t count, const std::int64_t* numel) {
  return count >= 0 && std::all_of(numel, numel + count, [](std::int64_t n) { return 0 <= n && n < 1LL << 48; });
}

constexpr const char* INVALID_SIZES = "a tensor has an impossible number of elements";

// The memory of all tensors of a call.
class Memory {
 public:
  explicit Memory(std::int64_t tensors) { ranges_.reserve(tensors); }

  void reads(std::int64_t address, std::int64_t bytes) { uses(address, bytes, false); }
  void writes(std::int64_t address, std::int64_t bytes) { uses(address, bytes, true); }
  void uses(std::int64_t address, std::int64_t bytes, bool written) {
    const auto begin = static_cast<std::uint64_t>(address);
    if (bytes > 0) ranges_.push_back({begin, begin + bytes, written});
  }

  // Whether every tensor with elements has an address, and nothing that is written overlaps anything else.
  bool suitable() {
    std::sort(ranges_.begin(), ranges_.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
    std::uint64_t end_of_all = 0, end_of_written = 0;
    for (const Range& range : ranges_) {
      if (range.begin < (range.written ? end_of_all : end_of_written)) return false;
      end_of_all = std::max(end_of_all, range.end);
      if (range.written) end_of_written = std::max(end_of_written, range.end);
    }
    return ranges_.empty() || ranges_.front().begin != 0;
  }

  // Begin and end of everything that is written, after suitable() has put it in order; how many there are.
  std::int64_t copy_written(std::int64_t* begins_and_ends) const {
    std::int64_t count = 0;
    for (const Range& range : ranges_) {
      if (!range.written) continue;
      begins_and_ends[2 * count] = static_cast<std::int64_t>(range.begin);
      begins_and_ends[2 * count++ + 1] = static_cast<std::int64_t>(range.end);
    }
    return count;
  }

 private:
  struct Range {
    std::uint64_t begin, end;
    bool written;
  };

  std::vector<Range> ranges_;
};

template <class Function>
const char* guarded(const Function& function) {
  try {
    return function();
  } catch (const std::bad_alloc&) {
    return "out of memory";
  }
}
