// Steps of the real engine at given positions: scheduler, batch builder, caches and executor as in
// a server, on the calling thread.  The only file of the benchmarks that knows the executor.
//
// A sequence's keys are computed where that is cheap, copied where it is not: a copying step goes
// through the scheduler like any other, but the executor fills the slots it is given from keys that
// a real prefill has left, with other low bits at every position, instead of running the model.
// Only computing steps are timed, and none of them mixes prefill with decode.
#pragma once

#include "common/status.h"
#include "server/bench/operator_times.h"
#include "server/engine/model_executor.h"
#include "server/model_source.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace dsa::bench {

enum class Attention : std::uint8_t {
  kSparse,  // DSA
  kDense,   // the same weights without indexer and index cache
};

enum class Keys : std::uint8_t { kComputed, kCopied };

struct StepRunnerOptions {
  std::string device;
  std::int64_t threads;
  Attention attention;
  std::int64_t sequences_max;
  std::int64_t context_tokens;  // positions that a sequence reaches at most
  std::int64_t chunk_tokens;    // rows of a prefill step, at least sequences_max
};

// Bytes that a benchmark of these sizes takes, weights apart.
struct StepMemory {
  std::int64_t bytes;
  std::int64_t available;
};

class StepRunner final {
 public:
  // FAILED_PRECONDITION where the device or its memory is missing.
  static Result<std::unique_ptr<StepRunner>> Create(const ModelSource& source,
                                                    const StepRunnerOptions& options);
  ~StepRunner();
  StepRunner(const StepRunner&) = delete;
  StepRunner& operator=(const StepRunner&) = delete;

  // Microseconds of a step that computes the chunk [end - tokens, end) of one prompt.  `end` is a
  // multiple of chunk_tokens.
  Result<double> MeasurePrefill(std::int64_t end);

  // Decode steps of `batch` sequences of `position` tokens each, the first untimed.  Calls
  // `keep_going` with the times so far, in microseconds, after each; ends where it says false or
  // the context ends.
  Result<std::vector<double>> MeasureDecode(
      std::int64_t batch, std::int64_t position, Keys keys,
      const std::function<bool(const std::vector<double>&)>& keep_going);

  // Around whole Measure calls; meaningful where operators_can_be_timed().
  TimingBackend& operators();
  bool operators_can_be_timed() const;
  std::string device_name() const;
  KvFormat kv_format() const;

 private:
  struct State;
  explicit StepRunner(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace dsa::bench
