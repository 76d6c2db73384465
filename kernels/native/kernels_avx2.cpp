// Kernels for processors with AVX2 and FMA; setup.py compiles this file for them.
#if defined(__AVX2__)
#include "step.h"

const Kernels kernels_avx2 = kernels_of("avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); });
#endif
