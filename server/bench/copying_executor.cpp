#include "server/bench/copying_executor.h"

#include "common/check.h"
#include "common/prng.h"

#include <algorithm>
#include <numeric>

namespace dsa::bench {
namespace {

constexpr std::int64_t kShiftPerStep = 97;  // of the source: no two sequences have the same keys
constexpr std::uint64_t kSeed = 0x5ca77e8ed;

std::int64_t RowBytes(const ConstAnyMatrix& matrix) {
  return matrix.cols * SizeOf(matrix.type);
}

ConstAnyMatrix RowsAt(const ConstAnyMatrix& like, const DeviceBuffer& rows, std::int64_t first,
                      std::int64_t count) {
  ConstAnyMatrix part = like;
  part.data = rows.As<const std::uint8_t>() + first * RowBytes(like);
  part.rows = count;
  part.row_stride = like.cols;
  return part;
}

}  // namespace

Result<std::unique_ptr<CopyingExecutor>> CopyingExecutor::Create(ModelExecutor& model,
                                                                 OperatorBackend& backend,
                                                                 std::int32_t blocks,
                                                                 std::int64_t rows_max) {
  std::unique_ptr<CopyingExecutor> executor(new CopyingExecutor(model, backend));
  const auto rows = static_cast<std::size_t>(rows_max);
  DSA_ASSIGN_OR_RETURN(executor->positions_, backend.Allocate(rows * sizeof(std::int32_t)));
  DSA_ASSIGN_OR_RETURN(executor->slots_, backend.Allocate(rows * sizeof(std::int64_t)));
  std::vector<std::int32_t>& names = executor->names_;
  names.resize(static_cast<std::size_t>(blocks) + 1);
  std::iota(names.begin(), names.end(), 0);
  for (std::int32_t i = blocks - 1; i > 0; --i) {
    const std::uint64_t bits = CounterBits(kSeed, static_cast<std::uint64_t>(i));
    std::swap(names[static_cast<std::size_t>(i)], names[bits % static_cast<std::uint64_t>(i + 1)]);
  }
  return executor;
}

void CopyingExecutor::Launch(const ForwardBatch& batch) {
  const ForwardBatch renamed = Renamed(batch);
  copied_ = mode_ == Mode::kCopy;
  if (!copied_) {
    model_.Launch(renamed);
    return;
  }
  Copy(renamed);
  model_.ApplyTableUpdates(renamed);
  backend_.Synchronize();
  blank_.Reset(batch.shape);
}

const StepResult& CopyingExecutor::Collect() {
  return copied_ ? blank_.result() : model_.Collect();
}

ForwardBatch CopyingExecutor::Renamed(const ForwardBatch& batch) {
  packed_.assign(batch.packed.begin(), batch.packed.end());
  const StepInputs inputs = InputsAt(packed_.data(), batch.shape);
  for (std::int64_t row = 0; row < inputs.slots.size; ++row) {
    std::int64_t& slot = inputs.slots.data[row];
    slot =
        std::int64_t{names_[static_cast<std::size_t>(slot / kTokensPerBlock)]} * kTokensPerBlock +
        slot % kTokensPerBlock;
  }
  for (const TableUpdate& update : batch.table_updates) {
    for (std::int32_t i = 0; i < update.count; ++i) {
      std::int32_t& block = inputs.words[update.source + i];
      block = names_[static_cast<std::size_t>(block)];
    }
  }
  ForwardBatch renamed = batch;
  renamed.packed = packed_;
  renamed.slots = {inputs.slots.data, batch.slots.size()};
  renamed.words = {inputs.words, batch.words.size()};
  return renamed;
}

void CopyingExecutor::BeginSource() {
  layers_.resize(static_cast<std::size_t>(model_.arena().extents().layers));
  layer_ = 0;
  backend_.SetKeyListener([this](const WriteKeysParams& params) { KeepRows(params); });
}

void CopyingExecutor::KeepRows(const WriteKeysParams& params) {
  Layer& layer = layers_[layer_];
  layer_ = (layer_ + 1) % layers_.size();
  layer.params = params;
  layer.params.query_latent = {};
  const auto keep = [this](const ConstAnyMatrix& matrix, std::vector<std::uint8_t>& rows) {
    DSA_CHECK(matrix.row_stride == matrix.cols, "CopyingExecutor: rows of {} lie {} apart",
              matrix.cols, matrix.row_stride);
    const auto bytes = static_cast<std::size_t>(matrix.rows * RowBytes(matrix));
    rows.resize(rows.size() + bytes);
    backend_.CopyToHost(rows.data() + rows.size() - bytes, matrix.data, bytes);
  };
  keep(params.latent.kv, layer.kv_rows);
  if (params.indexer_key) {
    keep(params.indexer_key->k, layer.k_rows);
  }
  backend_.Synchronize();
}

Status CopyingExecutor::EndSource() {
  backend_.SetKeyListener({});
  const auto upload = [this](std::vector<std::uint8_t>& rows, DeviceBuffer& buffer) -> Status {
    DSA_ASSIGN_OR_RETURN(buffer, backend_.Allocate(rows.size()));
    backend_.CopyToDevice(buffer.data(), rows.data(), rows.size());
    rows = {};
    return {};
  };
  for (Layer& layer : layers_) {
    source_rows_ =
        static_cast<std::int64_t>(layer.kv_rows.size()) / RowBytes(layer.params.latent.kv);
    DSA_RETURN_IF_ERROR(upload(layer.kv_rows, layer.kv));
    if (layer.params.indexer_key) {
      DSA_RETURN_IF_ERROR(upload(layer.k_rows, layer.k));
    }
  }
  backend_.Synchronize();
  return {};
}

void CopyingExecutor::Copy(const ForwardBatch& batch) {
  const auto rows = static_cast<std::size_t>(batch.tokens);
  backend_.CopyToDevice(positions_.data(), batch.positions.data(), rows * sizeof(std::int32_t));
  backend_.CopyToDevice(slots_.data(), batch.slots.data(), rows * sizeof(std::int64_t));
  for (std::int64_t first = 0; first < batch.tokens;) {
    const std::int64_t count = std::min(batch.tokens - first, source_rows_ - source_next_);
    for (const Layer& layer : layers_) {
      WriteRun(layer, first, source_next_, count);
    }
    first += count;
    source_next_ = (source_next_ + count) % source_rows_;
  }
  source_next_ = (source_next_ + kShiftPerStep) % source_rows_;
}

void CopyingExecutor::WriteRun(const Layer& layer, std::int64_t first, std::int64_t source,
                               std::int64_t rows) {
  WriteKeysParams params = layer.params;
  const Vector<const std::int32_t> positions{.data = positions_.As<const std::int32_t>() + first,
                                             .size = rows};
  const Vector<const std::int64_t> slots{.data = slots_.As<const std::int64_t>() + first,
                                         .size = rows};
  params.latent.kv = RowsAt(params.latent.kv, layer.kv, source, rows);
  params.latent.positions = positions;
  params.latent.slots = slots;
  if (params.indexer_key) {
    params.indexer_key->k = RowsAt(params.indexer_key->k, layer.k, source, rows);
    params.indexer_key->positions = positions;
    params.indexer_key->slots = slots;
  }
  backend_.WriteKeys(params);
}

}  // namespace dsa::bench
