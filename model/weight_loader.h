// Reads a checkpoint's tensors into device memory.
#pragma once

#include "kernels/backend.h"
#include "model/checkpoint.h"
#include "model/load_progress.h"
#include "model/weights.h"

#include <cstdint>
#include <vector>

namespace dsa {

// Views and the memory behind them.  Must not outlive the backend.
struct DeviceWeights {
  ModelWeights weights;
  std::vector<DeviceBuffer> buffers;
};

// Device bytes that LoadWeights will allocate.
std::int64_t WeightBytes(const Checkpoint& checkpoint);

// Loads everything that ForEachTensor lists, on the backend's thread.  Values are kept as stored,
// but for vectors, which become f32, and kv_b, which is de-quantized and split by head.
// INVALID_ARGUMENT naming file, tensor and value for a scale that is not finite and positive or a
// file that changed; FAILED_PRECONDITION where the device has not enough memory.
Result<DeviceWeights> LoadWeights(const Checkpoint& checkpoint, Backend& backend,
                                  LoadProgress& progress);

}  // namespace dsa
