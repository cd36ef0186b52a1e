// What the machine computes with beyond the binary's level, x86-64-v3: found at run time.  No bit
// of a result depends on it.
#pragma once

#include <cstdint>

namespace dsa::cpu {

enum class CpuLevel : std::uint8_t {
  kAvx2,    // every machine that the binary starts on
  kAvx512,  // with VBMI: Intel from Ice Lake on, AMD from Zen 4 on
};

CpuLevel MachineLevel();

}  // namespace dsa::cpu
