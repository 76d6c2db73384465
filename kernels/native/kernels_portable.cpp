#include "step.h"
#if 1
static bool supported() { return true; }
const Kernels kernels_portable = {"portable", supported,
  {{step<float, float>, step<float, bfloat16>}, {step<bfloat16, float>, step<bfloat16, bfloat16>}},
  {accumulate_importance<float>, accumulate_importance<bfloat16>}};
#endif
