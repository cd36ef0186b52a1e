// A feed-forward layer (Shazeer 2020):  y = down(SwiGlu(gate x, up x)).
#pragma once

#include "kernels/fused/activation.h"

namespace dsa {

struct GatedMlpParams {
  Activation x;       // [T, D]
  LinearWeight gate;  // [I, D]
  LinearWeight up;    // [I, D]
  LinearWeight down;  // [D, I]
  // Work memory.
  Activation inner;     // [T, I]  output of gate, then of SwiGlu, with its fp8 copy
  AnyMatrix up_output;  // [T, I]
  AnyMatrix y;          // [T, D]
};

}  // namespace dsa
