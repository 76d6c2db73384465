// What kernels rely on of a tensor.
#pragma once

#include <cstdint>

struct TensorFacts {
  std::int64_t address;
  std::int64_t kind;  // dtype and device, as DLPack numbers them
  std::int64_t numel, contiguous;
};
