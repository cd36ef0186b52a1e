// The two launches of AttendLatent around its attention.  For kernels/cuda/ only.
//
// Each returns false, having queued nothing, for types, alignments and extents that it does not
// take: then the plain ops do the same one by one.
#pragma once

#include "kernels/ops/absorb_query.h"
#include "kernels/ops/expand_value.h"
#include "kernels/ops/quantize_fp8.h"
#include "kernels/ops/rope.h"

#include <cuda_runtime_api.h>

namespace dsa::cuda {

// Rope and AbsorbQuery: queries [T, H, N] and their RoPE columns [T, H, 64], rotated in place.
struct RotateAndAbsorbParams {
  RopeParams rope;
  AbsorbQueryParams absorb;
};
bool RotateAndAbsorb(const RotateAndAbsorbParams& params, cudaStream_t stream);
// Whether it takes them.
bool TakesRotateAndAbsorb(const RotateAndAbsorbParams& params);
// ExpandValue and QuantizeFp8 of its output [T, H * V]: a head's values are whole blocks of 128.
bool ExpandAndQuantize(const ExpandValueParams& expand, const QuantizedView& fp8,
                       cudaStream_t stream);
void ValidateCopy(const ExpandValueParams& expand, const QuantizedView& fp8);
// The same with fp8 weights, of which it takes all that ExpandValue does; fp8.values.data null: no
// copy is wanted.
void ExpandFp8(const ExpandValueParams& expand, const QuantizedView& fp8, cudaStream_t stream);

}  // namespace dsa::cuda
