#include "step.h"
#if defined(__AVX2__)
static bool supported() { return __builtin_cpu_supports("avx2"); }
const Kernels kernels_avx2 = {"avx2", supported,
  {{step<float, float>, step<float, bfloat16>}, {step<bfloat16, float>, step<bfloat16, bfloat16>}},
  {accumulate_importance<float>, accumulate_importance<bfloat16>}};
#endif
