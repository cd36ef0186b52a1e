// What ranks on GPUs are held to beside the CPU (ranks_cuda_test.cpp): the CPU keeps it beside
// itself where it adds in another order, and faults in few rows do not.
#include "tests/model/rank_difference.h"

#include "kernels/cpu/cpu_backend.h"
#include "kernels/ops/gate.h"
#include "kernels/ops/routed_experts.h"
#include "model/weight_loader.h"
#include "tests/model/checkpoint_files.h"
#include "tests/model/rank_requests.h"
#include "tests/model/route_watch.h"
#include "tests/temporary_folder.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::testing {
namespace {

constexpr std::int64_t kRowsPerFault = 16;  // a row of so many has the fault

// Rows go to the expert behind the one that the gate chose second.
class OtherExpert final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void Gate(const GateParams& params) override {
    inner_.Gate(params);
    for (std::int64_t t = 0; t < params.experts.rows; t += kRowsPerFault) {
      std::int32_t* const ids = params.experts.Row(t);
      do {
        ids[1] = (ids[1] + 1) % static_cast<std::int32_t>(params.weight.rows);
      } while (ids[1] == ids[0]);
    }
  }
};

// Rows lack what their second expert gives.
class MissingExpert final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void RoutedExperts(const RoutedExpertsParams& params) override {
    std::vector<float> weights;
    for (std::int64_t t = 0; t < params.weights.rows; ++t) {
      const float* const row = params.weights.Row(t);
      weights.insert(weights.end(), row, row + params.weights.cols);
      weights[static_cast<std::size_t>(t * params.weights.cols + 1)] *=
          t % kRowsPerFault == 0 ? 0.0F : 1.0F;
    }
    RoutedExpertsParams changed = params;
    changed.weights = {.data = weights.data(),
                       .rows = params.weights.rows,
                       .cols = params.weights.cols,
                       .row_stride = params.weights.cols};
    inner_.RoutedExperts(changed);
  }
};

using WrapCpu = std::function<std::unique_ptr<Backend>(Backend& inner)>;

std::vector<SequenceOutput> RunOnCpu(const Checkpoint& checkpoint, std::int64_t masked_until,
                                     const WrapCpu& wrap = {}) {
  CpuBackend cpu(2);
  NoProgress progress;
  const DeviceWeights weights = LoadWeights(checkpoint, cpu, progress).value();
  RunOptions options;
  options.kv_format = checkpoint.config().default_kv_format();
  options.sequences_max = 3;
  options.masked_until = masked_until;
  const std::unique_ptr<Backend> faulty = wrap ? wrap(cpu) : nullptr;
  RouteWatch watch(faulty ? *faulty : cpu, checkpoint.config(), options.step_tokens_max);
  SequenceRunner runner(watch, {.config = checkpoint.config(), .weights = weights.weights},
                        options);
  runner.route_of_row = [&](std::int64_t row) { return watch.RouteOf(row); };
  return runner.Run(RankRequests(256));
}

// Takes from the best logit of the first row that leads by more than 0.5 what makes it the second.
std::vector<SequenceOutput> WithoutBest(std::vector<SequenceOutput> outputs) {
  constexpr float kLead = 0.5F;
  for (auto& [position, row] : outputs.front().logits) {
    const auto best = std::max_element(row.begin(), row.end());
    const float largest = std::exchange(*best, -INFINITY);
    const float second = *std::max_element(row.begin(), row.end());
    *best = largest;
    if (largest - second > kLead && largest - second < 2 * kLead) {
      *best = second - 0.01F;
      return outputs;
    }
  }
  FAIL("no row leads so");
  return outputs;
}

template <typename Fault>
std::unique_ptr<Backend> PlantIn(Backend& inner) {
  return std::make_unique<Fault>(inner);
}

}  // namespace

TEST_CASE("the CPU keeps what ranks on GPUs are held to, and faults in few rows do not",
          "[model][ranks]") {
  const auto type = GENERATE(CheckpointType::kBf16, CheckpointType::kFp8);
  RandomCheckpointOptions checkpoint_options = SplitOptions(Architecture::kDeepseekV32, type);
  checkpoint_options.hidden = 256;
  checkpoint_options.q_latent *= 2;
  const TemporaryFolder folder;
  MustWrite(checkpoint_options, folder.path());
  const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
  const std::vector<SequenceOutput> whole = RunOnCpu(checkpoint, 0);
  const ReplyDifference itself = CompareReplies(whole, whole, 0.0F);
  CHECK(itself.row_logits == 0.0);
  CHECK(itself.rerouted == 0.0);

  const ReplyDifference masked =
      CompareReplies(RunOnCpu(checkpoint, 512), whole, kNarrowBound.margin);
  CAPTURE(masked.logits, masked.row_logits, masked.margin_lost, masked.moves_lost, masked.rerouted);
  CHECK(masked.logits > 0.0);
  CHECK(masked.rerouted > 0.0);  // else routes were not kept
  CHECK(Keeps(masked, kNarrowBound));

  const ReplyDifference lost = CompareReplies(WithoutBest(whole), whole, kNarrowBound.margin);
  CAPTURE(lost.logits, lost.row_logits, lost.margin_lost, lost.moves_lost);
  CHECK(lost.row_logits < kNarrowBound.row_logits);
  CHECK_FALSE(lost.clear_tokens);

  const ReplyDifference other =
      CompareReplies(RunOnCpu(checkpoint, 0, PlantIn<OtherExpert>), whole, kNarrowBound.margin);
  CAPTURE(other.logits, other.rerouted);
  CHECK(other.rerouted > kNarrowBound.rerouted);
  CHECK_FALSE(Keeps(other, kNarrowBound));

  const ReplyDifference missing =
      CompareReplies(RunOnCpu(checkpoint, 0, PlantIn<MissingExpert>), whole, kNarrowBound.margin);
  CAPTURE(missing.logits, missing.row_logits, missing.rerouted);
  CHECK(missing.row_logits > kNarrowBound.row_logits);
  CHECK_FALSE(Keeps(missing, kNarrowBound));
}

}  // namespace dsa::testing
