// Choice of the instruction set and of the threads.
#include <cstring>

#include "interface.h"
#include "kernels.h"
#include "parallel.h"

RunTeam run_team = nullptr;
const Kernels* kernels = &kernels_portable;

static const Kernels* const best_first[] = {
#if defined(__x86_64__)
    &kernels_avx512, &kernels_avx2,
#endif
    &kernels_portable};

std::int32_t roast_interface() { return ROAST_INTERFACE; }

const char* roast_instruction_set() { return kernels->name; }

void roast_use_team(void* address) { run_team = reinterpret_cast<RunTeam>(address); }

const char* roast_use_instruction_set(const char* name) {
  for (const Kernels* candidate : best_first) {
    if (name[0] != '\0' && std::strcmp(name, candidate->name) != 0) continue;
    if (candidate->supported()) {
      kernels = candidate;
      return nullptr;
    }
    if (name[0] != '\0') return "this processor does not have it";
  }
  return "there is no such instruction set; those of this machine are among avx512, avx2 and portable";
}
