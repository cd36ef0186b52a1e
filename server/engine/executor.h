// Runs one step on the device(s).  The engine's only view of the model; the simulator replaces it.
#pragma once

#include "model/forward_batch.h"

namespace dsa {

class StepExecutor {
 public:
  StepExecutor() = default;
  StepExecutor(const StepExecutor&) = delete;
  StepExecutor& operator=(const StepExecutor&) = delete;
  virtual ~StepExecutor() = default;

  // Makes the calling thread the one that executes; the engine thread, before its first step.
  virtual void BindThread() {}

  // Engine thread.  Returns when every write of the step has landed: from then on the blocks of
  // sequences that ended meanwhile may be given away.  The result is valid until the next call.
  virtual const StepResult& Execute(const ForwardBatch& batch) = 0;
};

}  // namespace dsa
