// SelectTopK of rows whose scores IndexScores has counted: the second half of SelectKeys.
#pragma once

#include "kernels/ops/absorb_query.h"
#include "kernels/ops/rope.h"
#include "kernels/ops/select_top_k.h"

#include <cstdint>

#include <cuda_runtime_api.h>

namespace dsa::cuda {

namespace absorb {
struct BesideParams {
  RopeParams rope;           // bfloat16
  AbsorbQueryParams absorb;  // bfloat16 with rows of whole 16 bytes
};
}  // namespace absorb

inline constexpr std::int64_t kIndexSelectionMax = 2048;  // k

// The blocks that share a row: the best measured.  The result does not depend on it.
int IndexSelectionCluster(std::int64_t rows, std::int64_t visible_max);

// `work` as IndexScores left it for the same rows, k and scores; `cluster` 1, 2, 4, 8 or 16.
// Requires k <= kIndexSelectionMax and at most 524,288 keys a block.
void IndexSelection(const SelectTopKParams& params, const std::int32_t* work, int cluster,
                    cudaStream_t stream);

// The same beside RotateAndAbsorb of as many rows, in one launch.  False, having queued nothing,
// where rows and clusters do not leave a multiprocessor to every two tiles of it: more tiles take
// longer there than in a launch of their own.
bool IndexSelectionAndAbsorb(const SelectTopKParams& params, const std::int32_t* work, int cluster,
                             const absorb::BesideParams& beside, cudaStream_t stream);

}  // namespace dsa::cuda
