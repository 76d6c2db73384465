// Kernels for processors with AVX-512 up to VBMI (Ice Lake, Zen 4 and later); setup.py compiles this file for them.
#if defined(__AVX512VBMI__)
#if !defined(__clang__)  // GCC warns of its own definitions of intrinsics
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "step.h"

const Kernels kernels_avx512 = kernels_of("avx512", [] {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi");
});
#endif
