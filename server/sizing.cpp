#include "server/sizing.h"

#include "common/machine.h"
#include "model/inspect.h"
#include "server/api/answer_budget.h"
#include "server/api/service_context.h"
#include "server/device_name.h"
#include "server/engine/adjustment_rows.h"
#include "server/engine/batch_builder.h"
#include "server/masked_border.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include <fmt/format.h>

namespace dsa {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20;
constexpr std::int64_t kCpuCacheBytesDefault = std::int64_t{1} << 30;
constexpr std::int64_t kScoreBytesMax = std::int64_t{64} << 20;

std::int64_t DivideUp(std::int64_t value, std::int64_t by) {
  return (value + by - 1) / by;
}

bool IsCuda(const ServerConfig& config) {
  const std::optional<DeviceName> device = ParseDevice(config.device);
  return device && device->kind == DeviceKind::kCuda;
}

Result<std::int64_t> ContextLength(const ServerConfig& config, const ModelConfig& model) {
  if (config.max_model_len == 0) {
    return model.context_max;
  }
  if (config.max_model_len < 2 || config.max_model_len > model.context_max) {
    return InvalidArgument(fmt::format("max_model_len: {} is not in [2, {}], the model's context",
                                       config.max_model_len, model.context_max));
  }
  return config.max_model_len;
}

KvFormat CacheFormat(const ServerConfig& config, const ModelConfig& model) {
  if (config.kv_cache_dtype == "fp8") {
    return KvFormat::kFp8;
  }
  if (config.kv_cache_dtype == "bf16") {
    return KvFormat::kBf16;
  }
  if (config.kv_cache_dtype == "f32") {
    return KvFormat::kF32;
  }
  return model.default_kv_format();
}

// What the automatic size may be.  A server on the CPU shares the machine with others.
std::int64_t DefaultCacheBytes(const ServerConfig& config, const ServerMemory& without_cache) {
  constexpr std::int64_t kShare = 4;
  const std::int64_t left = without_cache.available - without_cache.needed();
  // Ranks on the CPU have their caches in the same memory.
  return IsCuda(config)
             ? left
             : std::min({left, kCpuCacheBytesDefault, without_cache.available / kShare}) /
                   AllRanks(config);
}

// What requests, texts and gRPC take beside the engine's own memory.
std::int64_t HostBytes(const ServerConfig& config, std::int64_t context_length,
                       std::int64_t available) {
  // Ids, hashes and block numbers of one, for the longest it can get, and what its penalties count.
  constexpr std::int64_t kBytesPerToken = 5 + 32;
  // A text is in the message, in its pieces and in ids while it is encoded, one on each thread.
  constexpr std::int64_t kTextCopies = 5;
  constexpr std::int64_t kTextsAtOnce = 2;
  const std::int64_t requests =
      config.data_parallel_size * SequencesMax(config) + config.max_queued_requests;
  const std::int64_t servers =
      config.http_listen.empty() ? 1 : 2;  // each with as much as the other
  // Replies that are not written yet, and one with log-probabilities while it is.
  constexpr std::int64_t kBytesPerLogprob = 512;
  const std::int64_t replies =
      GrpcBytesMax(available) + kReplyLogprobsMax * kBytesPerLogprob + kPromptLogprobBytesMax;
  return servers * GrpcBytesMax(available) + replies + kAnswerBytesMax +
         kTextsAtOnce * kTextCopies * config.max_message_bytes +
         requests * context_length * kBytesPerToken;
}

Result<std::int32_t> CacheBlocks(const ServerConfig& config, const ModelConfig& model,
                                 std::int64_t context_length, std::int64_t default_bytes) {
  const KvFormat format = CacheFormat(config, model);
  const std::int64_t block_bytes = BytesPerBlock(static_cast<int>(model.layers),
                                                 static_cast<int>(model.indexer_layers()), format);
  const std::int64_t sequence_blocks = DivideUp(context_length, kTokensPerBlock);
  std::int64_t blocks = config.kv_cache_memory_bytes / block_bytes;
  if (config.kv_cache_memory_bytes == 0) {
    blocks = std::clamp(SequencesMax(config) * sequence_blocks, sequence_blocks,
                        std::max(sequence_blocks, default_bytes / block_bytes));
  }
  if (blocks < sequence_blocks) {
    return InvalidArgument(
        fmt::format("kv_cache_memory_bytes: {} holds {} blocks of {} bytes, but one sequence of {} "
                    "tokens needs "
                    "{}: {} bytes, or a smaller max_model_len",
                    config.kv_cache_memory_bytes, blocks, block_bytes, context_length,
                    sequence_blocks, sequence_blocks * block_bytes));
  }
  if (blocks > std::numeric_limits<std::int32_t>::max()) {
    return InvalidArgument(fmt::format("kv_cache_memory_bytes: {} makes {} blocks, at most {}",
                                       config.kv_cache_memory_bytes, blocks,
                                       std::numeric_limits<std::int32_t>::max()));
  }
  return static_cast<std::int32_t>(blocks);
}

// Rows of prompts whose log-probabilities a step reports: 132 MB of logits for 129,280 ids.
std::int64_t PromptLogprobRows(const ServerConfig& config) {
  constexpr std::int64_t kRows = 256;
  return std::min(kRows, config.max_num_batched_tokens);
}

// Half of what a person notices between two words, and on a GPU as little as keeps it busy.
std::int64_t StepTimeTargetUs(const ServerConfig& config) {
  constexpr std::int64_t kCpuMs = 250;
  constexpr std::int64_t kGpuMs = 50;
  constexpr std::int64_t kUsPerMs = 1000;
  const std::int64_t default_ms = IsCuda(config) ? kGpuMs : kCpuMs;
  return kUsPerMs * (config.step_time_target_ms < 0 ? default_ms : config.step_time_target_ms);
}

// masked_mha_until, or the largest that it can become.
std::int64_t MaskedUntil(const ServerConfig& config, std::int64_t context_length) {
  if (config.masked_mha_until != kAutomatic) {
    return config.masked_mha_until;
  }
  return MeasuresMaskedBorder(config) ? std::min(kMaskedBorderMax, context_length) : 0;
}

// Requests whose cached keys may be shared: the same weights, computed the same way.
std::string CacheIdentity(const ServerConfig& config, KvFormat format,
                          std::int64_t masked_mha_until) {
  return fmt::format("{} kv={} attention={} masked_mha_until={}", config.model,
                     static_cast<int>(format), config.attention, masked_mha_until);
}

// Of each data rank those of all of its tensor ranks, which stand next to each other.
std::vector<ExpertShare> ExpertShares(const RankLayout& layout, const ModelConfig& model) {
  std::vector<ExpertShare> shares;
  for (std::int64_t rank = 0; rank < layout.data_ranks && layout.data_ranks > 1; ++rank) {
    const std::int64_t first = rank * layout.ranks;
    const Part begin = ShapeOf(model, {.rank = first, .layout = layout}).experts;
    const Part end = ShapeOf(model, {.rank = first + layout.ranks - 1, .layout = layout}).experts;
    shares.push_back({.first = begin.first, .count = end.first + end.count - begin.first});
  }
  return shares;
}

EngineConfig MakeEngineConfig(const ServerConfig& config, const ModelConfig& model,
                              const ModelExecutorConfig& executor) {
  const bool sparse = config.attention == "sparse" && model.has_indexer();

  EngineConfig engine;
  engine.scheduler = {.step_tokens_max = config.max_num_batched_tokens,
                      .step_time_target_us = StepTimeTargetUs(config),
                      .sequences_max = SequencesMax(config),
                      .waiting_max = config.max_queued_requests,
                      .context_tokens_max = executor.limits.context_max,
                      .policy = config.scheduling_policy == "priority"
                                    ? SchedulingPolicyKind::kPriority
                                    : SchedulingPolicyKind::kFirstCome,
                      .reservation = config.preemption == "none" ? ReservationMode::kFull
                                                                 : ReservationMode::kPrompt,
                      .preemptions_max = SchedulerConfig().preemptions_max,
                      .prompt_logprob_rows_max = executor.limits.given_rows_max,
                      .attention = sparse ? AttentionMode::kSparse : AttentionMode::kDense,
                      .index_topk = model.index_topk,
                      .masked_mha_until = executor.limits.masked_until};
  engine.blocks = executor.blocks;
  engine.data_ranks = config.data_parallel_size;
  engine.experts = ExpertsOf(model);
  engine.expert_shares = ExpertShares(LayoutOf(config), model);
  engine.tokens_per_block = kTokensPerBlock;
  engine.vocabulary = model.vocabulary;
  for (const std::int32_t id : model.end_ids) {
    engine.end_ids.push_back(TokenId{id});
  }
  engine.cache_identity = CacheIdentity(config, executor.kv_format, executor.limits.masked_until);
  if (IsCuda(config)) {  // there, launching op by op costs more than rows of padding
    engine.row_buckets = RowBuckets(SequencesMax(config), kTokensPerBlock);
  }
  return engine;
}

ModelExecutorConfig MakeExecutorConfig(const ServerConfig& config, const ModelConfig& model,
                                       std::int64_t context_length) {
  return {
      .limits = {.tokens_max = config.max_num_batched_tokens,
                 .sequences_max = SequencesMax(config),
                 .table_rows_max = SequencesMax(config) + config.max_queued_requests,
                 .context_max = context_length,
                 .logit_rows_max = SequencesMax(config) + PromptLogprobRows(config),
                 .given_rows_max = PromptLogprobRows(config),
                 .row_adjustments = RowAdjustments(model.vocabulary, context_length,
                                                   static_cast<std::int64_t>(model.end_ids.size())),
                 .masked_until = MaskedUntil(config, context_length),
                 .score_bytes_max = kScoreBytesMax,
                 .logits_rows_host = 0},
      .blocks = 0,
      .kv_format = CacheFormat(config, model),
      .vocabulary_limit = static_cast<std::int32_t>(model.vocabulary),
      .runs_ahead = IsCuda(config),
      .batch_invariant = config.batch_invariant,
      .place = {.rank = 0, .layout = LayoutOf(config)}};
}

}  // namespace

RankLayout LayoutOf(const ServerConfig& config) {
  return {.ranks = config.tensor_parallel_size,
          .expert_parallel = config.expert_parallel,
          .data_ranks = config.data_parallel_size};
}

bool MeasuresMaskedBorder(const ServerConfig& config) {
  return config.masked_mha_until == kAutomatic && IsCuda(config);
}

Status CheckRanks(std::string_view key, std::int64_t ranks, const ModelConfig& model) {
  const std::vector<std::int64_t> sizes = TensorParallelSizes(model);
  if (std::find(sizes.begin(), sizes.end(), ranks) != sizes.end()) {
    return {};
  }
  return InvalidArgument(
      fmt::format("{}: {} is none of {}, which divide the model's {} attention heads{}", key, ranks,
                  fmt::join(sizes, ", "), model.heads,
                  model.quantized ? " at borders of its blocks of 128 scaled values" : ""));
}

Status CheckDataRanks(std::int64_t data_ranks, const ModelConfig& model) {
  if (data_ranks == 1 || model.experts > 0) {
    return {};
  }
  return InvalidArgument(fmt::format(
      "data_parallel_size: {}: the model has no routed experts to share; it is 1", data_ranks));
}

Result<ModelExecutorConfig> PlanExecutor(const ServerConfig& config, const ModelConfig& model) {
  DSA_ASSIGN_OR_RETURN(const std::int64_t context_length, ContextLength(config, model));
  return MakeExecutorConfig(config, model, context_length);
}

std::int64_t GrpcBytesMax(std::int64_t available_bytes) {
  constexpr std::int64_t kShare = 8;
  return std::clamp(available_bytes / kShare, 64 * kMiB, 512 * kMiB);
}

std::string ToText(const ServerMemory& memory) {
  const bool on_host = memory.host > 0;
  return fmt::format(
      "{}: weights {}, caches {}{}, workspace {}, RoPE tables {}, scratch {}{}{}; {} available{}",
      Amount(memory.needed(), "B"), Amount(memory.weights, "B"), Amount(memory.executor.cache, "B"),
      on_host && memory.default_cache ? " (default: at most 1 GiB and a quarter of what is free)"
                                      : "",
      Amount(memory.executor.workspace, "B"), Amount(memory.executor.rope, "B"),
      Amount(memory.executor.scratch, "B"),
      memory.reserve > 0 ? fmt::format(", reserve {}", Amount(memory.reserve, "B")) : "",
      on_host ? fmt::format(", requests and texts {}", Amount(memory.host, "B")) : "",
      Amount(memory.available, "B"),
      memory.bound.empty() ? "" : fmt::format(" ({})", memory.bound));
}

namespace {

// Of ranks that share their memory the sum, of others the most.
std::int64_t OfRanks(bool share_memory, std::int64_t so_far, std::int64_t of_rank) {
  return share_memory ? so_far + of_rank : std::max(so_far, of_rank);
}

std::int64_t WeightsOfRanks(const SizedModel& model, const RankLayout& layout, bool share_memory) {
  std::int64_t bytes = 0;
  for (std::int64_t rank = 0; rank < layout.all_ranks(); ++rank) {
    bytes = OfRanks(share_memory, bytes, model.weight_bytes({.rank = rank, .layout = layout}));
  }
  return bytes;
}

ExecutorMemory PlanRanks(const Backend& backend, const ModelConfig& model,
                         const ModelExecutorConfig& config, bool share_memory) {
  ExecutorMemory all{};
  ModelExecutorConfig of_rank = config;
  for (of_rank.place.rank = 0; of_rank.place.rank < config.place.layout.all_ranks();
       ++of_rank.place.rank) {
    const ExecutorMemory memory = PlanMemory(backend, model, of_rank);
    all.cache = OfRanks(share_memory, all.cache, memory.cache);
    all.workspace = OfRanks(share_memory, all.workspace, memory.workspace);
    all.rope = OfRanks(share_memory, all.rope, memory.rope);
    all.scratch = OfRanks(share_memory, all.scratch, memory.scratch);
  }
  return all;
}

}  // namespace

namespace {

// All sizes where so much is available, whether or not that suffices.
Result<ServerSizes> SizeWithin(const ServerConfig& config, const SizedModel& model,
                               const Backend& backend, const AvailableMemory& available) {
  const bool is_cuda = IsCuda(config);
  DSA_ASSIGN_OR_RETURN(ModelExecutorConfig executor, PlanExecutor(config, model.config));
  executor.vocabulary_limit = model.vocabulary_limit;
  const std::int64_t context_length = executor.limits.context_max;
  ServerMemory memory = {
      .weights = WeightsOfRanks(model, executor.place.layout, !is_cuda),
      .executor = PlanRanks(backend, model.config, executor, !is_cuda),  // blocks are 0 yet
      .reserve = is_cuda ? config.device_memory_reserve_bytes : 0,
      .host = is_cuda ? 0 : HostBytes(config, context_length, available.bytes),
      .available = available.bytes,
      .bound = available.bound,
      .default_cache = config.kv_cache_memory_bytes == 0};
  DSA_ASSIGN_OR_RETURN(executor.blocks, CacheBlocks(config, model.config, context_length,
                                                    DefaultCacheBytes(config, memory)));
  EngineConfig engine = MakeEngineConfig(config, model.config, executor);
  DSA_RETURN_IF_ERROR(Validate(engine));
  const bool selects = engine.scheduler.attention == AttentionMode::kSparse;
  executor.recorded = DecodeShapes(engine.row_buckets, context_length,
                                   selects ? model.config.index_topk : context_length);
  for (StepShape& shape : executor.recorded) {
    shape.exchange_rows = config.data_parallel_size > 1 ? shape.tokens : 0;
  }
  executor.padding_blocks =
      PaddingBlocks(engine.row_buckets, config.data_parallel_size, kTokensPerBlock);
  memory.executor = PlanRanks(backend, model.config, executor, !is_cuda);
  return ServerSizes{.engine = std::move(engine), .executor = executor, .memory = memory};
}

// What has to be available, and as a limit: more than what is needed now, since some of that is a
// share of what is available.
Result<std::string> EnoughMemory(const ServerConfig& config, const SizedModel& model,
                                 const Backend& backend, AvailableMemory available) {
  constexpr std::int64_t kMargin = 8 * kMiB;  // of what else is taken from one start to the next
  while (true) {
    DSA_ASSIGN_OR_RETURN(const ServerSizes sizes, SizeWithin(config, model, backend, available));
    if (sizes.memory.needed() <= available.bytes) {
      break;
    }
    available.bytes = sizes.memory.needed();
  }
  const std::int64_t mib = DivideUp(available.bytes + available.taken + kMargin, kMiB);
  return available.taken == 0 ? fmt::format("{} MiB would suffice", mib)
                              : fmt::format("a limit of {} MiB would suffice", mib);
}

}  // namespace

Result<ServerSizes> SizeServer(const ServerConfig& config, const SizedModel& model,
                               std::span<Backend* const> backends) {
  DSA_RETURN_IF_ERROR(
      CheckRanks("tensor_parallel_size", config.tensor_parallel_size, model.config));
  DSA_RETURN_IF_ERROR(CheckDataRanks(config.data_parallel_size, model.config));
  const bool is_cuda = IsCuda(config);
  AvailableMemory available =
      is_cuda ? AvailableMemory{.bytes = 0, .bound = {}, .taken = 0} : FindAvailableMemory();
  available.bytes = backends.front()->AvailableBytes();
  for (const Backend* const other : backends) {
    available.bytes = std::min(available.bytes, other->AvailableBytes());
  }
  const Backend& backend = *backends.front();
  DSA_ASSIGN_OR_RETURN(ServerSizes sizes, SizeWithin(config, model, backend, available));
  const ServerMemory& memory = sizes.memory;
  if (memory.needed() > memory.available) {
    DSA_ASSIGN_OR_RETURN(const std::string enough, EnoughMemory(config, model, backend, available));
    return Error{ErrorCode::kFailedPrecondition,
                 fmt::format("not enough memory: {}; {}; less is needed with a smaller "
                             "max_model_len, max_num_seqs, max_num_batched_tokens, "
                             "kv_cache_memory_bytes{}",
                             ToText(memory), enough,
                             is_cuda ? " or device_memory_reserve_bytes"
                                     : ", max_queued_requests, max_message_bytes or threads")};
  }
  return sizes;
}

void SetMaskedUntil(const ServerConfig& config, std::int64_t masked_mha_until, ServerSizes& sizes) {
  sizes.engine.scheduler.masked_mha_until = masked_mha_until;
  sizes.engine.cache_identity = CacheIdentity(config, sizes.executor.kv_format, masked_mha_until);
}

}  // namespace dsa
