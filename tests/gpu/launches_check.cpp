// How many nodes the graph of a decode step has for each layer with experts, at the real model's
// sizes: what one layer more adds, copies and memsets included.
#include "kernels/cuda/cuda_backend.h"
#include "model/random_weights.h"
#include "server/engine/model_executor.h"
#include "tests/gpu/gpu_checks.h"

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa {
namespace {

constexpr std::int64_t kPosition = 8192;
constexpr std::int64_t kLaunchesMax = 13;  // 46 before there were fused ops

std::int64_t NodesOfStep(std::int64_t rows, std::int64_t layers) {
  auto config = LoadModelConfig("configs/models/deepseek-v32-ep32");
  REQUIRE(config.ok());
  config.value().layers = layers;
  auto backend = CudaBackend::Make(0);
  REQUIRE(backend.ok());
  auto weights = MakeRandomWeights(config.value(), 0, *backend.value());
  REQUIRE(weights.ok());
  const StepShape shape = DecodeShape(rows, AttentionPath::kSparse, kPosition);
  const ModelExecutorConfig executor_config{
      .limits = {.tokens_max = rows,
                 .sequences_max = rows,
                 .table_rows_max = rows,
                 .context_max = kPosition,
                 .logit_rows_max = rows,
                 .given_rows_max = 0,
                 .row_adjustments = 0,
                 .masked_until = 0,
                 .score_bytes_max = std::int64_t{64} << 20,
                 .logits_rows_host = 0},
      .blocks = 64,
      .kv_format = config.value().default_kv_format(),
      .vocabulary_limit = static_cast<std::int32_t>(config.value().vocabulary),
      .recorded = {shape}};
  auto executor = ModelExecutor::Create(
      *backend.value(), {.config = config.value(), .weights = weights.value().weights},
      executor_config);
  REQUIRE(executor.ok());
  return backend.value()->RecordedNodes(GraphId{0});
}

}  // namespace

TEST_CASE("a layer of a decode step is a few launches", "[launches]") {
  (void)testing::MustMake("cuda");
  const auto rows = GENERATE(as<std::int64_t>(), 64, 1);
  const std::int64_t step = NodesOfStep(rows, 6);
  const std::int64_t launches = step - NodesOfStep(rows, 5);
  fmt::print("launches  rows={:3}  {} of a layer with experts, {} of a step of 6 layers\n", rows,
             launches, step);
  CHECK(launches <= kLaunchesMax);
}

}  // namespace dsa
