#include "step.h"
#if defined(__AVX512F__)
static bool supported() { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"); }
const Kernels kernels_avx512 = {"avx512", supported,
  {{step<float, float>, step<float, bfloat16>}, {step<bfloat16, float>, step<bfloat16, bfloat16>}},
  {accumulate_importance<float>, accumulate_importance<bfloat16>}};
#endif
