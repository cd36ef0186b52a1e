// SelectTopK of rows whose scores IndexScores has counted: the second half of SelectKeys.
#pragma once

#include "kernels/ops/select_top_k.h"

#include <cstdint>

#include <cuda_runtime_api.h>

namespace dsa::cuda {

struct RotateAndAbsorbParams;

inline constexpr std::int64_t kIndexSelectionMax = 2048;  // k

// The blocks that share a row: the best measured.  The result does not depend on it.
int IndexSelectionCluster(std::int64_t rows, std::int64_t visible_max);

// `work` as IndexScores left it for the same rows, k and scores; `cluster` 1, 2, 4, 8 or 16.
// Requires k <= kIndexSelectionMax and at most 524,288 keys a block.
void IndexSelection(const SelectTopKParams& params, const std::int32_t* work, int cluster,
                    cudaStream_t stream);

// The same of few rows, in clusters of the size that it chooses.  False, having queued nothing,
// where rows or keys are too many, or scores are not in whole 16 bytes.
bool IndexSelectionOfFew(const SelectTopKParams& params, const std::int32_t* work,
                         cudaStream_t stream);

// Whether rows and clusters leave a multiprocessor to every two tiles of RotateAndAbsorb: more
// tiles would take longer beside a selection than elsewhere.
bool LeavesRoomToAbsorb(std::int64_t rows, int cluster, const RotateAndAbsorbParams& queries);
// IndexSelection, and beside it RotateAndAbsorb of the same rows, in one launch.  Requires that
// room.
void IndexSelectionAndAbsorb(const SelectTopKParams& params, const std::int32_t* work, int cluster,
                             const RotateAndAbsorbParams& queries, cudaStream_t stream);

}  // namespace dsa::cuda
