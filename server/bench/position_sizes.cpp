#include "server/bench/position_sizes.h"

#include <algorithm>
#include <set>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr std::int64_t kPositionMaxDefault = 131072;

// Where none are asked for: around top-k, then in powers of two.
std::set<std::int64_t> DefaultPositions(const PositionOptions& options, const ModelConfig& model) {
  const std::int64_t limit = options.position_max > 0
                                 ? options.position_max
                                 : std::min(model.context_max, kPositionMaxDefault);
  const std::int64_t top = model.index_topk;
  std::set<std::int64_t> positions = {0, top / 2, top, 2 * top, limit};
  if (!options.quick) {
    positions.insert(3 * top);
  }
  for (std::int64_t position = 1024; position < limit; position *= 2) {
    positions.insert(position);
    if (!options.quick && position >= 8192) {
      positions.insert(position + position / 2);
    }
  }
  std::erase_if(positions, [limit](std::int64_t position) { return position > limit; });
  return positions;
}

}  // namespace

StepRunnerOptions PositionSizes::RunnerOptions(bool decode, Attention attention,
                                               std::int64_t sequences,
                                               std::int64_t position) const {
  constexpr std::int64_t kDecodeRoom = std::int64_t{2} * kTokensPerBlock;
  constexpr std::int64_t kPrefillRoom = 4;
  const std::int64_t tokens = decode ? position + repeats.maximum + kDecodeRoom
                                     : std::max(position, chunk) / chunk * chunk + kPrefillRoom;
  // Decode steps leave prompts half of their rows, so that all sequences begin within the room.
  StepRunnerOptions options = {.attention = attention,
                               .sequences_max = sequences,
                               .context_tokens = std::min(context_max, tokens),
                               .chunk_tokens = decode ? std::max(chunk, 2 * sequences) : chunk,
                               .masked_until = 0};
  if (!decode) {
    const bool all = attention == Attention::kDense && dense_is_masked();
    options.masked_until = all ? options.context_tokens : masked_until;
  }
  return options;
}

Result<PositionSizes> ChoosePositionSizes(const PositionOptions& options,
                                          const ModelConfig& model) {
  const bool cpu = options.device == "cpu";
  PositionSizes sizes;
  sizes.context_max = model.context_max;
  sizes.chunk = options.chunk_tokens > 0 ? options.chunk_tokens : (cpu ? 64 : 2048);
  sizes.batch_max = options.batch_max > 0 ? options.batch_max : (cpu ? 4 : 256);
  // Three of a GPU: one may be off.
  sizes.repeats = options.quick ? RepeatLimits{cpu ? 2 : 3, 16, cpu ? 0.25 : 0.5}
                                : RepeatLimits{5, 200, cpu ? 5.0 : 3.0};
  if (options.batch > sizes.batch_max || sizes.batch_max > sizes.chunk) {
    return InvalidArgument(
        fmt::format("batch: {} and max-batch: {} must ascend to the {} rows of a step (--chunk)",
                    options.batch, sizes.batch_max, sizes.chunk));
  }
  if (sizes.chunk % kTokensPerBlock != 0) {
    return InvalidArgument(fmt::format("chunk: {} is no multiple of the {} tokens of a block",
                                       sizes.chunk, kTokensPerBlock));
  }
  if (model.context_max < sizes.chunk + sizes.repeats.maximum) {
    return InvalidArgument(
        fmt::format("model: its context of {} tokens is too short to measure", model.context_max));
  }
  for (const std::int64_t position : options.positions) {
    if (position < 0 || position > model.context_max) {
      return InvalidArgument(fmt::format("positions: {} is not in [0, {}], the model's context",
                                         position, model.context_max));
    }
  }
  if (options.position_max > model.context_max) {
    return InvalidArgument(fmt::format("max-position: {} is not in [1, {}], the model's context",
                                       options.position_max, model.context_max));
  }
  const std::set<std::int64_t> positions =
      options.positions.empty()
          ? DefaultPositions(options, model)
          : std::set<std::int64_t>(options.positions.begin(), options.positions.end());
  sizes.positions.assign(positions.begin(), positions.end());
  sizes.masked_until = options.masked_until < 0 && cpu ? 0 : options.masked_until;
  return sizes;
}

std::vector<std::int64_t> PositionsThatFit(const BenchModel& model, const PositionSizes& sizes,
                                           bool decode, Attention attention,
                                           std::int64_t sequences) {
  std::vector<std::int64_t> fitting = sizes.positions;
  const auto fits = [&](std::int64_t position) {
    const auto options = sizes.RunnerOptions(decode, attention, sequences, position);
    return StepRunner::FittingSequences(model, options) == sequences;
  };
  while (!fitting.empty() && !fits(fitting.back())) {
    fitting.pop_back();
  }
  return fitting;
}

}  // namespace dsa::bench
