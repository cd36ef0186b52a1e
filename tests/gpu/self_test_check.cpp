// The self-test before READY on a device: it passes within 2 s for the small model, and names a
// fault that is planted in an op of the device.
#include "model/checkpoint.h"
#include "model/weight_loader.h"
#include "server/self_test.h"
#include "tests/gpu/gpu_checks.h"
#include "tests/model/damaged_device.h"

#include <functional>
#include <string>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa {
namespace {

constexpr double kSecondsMax = 2.0;

struct Loaded {
  Loaded() : cuda(testing::MustMake("cuda")) {
    NoProgress progress;
    weights = LoadWeights(checkpoint, *cuda, progress).value();
  }
  Status SelfTest(const std::function<Result<std::unique_ptr<Backend>>()>& make_device,
                  std::int64_t masked_mha_until) const {
    return RunSelfTest({.config = checkpoint.config(), .weights = weights.weights},
                       {.make_device = make_device,
                        .kv_format = checkpoint.config().default_kv_format(),
                        .masked_mha_until = masked_mha_until,
                        .step_tokens_max = 2048,
                        .threads = 8});
  }

  const Checkpoint checkpoint = Checkpoint::Open(testing::kGpuModel).value();
  const std::unique_ptr<Backend> cuda;
  DeviceWeights weights;
};

std::string MessageOf(const Status& status) {
  return status.ok() ? "" : status.error().message;
}

}  // namespace

TEST_CASE("the self-test passes on this device, in time", "[self_test]") {
  const Loaded loaded;
  for (const std::int64_t masked : {0, 200, 1000}) {
    const double start = testing::Now();
    CHECK(MessageOf(loaded.SelfTest([] { return testing::MustMake("cuda"); }, masked)).empty());
    const double seconds = testing::Now() - start;
    fmt::print("self-test  masked_mha_until={:4}  {:.2f} s\n", masked, seconds);
    CHECK(seconds <= kSecondsMax);
  }
}

TEST_CASE("a fault planted in an op of this device is named", "[self_test]") {
  const Loaded loaded;
  for (const char* op : {"BlockScaledLinear", "IndexerLogits", "LatentAttention", "Gate"}) {
    const std::string message = MessageOf(
        loaded.SelfTest([op] { return testing::WithDamagedOp(testing::MustMake("cuda"), op); }, 0));
    fmt::print("self-test  {}\n", message);
    CHECK_THAT(message, Catch::StartsWith(fmt::format("self-test: {} differs from the CPU", op)));
  }
  for (const char* op : {"WriteKeys", "SelectKeys", "AttendLatent", "ExpertMlp"}) {
    const std::string message = MessageOf(loaded.SelfTest(
        [op] { return testing::WithDamagedOverride(testing::MustMake("cuda"), op); }, 0));
    fmt::print("self-test  {}\n", message);
    CHECK_THAT(message, Catch::StartsWith(fmt::format("self-test: {} of layer ", op)));
  }
}

}  // namespace dsa
