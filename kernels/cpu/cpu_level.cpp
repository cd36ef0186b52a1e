#include "kernels/cpu/cpu_level.h"

namespace dsa::cpu {

CpuLevel MachineLevel() {
  static const bool avx512 =
      __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
      __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
      __builtin_cpu_supports("avx512vbmi") != 0;
  return avx512 ? CpuLevel::kAvx512 : CpuLevel::kAvx2;
}

}  // namespace dsa::cpu
