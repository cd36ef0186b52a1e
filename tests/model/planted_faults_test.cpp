// The golden checks are worth what they catch: each planted fault must break one of their bounds.
#include "tests/model/planted_faults.h"

#include "kernels/cpu/cpu_backend.h"
#include "tests/model/operator_check.h"
#include "tests/model/sequence_runner.h"

#include <catch2/catch.hpp>

namespace dsa::testing {
namespace {

struct Findings {
  std::vector<std::string> logits;     // bounds that the logits break
  std::vector<std::string> operators;  // operators that differ
};

// Both golden checks of one case, with the fault planted below them.
Findings Judge(const GoldenCase& golden_case, const PlantedFault& fault) {
  const auto golden = LoadGolden(golden_case.name);
  Findings findings;
  for (const bool operators : {false, true}) {
    CpuBackend cpu(2);
    TestModel model(CheckpointFolder(golden_case.name, golden_case.options), cpu);
    if (fault.change_model) {
      fault.change_model(model);
    }
    const std::unique_ptr<Backend> wrapped = fault.wrap_backend ? fault.wrap_backend(cpu) : nullptr;
    Backend& faulty = wrapped ? *wrapped : static_cast<Backend&>(cpu);
    OperatorCheck check(faulty, {.arrays = golden,
                                 .layer = *golden_case.trace_layer,
                                 .config = model.config,
                                 .weights = model.weights()});
    RunOptions options;
    options.kv_format = model.config.default_kv_format();
    options.attention = fault.attention;
    SequenceRunner runner(operators ? check : faulty, model.loaded(), options);
    const auto output = runner.Run({{.prompt = golden_case.ids}}).front();
    if (operators) {
      findings.operators = check.Violations();
    } else {
      findings.logits =
          CheckLogits(golden_case, CompareLogits(golden_case, golden.at("logits"), output.logits));
    }
  }
  return findings;
}

}  // namespace

TEST_CASE("every planted model fault fails a golden check", "[model][golden][faults]") {
  const std::vector<PlantedFault> faults = PlantedFaults();
  CHECK(faults.size() == 13);  // the twelve, RoPE counted once for each of its two layouts
  for (const PlantedFault& fault : faults) {
    for (const std::string& name : fault.cases) {
      const Findings findings = Judge(FindGoldenCase(name), fault);
      CAPTURE(fault.name, name, findings.logits, findings.operators);
      CHECK((!findings.logits.empty() || !findings.operators.empty()));
    }
  }
}

TEST_CASE("without a fault the golden checks find nothing", "[model][golden][faults]") {
  const Findings findings = Judge(FindGoldenCase("v32_fp8"), {});
  CHECK(findings.logits == std::vector<std::string>{});
  CHECK(findings.operators == std::vector<std::string>{});
}

}  // namespace dsa::testing
