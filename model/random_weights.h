// Weights without a checkpoint: random ones, made on the device, for benchmarks and for slices of a
// model that nobody has as files.
#pragma once

#include "kernels/backend.h"
#include "model/model_config.h"
#include "model/weight_loader.h"

#include <cstdint>
#include <string_view>

namespace dsa {

// What random values of a tensor are drawn with.  Gains keep the residual stream dominated by the
// embedding, so that a rounding does not flip routing or selection everywhere.
struct RandomMoments {
  double mean;
  double deviation;
};
RandomMoments MomentsOf(std::string_view tensor_name, std::int64_t cols);

// Device bytes that MakeRandomWeights will allocate.
std::int64_t RandomWeightBytes(const ModelConfig& config, const RankShape& rank);

// Every tensor that the configuration needs, in the types that a checkpoint of it would have; the
// same seed gives the same bits on every backend.  FAILED_PRECONDITION where memory is short.
Result<DeviceWeights> MakeRandomWeights(const ModelConfig& config, std::uint64_t seed,
                                        Backend& backend);
// Of one rank: its part of the same values, so that any number of ranks is the same model.
Result<DeviceWeights> MakeRandomWeights(const ModelConfig& config, const RankShape& rank,
                                        std::uint64_t seed, Backend& backend);

}  // namespace dsa
