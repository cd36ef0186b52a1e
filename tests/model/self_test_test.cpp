// The self-test before READY: a device as good as the CPU passes; a fault that is planted in any op
// is named, also one that only rows past top-k meet.
#include "server/self_test.h"

#include "kernels/cpu/cpu_backend.h"
#include "tests/model/damaged_device.h"
#include "tests/model/golden.h"
#include "tests/paths.h"

#include <string>

#include <catch2/catch.hpp>
#include <fmt/format.h>

namespace dsa::testing {
namespace {

using Damaged = std::unique_ptr<Backend> (*)(std::unique_ptr<Backend>, std::string);

// The self-test of a model, loaded by a CPU, on such devices.
Status SelfTestOf(const std::string& folder, Damaged damaged, const std::string& fault,
                  std::int64_t masked_until) {
  CpuBackend loader(2);
  const TestModel model(folder, loader);
  return RunSelfTest(model.loaded(), {.make_device = [&]() -> Result<std::unique_ptr<Backend>> {
                                        return damaged(std::make_unique<CpuBackend>(2), fault);
                                      },
                                      .kv_format = model.config.default_kv_format(),
                                      .masked_mha_until = masked_until,
                                      .step_tokens_max = 2048,
                                      .threads = 2});
}

// Of a golden model.
Status SelfTest(Damaged damaged, const std::string& name, const std::string& fault,
                std::int64_t masked_until) {
  return SelfTestOf(CheckpointFolder(name, FindGoldenCase(name).options), damaged, fault,
                    masked_until);
}

std::string MessageOf(const Status& status) {
  return status.ok() ? "" : status.error().message;
}

}  // namespace

TEST_CASE("the self-test passes on a device that computes what the CPU does",
          "[model][self_test]") {
  const std::string name =
      GENERATE(as<std::string>(), "v32_f32", "v32_bf16", "v32_fp8", "glm_fp8", "v3_fp8");
  CAPTURE(name);
  CHECK(MessageOf(SelfTest(WithDamagedOp, name, "", 0)).empty());
  CHECK(MessageOf(SelfTest(WithDamagedOverride, name, "", 100)).empty());
}

// It runs the first layer of each kind, and the last: fewer dense ones than the model has.
TEST_CASE("the self-test passes on models with several dense layers", "[model][self_test]") {
  RandomCheckpointOptions options = FindGoldenCase("v32_fp8").options;
  options.dense_layers = GENERATE(0, 2, 3);
  options.layers = options.dense_layers + 2;
  CAPTURE(options.dense_layers);
  const std::string folder =
      CheckpointFolder(fmt::format("dense_{}", options.dense_layers), options);
  CHECK(MessageOf(SelfTestOf(folder, WithDamagedOp, "", 0)).empty());
}

TEST_CASE("the self-test names a plain op that is wrong", "[model][self_test]") {
  const std::string fault =
      GENERATE(as<std::string>(), "Embed", "GatherRows", "RmsNorm", "QuantizeFp8", "Linear",
               "BlockScaledLinear", "Rope", "StoreLatent", "StoreIndexerKey", "PrepareIndexerQuery",
               "IndexerLogits", "SelectTopK", "AbsorbQuery", "LatentAttention", "ExpandValue",
               "MaskedAttention", "SwiGlu", "Gate", "RoutedExperts", "Sample");
  CAPTURE(fault);
  const Status status =
      SelfTest(WithDamagedOp, "v32_fp8", fault, fault == "MaskedAttention" ? 100 : 0);
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().code == ErrorCode::kInternal);
  CHECK_THAT(status.error().message,
             Catch::StartsWith("self-test: " + fault + " differs from the CPU: "));
}

TEST_CASE("the self-test names an override that is wrong, and the layer", "[model][self_test]") {
  const std::string fault =
      GENERATE(as<std::string>(), "AddNorm", "Project", "WriteKeys", "SelectKeys", "AttendLatent",
               "AttendMasked", "GatedMlp", "ExpertMlp");
  CAPTURE(fault);
  const std::string layer = fault == "ExpertMlp" ? "1" : "0";  // the first that has one
  const Status status =
      SelfTest(WithDamagedOverride, "v32_fp8", fault, fault == "AttendMasked" ? 100 : 0);
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().code == ErrorCode::kInternal);
  CHECK_THAT(status.error().message,
             Catch::StartsWith("self-test: " + fault + " of layer " + layer +
                               " differs from its plain operators: "));
}

// The shipped model gives what it does not select so little weight that a device which attends to
// everything is within a rounding of it.
TEST_CASE("the self-test sees a selection that a trained model does not need",
          "[model][self_test]") {
  CpuBackend loader(2);
  const TestModel model(SourcePath("models/dsa-tiny"), loader);
  const auto self_test = [&](const char* fault) {
    return MessageOf(RunSelfTest(
        model.loaded(), {.make_device = [fault]() -> Result<std::unique_ptr<Backend>> {
                           return WithDamagedOverride(std::make_unique<CpuBackend>(2), fault);
                         },
                         .kv_format = model.config.default_kv_format(),
                         .masked_mha_until = 0,
                         .step_tokens_max = 2048,
                         .threads = 2}));
  };
  CHECK(self_test("").empty());
  CHECK_THAT(self_test("AttendLatent"),
             Catch::StartsWith("self-test: AttendLatent of layer 0 of a tiny model differs"));
}

}  // namespace dsa::testing
