// SwiGLU of one row; shared by the SwiGlu and RoutedExperts ops.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

struct SwiGluRow {
  const void* gate;
  const void* up;
  void* target;   // may be gate or up
  DataType type;  // f32 or bf16
  std::int64_t count;
};

// target = round(gate / (1 + exp(-gate)) * up), in float32.
void RunSwiGluRow(const SwiGluRow& row);

}  // namespace dsa
