// Reads a checkpoint's tensors into the device memory of one rank or of all.
#pragma once

#include "kernels/backend.h"
#include "model/checkpoint.h"
#include "model/load_progress.h"
#include "model/rank_shape.h"
#include "model/weights.h"

#include <cstdint>
#include <span>
#include <vector>

namespace dsa {

// Views and the memory behind them.  Must not outlive the backend.
struct DeviceWeights {
  ModelWeights weights;
  std::vector<DeviceBuffer> buffers;
};

// Device bytes that LoadWeights will allocate for a rank.
std::int64_t WeightBytes(const Checkpoint& checkpoint, const RankShape& rank);

// Loads everything that ForEachTensor lists, on the backend's thread.  Values are kept as stored,
// but for vectors, which become f32, and kv_b, which is de-quantized and split by head.
// INVALID_ARGUMENT naming file, tensor and value for a scale that is not finite and positive or a
// file that changed; FAILED_PRECONDITION where the device has not enough memory.
Result<DeviceWeights> LoadWeights(const Checkpoint& checkpoint, Backend& backend,
                                  LoadProgress& progress);

// The same for all ranks of a layout: backend i gets what rank i holds.  Reads each byte of the
// checkpoint once.  On a thread that may use all of the backends.
Result<std::vector<DeviceWeights>> LoadRankWeights(const Checkpoint& checkpoint,
                                                   const RankLayout& ranks,
                                                   std::span<Backend* const> backends,
                                                   LoadProgress& progress);

}  // namespace dsa
