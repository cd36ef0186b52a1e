#include "server/model_source.h"

#include "model/random_weights.h"

#include <utility>

namespace dsa {

LoadMode ParseLoadMode(const std::string& text) {
  return text == "dummy" ? LoadMode::kDummy : LoadMode::kCheckpoint;
}

GenerationFile ParseGenerationFile(const std::string& text) {
  return text == "none" ? GenerationFile::kLeaveOut : GenerationFile::kRead;
}

Result<ModelSource> ModelSource::Open(const std::string& folder, LoadMode mode,
                                      GenerationFile generation) {
  ModelSource source;
  if (mode == LoadMode::kDummy) {
    DSA_ASSIGN_OR_RETURN(source.dummy_, LoadModelConfig(folder, generation));
  } else {
    DSA_ASSIGN_OR_RETURN(source.checkpoint_, Checkpoint::Open(folder, generation));
  }
  return source;
}

const ModelConfig& ModelSource::config() const {
  return checkpoint_ ? checkpoint_->config() : *dummy_;
}

std::int64_t ModelSource::weight_bytes() const {
  return checkpoint_ ? WeightBytes(*checkpoint_) : RandomWeightBytes(*dummy_);
}

Result<DeviceWeights> ModelSource::Load(Backend& backend, LoadProgress& progress) const {
  if (checkpoint_) {
    return LoadWeights(*checkpoint_, backend, progress);
  }
  constexpr std::uint64_t kSeed = 0;
  return MakeRandomWeights(*dummy_, kSeed, backend);
}

}  // namespace dsa
