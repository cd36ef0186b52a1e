#include "server/gpu_layouts.h"

#include "kernels/kv_layout.h"
#include "model/inspect.h"
#include "model/limits.h"
#include "model/rope_table.h"
#include "server/sizing.h"

#include <algorithm>
#include <array>
#include <vector>

#include <fmt/format.h>

namespace dsa {
namespace {

// Of the rank that holds most.
struct GpuBytes {
  std::int64_t weights = 0;
  std::int64_t workspace = 0;  // with the RoPE tables; kernels have scratch of their own
};

GpuBytes LargestOf(const ModelSource& source, const RankLayout& layout, const StepLimits& limits) {
  const ModelConfig& model = source.config();
  GpuBytes largest;
  for (std::int64_t rank = 0; rank < layout.ranks; ++rank) {
    const RankPlace place = {.rank = rank, .layout = layout};
    largest.weights = std::max(largest.weights, source.weight_bytes(place));
    largest.workspace = std::max(
        largest.workspace, PlanWorkspace(model, ShapeOf(model, place), limits).total_bytes() +
                               DeviceRopeTable::Bytes(model.rope_frequencies, limits.context_max));
  }
  return largest;
}

std::string NameOf(const RankLayout& layout) {
  if (layout.ranks == 1) {
    return "one GPU";
  }
  return fmt::format("tensor parallel {}{}", layout.ranks,
                     layout.expert_parallel ? ", whole experts" : "");
}

// "room for 1234 tokens: 9 sequences of 8K, 2 of 32K, 0 of 128K"
std::string RoomOf(std::int64_t blocks) {
  constexpr std::int64_t kThousand = 1024;
  constexpr std::array<std::int64_t, 3> kContexts = {8, 32, 128};
  std::vector<std::string> sequences;
  for (const std::int64_t context : kContexts) {
    const std::int64_t needed = context * kThousand / kTokensPerBlock;
    sequences.push_back(fmt::format("{}{} of {}K", blocks / needed,
                                    sequences.empty() ? " sequences" : "", context));
  }
  return fmt::format("room for {} tokens: {}", blocks * kTokensPerBlock,
                     fmt::join(sequences, ", "));
}

}  // namespace

Result<std::string> DescribeGpuLayouts(const ServerConfig& config, const ModelSource& source,
                                       const Gpus& gpus) {
  const ModelConfig& model = source.config();
  DSA_RETURN_IF_ERROR(CheckRanks("gpus", gpus.count, model));
  DSA_ASSIGN_OR_RETURN(const ModelExecutorConfig executor, PlanExecutor(config, model));
  const std::int64_t reserve = config.device_memory_reserve_bytes;
  const std::int64_t block = BytesPerBlock(
      static_cast<int>(model.layers), static_cast<int>(model.indexer_layers()), executor.kv_format);
  std::string text =
      fmt::format("{:<16}{} of {}, {} of it reserved; without scratch of kernels\n", "GPUs",
                  gpus.count, Amount(gpus.memory_bytes, "B"), Amount(reserve, "B"));
  for (const bool expert_parallel : {false, true}) {
    if (expert_parallel && (gpus.count == 1 || model.experts == 0)) {
      continue;  // no other layout
    }
    const RankLayout layout = {.ranks = gpus.count, .expert_parallel = expert_parallel};
    const GpuBytes bytes = LargestOf(source, layout, executor.limits);
    const std::int64_t left = gpus.memory_bytes - reserve - bytes.weights - bytes.workspace;
    const std::int64_t blocks = left / block - 1;  // one for rows of padding
    text += fmt::format("  {}: weights {}, workspace {}; {}\n", NameOf(layout),
                        Amount(bytes.weights, "B"), Amount(bytes.workspace, "B"),
                        left < 2 * block
                            ? fmt::format("does not fit: {} bytes are missing", 2 * block - left)
                            : RoomOf(blocks));
  }
  return text;
}

}  // namespace dsa
