// An executor that runs steps, or only writes the keys of their rows as a real prefill has computed
// them for other tokens.  Engine thread.
//
// What is copied are the inputs of WriteKeys, so each key is normed, rotated and stored as the
// model does it for the position where it lies: no two are equal, and scores spread over the
// context as after a real prefill.  Physical blocks are renamed on the way to the device by a
// random permutation, since an empty pool would give each sequence neighbouring ones.
#pragma once

#include "kernels/fused/write_keys.h"
#include "server/bench/operator_times.h"
#include "server/engine/executor.h"
#include "server/engine/model_executor.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace dsa::bench {

class CopyingExecutor final : public StepExecutor {
 public:
  enum class Mode : std::uint8_t { kCompute, kCopy };

  // `backend` is the model's.  FAILED_PRECONDITION where memory is short.
  static Result<std::unique_ptr<CopyingExecutor>> Create(ModelExecutor& model,
                                                         OperatorBackend& backend,
                                                         std::int32_t blocks,
                                                         std::int64_t rows_max);

  void SetMode(Mode mode) { mode_ = mode; }

  // The rows computed between the two become what is copied.
  void BeginSource();
  Status EndSource();

  void BindThread() override { model_.BindThread(); }
  void Launch(const ForwardBatch& batch) override;
  const StepResult& Collect() override;
  bool RunsAhead() const override { return model_.RunsAhead(); }

 private:
  // What a layer's WriteKeys read, without rows.
  struct Layer {
    WriteKeysParams params;
    std::vector<std::uint8_t> kv_rows;  // on the host, until EndSource
    std::vector<std::uint8_t> k_rows;
    DeviceBuffer kv;  // [source rows, 576]
    DeviceBuffer k;   // [source rows, 128]
  };
  CopyingExecutor(ModelExecutor& model, OperatorBackend& backend)
      : model_(model), backend_(backend) {}

  void KeepRows(const WriteKeysParams& params);
  ForwardBatch Renamed(const ForwardBatch& batch);
  void Copy(const ForwardBatch& batch);
  void WriteRun(const Layer& layer, std::int64_t first, std::int64_t source, std::int64_t rows);

  ModelExecutor& model_;
  OperatorBackend& backend_;
  Mode mode_ = Mode::kCompute;
  std::vector<Layer> layers_;
  std::size_t layer_ = 0;         // that writes next, while rows are kept
  std::int64_t source_rows_ = 0;  // of every layer
  std::int64_t source_next_ = 0;
  // Of the rows that are copied.
  DeviceBuffer positions_;
  DeviceBuffer slots_;

  std::vector<std::int32_t> names_;   // by block; the last is padding's own
  std::vector<std::uint8_t> packed_;  // of the batch, renamed

  bool copied_ = false;    // by the last Launch
  HostStepOutputs blank_;  // what it then gives
};

}  // namespace dsa::bench
