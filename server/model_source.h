// The model that a server or a command runs: a checkpoint's, or random weights for a configuration
// alone (`load`: dummy) or a slice of it (`slice`).
#pragma once

#include "common/status.h"
#include "kernels/backend.h"
#include "model/checkpoint.h"
#include "model/load_progress.h"
#include "model/model_config.h"
#include "model/weight_loader.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace dsa {

enum class LoadMode { kCheckpoint, kDummy };

// "checkpoint" or "dummy"; the configuration allows no other.
LoadMode ParseLoadMode(const std::string& text);
// "auto" or "none"; likewise.
GenerationFile ParseGenerationFile(const std::string& text);

class ModelSource final {
 public:
  // Reads config.json and, for a checkpoint, all headers.  `slice` as ParseModelSlice takes it; a
  // checkpoint has none.  INVALID_ARGUMENT or NOT_FOUND, one line.
  static Result<ModelSource> Open(const std::string& folder, LoadMode mode,
                                  GenerationFile generation = GenerationFile::kRead,
                                  const std::string& slice = "all");

  const ModelConfig& config() const;
  std::int64_t weight_bytes(const RankPlace& place) const;  // on the device of a rank

  // Weights on the device, on the backend's thread.
  Result<DeviceWeights> Load(Backend& backend, LoadProgress& progress) const;
  // Of a rank on each device, on a thread that may use all of the backends.
  Result<std::vector<DeviceWeights>> LoadRanks(const RankLayout& ranks,
                                               std::span<Backend* const> backends,
                                               LoadProgress& progress) const;

 private:
  ModelSource() = default;

  std::optional<Checkpoint> checkpoint_;
  std::optional<ModelConfig> dummy_;  // exactly one of the two
};

}  // namespace dsa
