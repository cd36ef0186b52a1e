#include "server/gpu_layouts.h"

#include "kernels/kv_layout.h"
#include "model/inspect.h"
#include "model/limits.h"
#include "model/rope_table.h"
#include "server/cuda_device.h"
#include "server/engine/batch_builder.h"
#include "server/sizing.h"
#include "server/step_prediction.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include <fmt/format.h>

namespace dsa {
namespace {

// Of the rank that holds most.
struct GpuBytes {
  std::int64_t weights = 0;
  std::int64_t workspace = 0;           // with the RoPE tables
  std::optional<std::int64_t> scratch;  // of kernels, where this binary has them

  std::int64_t all() const { return weights + workspace + scratch.value_or(0); }
};

GpuBytes LargestOf(const ModelSource& source, const RankLayout& layout, const StepLimits& limits) {
  const ModelConfig& model = source.config();
  GpuBytes largest;
  for (std::int64_t rank = 0; rank < layout.all_ranks(); ++rank) {
    const RankPlace place = {.rank = rank, .layout = layout};
    largest.weights = std::max(largest.weights, source.weight_bytes(place));
    const WorkspacePlan plan = PlanWorkspace(model, ShapeOf(model, place), limits);
    largest.workspace = std::max(
        largest.workspace,
        plan.total_bytes() + DeviceRopeTable::Bytes(model.rope_frequencies, limits.context_max));
    largest.scratch = std::max(largest.scratch, CudaScratch(plan.scratch, layout.data_ranks > 1));
  }
  return largest;
}

std::string NameOf(const RankLayout& layout) {
  if (layout.all_ranks() == 1) {
    return "one GPU";
  }
  if (layout.data_ranks == 1) {
    return fmt::format("tensor parallel {}{}", layout.ranks,
                       layout.expert_parallel ? ", whole experts" : "");
  }
  const std::string name = fmt::format("data parallel {}, experts over all", layout.data_ranks);
  return layout.ranks == 1 ? name : fmt::format("{}, tensor parallel {}", name, layout.ranks);
}

// Ways to split the model over so many GPUs.
std::vector<RankLayout> LayoutsOf(std::int64_t gpus, const ModelConfig& model) {
  std::vector<RankLayout> layouts;
  const std::vector<std::int64_t> sizes = TensorParallelSizes(model);
  for (auto ranks = sizes.rbegin(); ranks != sizes.rend(); ++ranks) {
    if (gpus % *ranks != 0) {
      continue;
    }
    const std::int64_t data_ranks = gpus / *ranks;
    if (data_ranks == 1) {
      layouts.push_back({.ranks = *ranks});
    }
    if (gpus > 1 && model.experts > 0) {
      layouts.push_back({.ranks = *ranks, .expert_parallel = true, .data_ranks = data_ranks});
    }
  }
  return layouts;
}

// "room for 1234 tokens: 9 sequences of 8K, 2 of 32K, 0 of 128K"; of data ranks each has a cache.
std::string RoomOf(std::int64_t blocks, std::int64_t data_ranks) {
  constexpr std::int64_t kThousand = 1024;
  constexpr std::array<std::int64_t, 3> kContexts = {8, 32, 128};
  std::vector<std::string> sequences;
  for (const std::int64_t context : kContexts) {
    const std::int64_t needed = context * kThousand / kTokensPerBlock;
    sequences.push_back(fmt::format("{}{} of {}K", blocks / needed * data_ranks,
                                    sequences.empty() ? " sequences" : "", context));
  }
  return fmt::format("room for {} tokens{}: {}{}", blocks * kTokensPerBlock,
                     data_ranks == 1 ? "" : " on each data rank", fmt::join(sequences, ", "),
                     data_ranks == 1 ? "" : " in all");
}

// Lines such as "    predicted on H200, 8K: decode 1 row per data rank 15.0 ms, 64 rows 23.9 ms,
// prefill 25000 tokens/s".
std::string SpeedOf(const ModelConfig& model, const RankLayout& layout, const StepLimits& limits) {
  constexpr std::int64_t kVisible = 8192;
  constexpr std::int64_t kDecodeRows = 64;
  constexpr std::int64_t kChunk = 4096;
  constexpr double kUsPerMs = 1e3;
  constexpr double kUsPerS = 1e6;
  const std::int64_t visible = std::min(kVisible, limits.context_max);
  const std::int64_t chunk = std::min({kChunk, visible, limits.tokens_max});
  std::string text;
  for (const GpuTimes& gpu : MeasuredGpus()) {
    const auto step_us = [&](bool is_prefill, std::int64_t rows) {
      return PredictStep(gpu, model, layout,
                         {.is_prefill = is_prefill, .rows = rows, .visible = visible})
          .total_us;
    };
    text += fmt::format(
        "    predicted on {}, {} keys: decode of 1 row {:.1f} ms, of {} rows{} {:.1f} ms, prefill "
        "{:.0f} tokens/s\n",
        gpu.name, visible, step_us(false, 1) / kUsPerMs, kDecodeRows,
        layout.data_ranks == 1 ? "" : " per data rank", step_us(false, kDecodeRows) / kUsPerMs,
        static_cast<double>(layout.data_ranks * chunk) * kUsPerS / step_us(true, chunk));
  }
  return text;
}

}  // namespace

Result<std::string> DescribeGpuLayouts(const ServerConfig& config, const ModelSource& source,
                                       const Gpus& gpus) {
  const ModelConfig& model = source.config();
  const std::vector<RankLayout> layouts = LayoutsOf(gpus.count, model);
  if (layouts.empty()) {
    return CheckRanks("gpus", gpus.count, model).error();
  }
  ServerConfig on_gpus = config;
  on_gpus.device = "cuda";  // whatever this machine has
  DSA_ASSIGN_OR_RETURN(const ModelExecutorConfig executor, PlanExecutor(on_gpus, model));
  const std::int64_t reserve = config.device_memory_reserve_bytes;
  const std::int64_t block = BytesPerBlock(
      static_cast<int>(model.layers), static_cast<int>(model.indexer_layers()), executor.kv_format);
  std::string text = fmt::format(
      "{:<16}{} of {}, {} of it reserved; predicted from sizes{}{}\n", "GPUs", gpus.count,
      Amount(gpus.memory_bytes, "B"), Amount(reserve, "B"),
      CudaScratch(PlanWorkspace(model, WholeModel(model), executor.limits).scratch, false)
          ? ""
          : ", without scratch of kernels, which this build has not",
      CanPredict(model)
          ? ""
          : "; steps are predicted of large models with an indexer and fp8 weights alone");
  for (const RankLayout& layout : layouts) {
    const GpuBytes bytes = LargestOf(source, layout, executor.limits);
    const std::int64_t left = gpus.memory_bytes - reserve - bytes.all();
    const std::int64_t padding =
        PaddingBlocks(RowBuckets(executor.limits.sequences_max, kTokensPerBlock), layout.data_ranks,
                      kTokensPerBlock);
    const std::int64_t least = (padding + 1) * block;
    text +=
        fmt::format("  {}: weights {}, workspace {}{}; {}\n", NameOf(layout),
                    Amount(bytes.weights, "B"), Amount(bytes.workspace, "B"),
                    bytes.scratch ? ", scratch " + Amount(*bytes.scratch, "B") : "",
                    left < least ? fmt::format("does not fit: {} bytes are missing", least - left)
                                 : RoomOf(left / block - padding, layout.data_ranks));
    text += CanPredict(model) ? SpeedOf(model, layout, executor.limits) : "";
  }
  return text;
}

}  // namespace dsa
