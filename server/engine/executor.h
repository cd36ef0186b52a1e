// Runs steps on the device(s).  The engine's only view of the model; the simulator replaces it.
#pragma once

#include "model/forward_batch.h"

#include <cstdint>

namespace dsa {

class StepExecutor {
 public:
  StepExecutor() = default;
  StepExecutor(const StepExecutor&) = delete;
  StepExecutor& operator=(const StepExecutor&) = delete;
  virtual ~StepExecutor() = default;

  // Makes the calling thread the one that executes; the engine thread, before its first step.
  virtual void BindThread() {}

  // Engine thread, by turns.  Launch starts a step; the batch stays as it is until Collect returns.
  virtual void Launch(const ForwardBatch& batch) = 0;
  // Returns when every write of the step has landed: from then on the blocks of sequences that
  // ended meanwhile may be given away.  The result is valid until the next Collect.
  virtual const StepResult& Collect() = 0;
  // Whether Launch returns long before the step has run, so that it is worth leaving work for then.
  virtual bool RunsAhead() const { return false; }

  // Where ranks have sequences and caches of their own: what runs the batches of each.  Every step
  // is one batch on all of them; all are launched before any is collected.
  virtual StepExecutor& OfDataRank(std::int64_t /*rank*/) { return *this; }
  // Of a data rank, after Collect: what it took for the step without waiting for other data ranks,
  // in microseconds.  Where that cannot be told apart, what it took, of all.
  virtual std::int64_t OwnUs() const { return 0; }
};

}  // namespace dsa
