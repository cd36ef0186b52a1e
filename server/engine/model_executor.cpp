#include "server/engine/model_executor.h"

#include "common/check.h"

#include <utility>

namespace dsa {

ExecutorMemory PlanMemory(const Backend& backend, const ModelConfig& model,
                          const ModelExecutorConfig& config) {
  const WorkspacePlan plan = PlanWorkspace(model, config.limits);
  return {.cache = config.blocks * BytesPerBlock(static_cast<int>(model.layers),
                                                 static_cast<int>(model.indexer_layers()),
                                                 config.kv_format),
          .workspace = plan.total_bytes(),
          .rope = DeviceRopeTable::Bytes(model.rope_frequencies, config.limits.context_max),
          .scratch = backend.ScratchBytes(plan.scratch)};
}

Result<std::unique_ptr<ModelExecutor>> ModelExecutor::Create(Backend& backend,
                                                             const LoadedModel& model,
                                                             const ModelExecutorConfig& config) {
  const ModelConfig& dimensions = model.config;
  DSA_CHECK(config.vocabulary_limit > 0 && config.vocabulary_limit <= dimensions.vocabulary,
            "ModelExecutor: vocabulary_limit={} of {}", config.vocabulary_limit,
            dimensions.vocabulary);
  const WorkspacePlan plan = PlanWorkspace(dimensions, config.limits);
  DSA_ASSIGN_OR_RETURN(
      KvArena arena,
      KvArena::Create(backend, {.blocks = config.blocks,
                                .layers = static_cast<int>(dimensions.layers),
                                .indexer_layers = static_cast<int>(dimensions.indexer_layers()),
                                .format = config.kv_format}));
  DSA_ASSIGN_OR_RETURN(Activations activations,
                       Activations::Create(backend, plan, dimensions.activation_type));
  DSA_ASSIGN_OR_RETURN(
      DeviceRopeTable rope_table,
      DeviceRopeTable::Create(backend, dimensions.rope_frequencies, config.limits.context_max));
  DSA_RETURN_IF_ERROR(backend.ReserveScratch(plan.scratch));
  return std::make_unique<ModelExecutor>(backend, model, config,
                                         Memory{.arena = std::move(arena),
                                                .activations = std::move(activations),
                                                .rope_table = std::move(rope_table)});
}

ModelExecutor::ModelExecutor(Backend& backend, const LoadedModel& model,
                             const ModelExecutorConfig& config, Memory memory)
    : backend_(backend),
      model_config_(model.config),
      config_(config),
      arena_(std::move(memory.arena)),
      activations_(std::move(memory.activations)),
      rope_table_(std::move(memory.rope_table)),
      transformer_({.backend = backend_,
                    .config = model.config,
                    .weights = model.weights,
                    .rope_table = rope_table_.view(),
                    .arena = arena_,
                    .activations = activations_}) {
  const auto sequences = static_cast<std::size_t>(config.limits.sequences_max);
  tokens_.resize(sequences);
  logprobs_.resize(sequences);
  top_ids_.resize(sequences * kTopLogprobsMax);
  top_logprobs_.resize(sequences * kTopLogprobsMax);
  sample_faults_.resize(sequences);
  row_faults_.resize(static_cast<std::size_t>(config.limits.tokens_max));
  logits_.resize(
      static_cast<std::size_t>(config.limits.logits_rows_host * model.config.vocabulary));
}

const StepResult& ModelExecutor::Execute(const ForwardBatch& batch) {
  const DeviceBatch device = CopyBatch(batch);
  const Matrix<const float> logits = transformer_.Forward(batch, device);
  if (!batch.sample_rows.empty()) {
    Sample(batch, logits);
  }
  CopyResult(batch, device, logits);
  backend_.Synchronize();
  return result_;
}

template <typename T>
Vector<T> ModelExecutor::CopyIn(Buffer buffer, std::span<const T> values) {
  const auto target = activations_.AsVector<T>(buffer, static_cast<std::int64_t>(values.size()));
  if (!values.empty()) {
    backend_.CopyToDevice(target.data, values.data(), values.size_bytes());
  }
  return target;
}

template <typename T>
std::span<const T> ModelExecutor::CopyOut(Buffer buffer, std::vector<T>& target,
                                          std::size_t count) {
  DSA_CHECK(count <= target.size(), "ModelExecutor: {} results, room for {}", count, target.size());
  const auto source = activations_.AsVector<T>(buffer, static_cast<std::int64_t>(count));
  if (count > 0) {
    backend_.CopyToHost(target.data(), source.data, count * sizeof(T));
  }
  return {target.data(), count};
}

DeviceBatch ModelExecutor::CopyBatch(const ForwardBatch& batch) {
  const auto tokens = static_cast<std::int64_t>(batch.token_ids.size());
  const std::int64_t stride = batch.block_table_stride;
  DSA_CHECK(stride > 0, "ModelExecutor: block_table_stride={}", stride);
  const auto block_tables = CopyIn(Buffer::kBlockTables, batch.block_tables);
  const auto faults = activations_.AsVector<std::int32_t>(Buffer::kRowFaults, tokens);
  backend_.Zero(faults.data, static_cast<std::size_t>(tokens) * sizeof(std::int32_t));
  return {.token_ids = AsConst(CopyIn(Buffer::kTokenIds, batch.token_ids)),
          .positions = AsConst(CopyIn(Buffer::kPositions, batch.positions)),
          .slots = AsConst(CopyIn(Buffer::kSlots, batch.slots)),
          .sequences = AsConst(CopyIn(Buffer::kSequences, batch.sequences)),
          .block_tables = {.data = block_tables.data,
                           .rows = block_tables.size / stride,
                           .cols = stride,
                           .row_stride = stride},
          .logit_rows = AsConst(CopyIn(Buffer::kLogitRows, batch.logit_rows)),
          .row_faults = faults};
}

void ModelExecutor::Sample(const ForwardBatch& batch, const Matrix<const float>& logits) {
  const auto rows = static_cast<std::int64_t>(batch.sample_rows.size());
  const auto faults = activations_.AsVector<std::int32_t>(Buffer::kSampleFaults, rows);
  backend_.Zero(faults.data, static_cast<std::size_t>(rows) * sizeof(std::int32_t));
  backend_.Sample({.logits = logits,
                   .logit_rows = AsConst(CopyIn(Buffer::kSampleRows, batch.sample_rows)),
                   .rows = AsConst(CopyIn(Buffer::kSampling, batch.sampling)),
                   .adjustments = AsConst(CopyIn(Buffer::kAdjustments, batch.adjustments)),
                   .masks = {},
                   .vocabulary_limit = config_.vocabulary_limit,
                   .tokens = activations_.AsVector<std::int32_t>(Buffer::kSampledTokens, rows),
                   .logprobs = activations_.AsVector<float>(Buffer::kSampledLogprobs, rows),
                   .top_ids = activations_.AsMatrix<std::int32_t>(Buffer::kSampledTopIds, rows,
                                                                  kTopLogprobsMax),
                   .top_logprobs = activations_.AsMatrix<float>(Buffer::kSampledTopLogprobs, rows,
                                                                kTopLogprobsMax),
                   .faults = faults});
}

void ModelExecutor::CopyResult(const ForwardBatch& batch, const DeviceBatch& device,
                               const Matrix<const float>& logits) {
  const std::size_t sampled = batch.sample_rows.size();
  const std::size_t top = sampled * kTopLogprobsMax;
  result_.tokens = CopyOut(Buffer::kSampledTokens, tokens_, sampled);
  result_.logprobs = CopyOut(Buffer::kSampledLogprobs, logprobs_, sampled);
  result_.top_ids = CopyOut(Buffer::kSampledTopIds, top_ids_, top);
  result_.top_logprobs = CopyOut(Buffer::kSampledTopLogprobs, top_logprobs_, top);
  result_.sample_faults = CopyOut(Buffer::kSampleFaults, sample_faults_, sampled);
  result_.row_faults =
      CopyOut(Buffer::kRowFaults, row_faults_, static_cast<std::size_t>(device.row_faults.size));
  result_.logits = {};
  if (batch.copy_logits) {
    const auto count = static_cast<std::size_t>(logits.rows * model_config_.vocabulary);
    result_.logits = CopyOut(Buffer::kLogits, logits_, count);
  }
}

}  // namespace dsa
