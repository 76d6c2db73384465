// Kernels for every processor: SSE2 on x86-64, NEON on ARM, what the compiler makes of short vectors elsewhere.
#include "step.h"

const Kernels kernels_portable = kernels_of("portable", [] { return true; });
