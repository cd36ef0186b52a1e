// An executor that runs steps, or only fills the cache slots of their rows with keys that look
// computed.  Engine thread.
#pragma once

#include "kernels/backend.h"
#include "server/engine/executor.h"
#include "server/engine/model_executor.h"

#include <cstdint>
#include <vector>

namespace dsa::bench {

class CopyingExecutor final : public StepExecutor {
 public:
  enum class Mode : std::uint8_t { kCompute, kCopy };

  CopyingExecutor(ModelExecutor& model, Backend& backend) : model_(model), backend_(backend) {}

  void SetMode(Mode mode) { mode_ = mode; }

  // The rows computed between the two become what is copied.
  void BeginSource();
  void EndSource();

  void BindThread() override { model_.BindThread(); }
  void Launch(const ForwardBatch& batch) override;
  const StepResult& Collect() override;

 private:
  void Copy(const ForwardBatch& batch);

  ModelExecutor& model_;
  Backend& backend_;
  Mode mode_ = Mode::kCompute;
  bool records_source_ = false;
  std::vector<std::int64_t> source_slots_;
  // By layer: the source rows' bytes, one after the other.
  std::vector<std::vector<std::uint8_t>> latent_source_;
  std::vector<std::vector<std::uint8_t>> indexer_source_;
  std::vector<std::uint8_t> region_;  // a layer's region on the host while it is filled

  bool copied_ = false;    // by the last Launch
  HostStepOutputs blank_;  // what it then gives
};

}  // namespace dsa::bench
