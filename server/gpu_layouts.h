// What each GPU of several would hold of a model, and how many sequences that leaves room for: from
// the sizes of weights, workspaces and caches alone, without a GPU.  Says nothing of what is
// served: docs/many_gpus.md does.
#pragma once

#include "common/status.h"
#include "server/config.h"
#include "server/model_source.h"

#include <cstdint>
#include <string>

namespace dsa {

struct Gpus {
  std::int64_t count;         // > 0
  std::int64_t memory_bytes;  // of each, > 0
};

// A line for the GPUs and one for each layout of tensor and data ranks: bytes of the GPU that holds
// most, tokens of its cache and sequences of 8K, 32K and 128K on all, or the bytes that are
// missing; then for each kind of GPU what steps would take (server/step_prediction.h).
// INVALID_ARGUMENT naming the possible numbers where the model cannot be split over so many.
Result<std::string> DescribeGpuLayouts(const ServerConfig& config, const ModelSource& source,
                                       const Gpus& gpus);

}  // namespace dsa
