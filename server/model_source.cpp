#include "server/model_source.h"

#include "common/log.h"
#include "model/model_slice.h"
#include "model/random_weights.h"

#include <string>
#include <utility>
#include <vector>

#include <fmt/ranges.h>

namespace dsa {

LoadMode ParseLoadMode(const std::string& text) {
  return text == "dummy" ? LoadMode::kDummy : LoadMode::kCheckpoint;
}

GenerationFile ParseGenerationFile(const std::string& text) {
  return text == "none" ? GenerationFile::kLeaveOut : GenerationFile::kRead;
}

Result<ModelSource> ModelSource::Open(const std::string& folder, LoadMode mode,
                                      GenerationFile generation, const std::string& slice) {
  DSA_ASSIGN_OR_RETURN(const ModelSlice wanted, ParseModelSlice(slice));
  if (!wanted.is_whole() && mode != LoadMode::kDummy) {
    return InvalidArgument("slice: '" + slice + "' needs load: dummy, a checkpoint is whole");
  }
  ModelSource source;
  if (mode == LoadMode::kDummy) {
    DSA_ASSIGN_OR_RETURN(const ModelConfig whole, LoadModelConfig(folder, generation));
    DSA_ASSIGN_OR_RETURN(source.dummy_, SliceOf(whole, wanted));
  } else {
    DSA_ASSIGN_OR_RETURN(source.checkpoint_, Checkpoint::Open(folder, generation));
  }
  return source;
}

const ModelConfig& ModelSource::config() const {
  return checkpoint_ ? checkpoint_->config() : *dummy_;
}

std::int64_t ModelSource::weight_bytes(const RankPlace& place) const {
  const RankShape shape = ShapeOf(config(), place);
  return checkpoint_ ? WeightBytes(*checkpoint_, shape) : RandomWeightBytes(*dummy_, shape);
}

Result<DeviceWeights> ModelSource::Load(Backend& backend, LoadProgress& progress) const {
  Backend* const only = &backend;
  DSA_ASSIGN_OR_RETURN(std::vector<DeviceWeights> loaded, LoadRanks({}, {&only, 1}, progress));
  return std::move(loaded.front());
}

Result<std::vector<DeviceWeights>> ModelSource::LoadRanks(const RankLayout& ranks,
                                                          std::span<Backend* const> backends,
                                                          LoadProgress& progress) const {
  const std::vector<std::string>& ignored = config().ignored_keys;
  if (!ignored.empty()) {  // said by what runs the model; inspect reports them
    Log(LogLevel::kInfo, "checkpoint: keys ignored",
        {{"keys", fmt::format("{}", fmt::join(ignored, ", "))}});
  }
  if (checkpoint_) {
    return LoadRankWeights(*checkpoint_, ranks, backends, progress);
  }
  constexpr std::uint64_t kSeed = 0;
  std::vector<DeviceWeights> made;
  for (std::int64_t rank = 0; rank < ranks.all_ranks(); ++rank) {
    backends[static_cast<std::size_t>(rank)]->BindThread();
    DSA_ASSIGN_OR_RETURN(
        DeviceWeights of_rank,
        MakeRandomWeights(*dummy_, ShapeOf(*dummy_, {.rank = rank, .layout = ranks}), kSeed,
                          *backends[static_cast<std::size_t>(rank)]));
    made.push_back(std::move(of_rank));
  }
  return made;
}

}  // namespace dsa
