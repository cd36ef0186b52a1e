// The forward pass against goldens made by an independent reference.
#include "tests/model/golden.h"

#include "kernels/cpu/cpu_backend.h"
#include "tests/model/operator_check.h"
#include "tests/model/sequence_runner.h"
#include "tests/paths.h"

#include <cmath>
#include <filesystem>

#include <catch2/catch.hpp>

namespace dsa::testing {
namespace {

RunOptions WholePromptOptions(const ModelConfig& config) {
  RunOptions options;
  options.kv_format = config.default_kv_format();
  return options;
}

std::map<std::int64_t, std::vector<float>> PromptLogitsOf(const GoldenCase& golden_case,
                                                          Backend& backend) {
  const TestModel model(CheckpointFolder(golden_case.name, golden_case.options), backend);
  SequenceRunner runner(backend, model.loaded(), WholePromptOptions(model.config));
  return runner.Run({{.prompt = golden_case.ids}}).front().logits;
}

}  // namespace

// Not a test: make_goldens.py calls it before it runs the reference.
TEST_CASE("write the checkpoints of the goldens", "[.]") {
  for (const GoldenCase& golden_case : GoldenCases()) {
    const std::string folder = testing::BuildPath("golden_checkpoints/" + golden_case.name);
    std::filesystem::remove_all(folder);
    REQUIRE(WriteRandomCheckpoint(golden_case.options, folder).ok());
  }
}

TEST_CASE("the checkpoints of the goldens have the bytes the reference read", "[model][golden]") {
  for (const GoldenCase& golden_case : GoldenCases()) {
    CAPTURE(golden_case.name);
    CHECK(DigestCheckpoint(CheckpointFolder(golden_case.name, golden_case.options)) ==
          golden_case.sha256);
  }
}

TEST_CASE("logits of every position agree with the reference", "[model][golden]") {
  double log_sum = 0;
  int rounded_cases = 0;
  for (const GoldenCase& golden_case : GoldenCases()) {
    CpuBackend backend(2);
    const auto logits = PromptLogitsOf(golden_case, backend);
    const auto golden = LoadGolden(golden_case.name);
    const LogitsError error = CompareLogits(golden_case, golden.at("logits"), logits);
    CAPTURE(golden_case.name, error.all, error.below, error.argmax);
    CHECK(CheckLogits(golden_case, error) == std::vector<std::string>{});
    if (!golden_case.full_precision()) {
      log_sum += std::log(error.all);
      ++rounded_cases;
    }
  }
  const double geometric_mean = std::exp(log_sum / rounded_cases);
  CAPTURE(geometric_mean);
  CHECK(geometric_mean <= 2e-2);
}

TEST_CASE("every operator agrees with the reference's trace, given its inputs", "[model][golden]") {
  for (const GoldenCase& golden_case : GoldenCases()) {
    if (!golden_case.trace_layer) {
      continue;
    }
    CpuBackend backend(2);
    TestModel model(CheckpointFolder(golden_case.name, golden_case.options), backend);
    const auto golden = LoadGolden(golden_case.name);
    OperatorCheck check(backend, {.arrays = golden,
                                  .layer = *golden_case.trace_layer,
                                  .config = model.config,
                                  .weights = model.weights()});
    SequenceRunner runner(check, model.loaded(), WholePromptOptions(model.config));
    runner.Run({{.prompt = golden_case.ids}});
    CAPTURE(golden_case.name);
    CHECK(check.Violations() == std::vector<std::string>{});
  }
}

}  // namespace dsa::testing
