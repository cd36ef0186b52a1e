// Steps of the real engine at given positions: scheduler, batch builder, caches, recorded steps and
// executor as in a server, on the calling thread.  The only file of the benchmarks that knows the
// executor.
//
// A sequence's keys are computed where that is cheap, copied where it is not: a copying step goes
// through the scheduler like any other, but the executor writes keys as a real prefill has computed
// them (copying_executor.h) instead of running the model.  What is written once is found again by
// the prefix cache.  Only computing steps are timed, and none of them mixes prefill with decode.
#pragma once

#include "common/clock.h"
#include "common/status.h"
#include "server/bench/operator_times.h"
#include "server/engine/model_executor.h"
#include "server/model_source.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace dsa::bench {

enum class Attention : std::uint8_t {
  kSparse,  // DSA
  kDense,   // all keys; the same weights, as a rule without indexer and index cache
};

enum class Keys : std::uint8_t { kComputed, kCopied };

// Weights on a device and the two models that they are.
struct BenchModel {
  std::string device;  // as --device takes it
  std::int64_t threads;
  ModelConfig sparse;
  ModelConfig dense;                 // without indexer, unless it keeps it
  std::unique_ptr<Backend> backend;  // of the weights
  DeviceWeights loaded;

  bool on_cpu() const { return device == "cpu"; }
  const ModelConfig& ConfigOf(Attention attention) const {
    return attention == Attention::kSparse ? sparse : dense;
  }
};
Result<BenchModel> LoadBenchModel(const ModelSource& source, const std::string& device,
                                  std::int64_t threads, bool dense_keeps_index);

struct StepRunnerOptions {
  Attention attention;
  std::int64_t sequences_max;
  std::int64_t context_tokens;  // positions that a sequence reaches at most
  std::int64_t chunk_tokens;    // rows of a step, at least sequences_max; for prefill whole blocks
  // Prompt rows below take the masked path; 0: none does; -1: as a server measures it at start.
  std::int64_t masked_until;
};

class StepRunner final {
 public:
  // The model and the clock, by which all is timed, outlive the runner.  FAILED_PRECONDITION where
  // memory is short.
  static Result<std::unique_ptr<StepRunner>> Create(const BenchModel& model,
                                                    const StepRunnerOptions& options,
                                                    const Clock& clock);
  // The largest sequences_max up to options' whose caches fit, all parts of a step beside them; 0
  // where one does not.
  static std::int64_t FittingSequences(const BenchModel& model, StepRunnerOptions options);
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

  // Of a device: the last measured step again, whole and op by op.  Its keys are left as they are,
  // all else is not.
  struct Sections {
    double step_us;  // replayed whole
    OperatorTimes times_us;
  };
  Sections MeasureSections();

  std::int64_t masked_until() const;
  OperatorBackend& operators();
  std::string device_name() const;
  KvFormat kv_format() const;

 private:
  struct State;
  explicit StepRunner(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace dsa::bench
