#include "server/engine/model_executor.h"

#include "common/check.h"
#include "kernels/ops/sample.h"
#include "kernels/ops/update_block_tables.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace dsa {
namespace {

constexpr int kStepDone = 0;                 // event
constexpr std::size_t kRecordedUsual = 256;  // shapes; more of them allocate

std::int64_t BytesOf(const WorkspacePlan& plan, Buffer buffer) {
  return plan.bytes.at(static_cast<std::size_t>(buffer));
}

// Host memory of a step.
struct HostBytes {
  std::int64_t inputs;
  std::int64_t outputs;
  std::int64_t logits;
};

HostBytes PlanHost(const WorkspacePlan& plan, const ModelConfig& model, const StepLimits& limits) {
  return {.inputs = BytesOf(plan, Buffer::kStepInputs),
          .outputs = 2 * BytesOf(plan, Buffer::kStepOutputs),
          .logits = limits.logits_rows_host * model.vocabulary *
                    static_cast<std::int64_t>(sizeof(float))};
}

KvArenaExtents ArenaExtents(const ModelConfig& model, const ModelExecutorConfig& config) {
  return {.blocks = config.blocks + config.padding_blocks,
          .layers = static_cast<int>(model.layers),
          .indexer_layers = static_cast<int>(model.indexer_layers()),
          .format = config.kv_format};
}

}  // namespace

ExecutorMemory PlanMemory(const Backend& backend, const ModelConfig& model,
                          const ModelExecutorConfig& config) {
  const WorkspacePlan plan = PlanWorkspace(model, ShapeOf(model, config.place), config.limits);
  const HostBytes host = PlanHost(plan, model, config.limits);
  const KvArenaExtents arena = ArenaExtents(model, config);
  return {.cache = arena.blocks * BytesPerBlock(arena.layers, arena.indexer_layers, arena.format),
          .workspace = plan.total_bytes() + host.inputs + host.outputs + host.logits,
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
  const WorkspacePlan plan =
      PlanWorkspace(dimensions, ShapeOf(dimensions, config.place), config.limits);
  const HostBytes host = PlanHost(plan, dimensions, config.limits);
  const auto allocate_host = [&](std::int64_t bytes) {
    return backend.AllocateHost(static_cast<std::size_t>(bytes));
  };
  DSA_ASSIGN_OR_RETURN(KvArena arena, KvArena::Create(backend, ArenaExtents(dimensions, config)));
  DSA_ASSIGN_OR_RETURN(Activations activations,
                       Activations::Create(backend, plan, dimensions.activation_type));
  DSA_ASSIGN_OR_RETURN(
      DeviceRopeTable rope_table,
      DeviceRopeTable::Create(backend, dimensions.rope_frequencies, config.limits.context_max));
  DSA_ASSIGN_OR_RETURN(HostBuffer inputs, allocate_host(host.inputs));
  DSA_ASSIGN_OR_RETURN(HostBuffer outputs, allocate_host(host.outputs));
  DSA_ASSIGN_OR_RETURN(HostBuffer logits, allocate_host(host.logits));
  DSA_RETURN_IF_ERROR(backend.ReserveScratch(plan.scratch));
  return std::make_unique<ModelExecutor>(backend, model, config,
                                         Memory{.arena = std::move(arena),
                                                .activations = std::move(activations),
                                                .rope_table = std::move(rope_table),
                                                .inputs = std::move(inputs),
                                                .outputs = std::move(outputs),
                                                .logits = std::move(logits)});
}

ModelExecutor::ModelExecutor(Backend& backend, const LoadedModel& model,
                             const ModelExecutorConfig& config, Memory memory)
    : backend_(backend),
      model_config_(model.config),
      config_(config),
      experts_(ExpertsOf(model.config)),
      memory_(std::move(memory)),
      inputs_(memory_.activations.Data(Buffer::kStepInputs)),
      outputs_(memory_.activations.Data(Buffer::kStepOutputs)),
      block_tables_(memory_.activations.AsMatrix<std::int32_t>(
          Buffer::kBlockTables, config.limits.table_rows_max + 1,
          BlockTableColumns(config.limits.context_max))),
      adjustments_(memory_.activations.AsMatrix<std::int32_t>(
          Buffer::kAdjustments, AdjustmentTableRows(config.limits),
          config.limits.row_adjustments * kWordsPerAdjustment)),
      transformer_({.backend = backend_,
                    .config = model.config,
                    .weights = model.weights,
                    .rope_table = memory_.rope_table.view(),
                    .arena = memory_.arena,
                    .activations = memory_.activations,
                    .rank = ShapeOf(model.config, config_.place),
                    .batch_invariant = config_.batch_invariant,
                    .combines_parts = config_.limits.combines_parts}),
      output_half_bytes_(memory_.outputs.bytes() / 2) {
  ClearBlockTables();
  recorded_.reserve(std::max(config_.recorded.size(), kRecordedUsual));
  for (const StepShape& shape : config_.recorded) {
    Recorded(shape);
  }
}

// Nothing reads what no update has written but the row of padding, which sees the first of the
// arena's blocks behind the pool's.
void ModelExecutor::ClearBlockTables() {
  backend_.Zero(block_tables_.data,
                static_cast<std::size_t>(block_tables_.rows * block_tables_.row_stride) *
                    sizeof(std::int32_t));
  const std::int32_t padding_block = config_.blocks;
  backend_.CopyToDevice(block_tables_.Row(config_.limits.table_rows_max), &padding_block,
                        sizeof(padding_block));
}

void ModelExecutor::ApplyTableUpdates(const ForwardBatch& batch) {
  for (const TableUpdate& update : batch.table_updates) {
    const auto blocks = batch.words.subspan(static_cast<std::size_t>(update.source),
                                            static_cast<std::size_t>(update.count));
    if (!blocks.empty()) {
      backend_.CopyToDevice(block_tables_.Row(update.row) + update.first, blocks.data(),
                            blocks.size_bytes());
    }
  }
}

void ModelExecutor::RecordLast(GraphId graph) {
  backend_.Record(graph, [this] { Queue(launched_); });
}

void ModelExecutor::Launch(const ForwardBatch& batch) {
  const StepShape& shape = batch.shape;
  const std::size_t bytes = batch.packed.size();
  const auto output_bytes = static_cast<std::size_t>(OutputBytes(shape, experts_));
  DSA_CHECK(bytes <= memory_.inputs.bytes() && output_bytes <= output_half_bytes_,
            "ModelExecutor: a step of {} rows, {} sampled, takes {} bytes of {}", shape.tokens,
            shape.samples, bytes, memory_.inputs.bytes());
  std::memcpy(memory_.inputs.data(), batch.packed.data(), bytes);
  backend_.Upload(inputs_, memory_.inputs, 0, bytes);
  if (batch.recorded) {
    backend_.Replay(Recorded(shape));
  } else {
    Queue(shape);
  }
  output_offset_ = output_offset_ == 0 ? output_half_bytes_ : 0;
  backend_.Download(memory_.outputs, output_offset_, outputs_, output_bytes);
  const std::int64_t logits = batch.copy_logits ? shape.logit_rows * model_config_.vocabulary : 0;
  if (logits > 0) {
    const auto source = memory_.activations.AsVector<float>(Buffer::kLogits, logits);
    backend_.Download(memory_.logits, 0, source.data,
                      static_cast<std::size_t>(logits) * sizeof(float));
  }
  backend_.Mark(kStepDone);
  launched_ = shape;
  launched_logits_ = logits;
}

const StepResult& ModelExecutor::Collect() {
  backend_.WaitFor(kStepDone);
  result_ =
      ResultOf(OutputsAt(memory_.outputs.As<std::uint8_t>() + output_offset_, launched_, experts_));
  result_.logits = {memory_.logits.As<float>(), static_cast<std::size_t>(launched_logits_)};
  return result_;
}

// Everything between the upload and the download.  Reads the shape and nothing else of the host.
void ModelExecutor::Queue(const StepShape& shape) {
  const StepInputs inputs = InputsAt(inputs_, shape);
  const StepOutputs outputs = OutputsAt(outputs_, shape, experts_);
  const std::int64_t words_max = StepWordsMax(config_.limits);
  backend_.UpdateBlockTables({.updates = AsConst(inputs.table_updates),
                              .blocks = {.data = inputs.words, .size = words_max},
                              .tables = block_tables_});
  backend_.Zero(outputs_, static_cast<std::size_t>(ZeroedBytes(shape, experts_)));
  const Matrix<const float> logits =
      transformer_.Forward(shape, {.token_ids = AsConst(inputs.token_ids),
                                   .positions = AsConst(inputs.positions),
                                   .slots = AsConst(inputs.slots),
                                   .sequences = AsConst(inputs.sequences),
                                   .block_tables = AsConst(block_tables_),
                                   .logit_rows = AsConst(inputs.logit_rows),
                                   .live_rows = AsConst(inputs.live_rows),
                                   .row_faults = outputs.row_faults,
                                   .expert_pairs = outputs.expert_pairs});
  if (shape.samples > 0 && config_.place.tensor_rank() == 0) {
    Sample(logits, inputs, outputs);
  }
}

void ModelExecutor::Sample(const Matrix<const float>& logits, const StepInputs& inputs,
                           const StepOutputs& outputs) {
  const StepLimits& limits = config_.limits;
  if (limits.row_adjustments > 0) {
    backend_.UpdateBlockTables({.updates = AsConst(inputs.adjustment_updates),
                                .blocks = {.data = inputs.words, .size = StepWordsMax(limits)},
                                .tables = adjustments_});
  }
  backend_.Sample(
      {.logits = logits,
       .logit_rows = AsConst(inputs.sample_rows),
       .rows = AsConst(inputs.sampling),
       .adjustments = {.data = reinterpret_cast<const LogitAdjustment*>(adjustments_.data),
                       .size = AdjustmentTableRows(limits) * limits.row_adjustments},
       .masks = {},
       .vocabulary_limit = config_.vocabulary_limit,
       .tokens = outputs.tokens,
       .logprobs = outputs.logprobs,
       .top_ids = outputs.top_ids,
       .top_logprobs = outputs.top_logprobs,
       .faults = outputs.sample_faults});
}

GraphId ModelExecutor::Recorded(const StepShape& shape) {
  const auto found = std::find(recorded_.begin(), recorded_.end(), shape);
  const auto graph = static_cast<GraphId>(found - recorded_.begin());
  if (found == recorded_.end()) {
    recorded_.push_back(shape);
    backend_.Record(graph, [this, &shape] { Queue(shape); });
  }
  return graph;
}

}  // namespace dsa
