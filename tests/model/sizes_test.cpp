// What is laid out before the first step: RoPE tables, cache regions, workspaces.
#include "cache/kv_arena.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/forwarding_backend.h"
#include "model/activations.h"
#include "model/limits.h"
#include "model/rope_table.h"
#include "server/engine/model_executor.h"
#include "tests/model/golden.h"

#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::testing {

TEST_CASE("RoPE tables hold cos and sin of position times frequency", "[model][rope]") {
  const std::vector<double> frequencies = {1.0, 0.05623413251903491, 3.333804e-6};
  constexpr std::int64_t kPositions = 163'840;
  const RopeValues values = ComputeRopeValues(frequencies, kPositions);
  REQUIRE(values.cos.size() == kPositions * frequencies.size());
  for (const std::int64_t position : {std::int64_t{0}, std::int64_t{1}, kPositions - 1}) {
    for (std::size_t i = 0; i < frequencies.size(); ++i) {
      const long double angle = static_cast<long double>(position) * frequencies[i];
      const std::size_t at = static_cast<std::size_t>(position) * frequencies.size() + i;
      // An angle of 1.6e5 has an error of 2e-11 in double, far below float32's half unit.
      CHECK(values.cos[at] == Approx(static_cast<double>(std::cos(angle))).margin(6e-8));
      CHECK(values.sin[at] == Approx(static_cast<double>(std::sin(angle))).margin(6e-8));
    }
  }
}

TEST_CASE("regions of layers lie side by side and cost what the budget says", "[cache][arena]") {
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  CpuBackend backend(1);
  const KvArena arena =
      KvArena::Create(backend, {.blocks = 5, .layers = 3, .indexer_layers = 3, .format = format})
          .value();
  CHECK(arena.bytes() == 5 * BytesPerBlock(3, 3, format));
  const std::int64_t latent = 5 * kTokensPerBlock * LatentTokenBytes(format);
  const std::int64_t indexer = 5 * kTokensPerBlock * IndexerTokenBytes(format);
  for (int layer = 0; layer < 3; ++layer) {
    CHECK(arena.Latent(layer).data == arena.Latent(0).data + layer * latent);
    CHECK(arena.Indexer(layer).data == arena.Indexer(0).data + layer * indexer);
    CHECK(arena.Latent(layer).blocks == 5);
    CHECK(arena.Indexer(layer).format == format);
    CHECK(reinterpret_cast<std::uintptr_t>(arena.Latent(layer).data) % 256 == 0);
    CHECK(reinterpret_cast<std::uintptr_t>(arena.Indexer(layer).data) % 256 == 0);
  }
}

namespace {

StepLimits SmallLimits(std::int64_t score_bytes_max) {
  return {.tokens_max = 100,
          .sequences_max = 4,
          .table_rows_max = 6,
          .context_max = 1000,
          .logit_rows_max = 4,
          .given_rows_max = 0,
          .row_adjustments = 0,
          .masked_until = 0,
          .score_bytes_max = score_bytes_max,
          .logits_rows_host = 0};
}

}  // namespace

TEST_CASE("scores are bounded in memory and hold at least one row", "[model][limits]") {
  CpuBackend backend(1);
  const TestModel model(CheckpointFolder("v32_f32", FindGoldenCase("v32_f32").options), backend);
  StepLimits limits = SmallLimits(10 * 1024 * 4);
  const auto bytes = [&](Buffer buffer) {
    return PlanWorkspace(model.config, WholeModel(model.config), limits)
        .bytes.at(static_cast<std::size_t>(buffer));
  };
  CHECK(PlanWorkspace(model.config, WholeModel(model.config), limits).score_rows == 10);
  CHECK(bytes(Buffer::kScores) == 10 * 1024 * 4);
  limits.score_bytes_max = 1;
  CHECK(PlanWorkspace(model.config, WholeModel(model.config), limits).score_rows == 1);
  limits.score_bytes_max = std::int64_t{1} << 40;
  CHECK(PlanWorkspace(model.config, WholeModel(model.config), limits).score_rows == 100);
  CHECK(bytes(Buffer::kBlockTables) == 7 * 16 * 4);
  CHECK(bytes(Buffer::kNormedFp8) == 0);  // nothing is fp8 in a float32 checkpoint
  CHECK(bytes(Buffer::kResidual) == 100 * model.config.hidden * 4);
}

TEST_CASE("weights of pairs that came here are held where parts are made of them",
          "[model][limits]") {
  CpuBackend backend(1);
  const TestModel model(CheckpointFolder("v32_f32", FindGoldenCase("v32_f32").options), backend);
  StepLimits limits = SmallLimits(1);
  const auto plan = [&](std::int64_t data_ranks) {
    const RankLayout layout = {.expert_parallel = true, .data_ranks = data_ranks};
    return PlanWorkspace(model.config, ShapeOf(model.config, {.rank = 0, .layout = layout}),
                         limits);
  };
  const auto bytes = [&](std::int64_t data_ranks, Buffer buffer) {
    return plan(data_ranks).bytes.at(static_cast<std::size_t>(buffer));
  };
  const std::int64_t pair_bytes = 2 * 100 * model.config.experts_per_token * 4;
  CHECK(bytes(2, Buffer::kExchangeExperts) == pair_bytes);
  CHECK(bytes(2, Buffer::kExchangeWeights) == 0);
  CHECK(plan(2).scratch.expert_sum_type == DataType::kF32);
  limits.combines_parts = true;
  CHECK(bytes(2, Buffer::kExchangeWeights) == pair_bytes);
  CHECK(plan(2).scratch.expert_sum_type == DataType::kF64);
  CHECK(bytes(1, Buffer::kExchangeWeights) == 0);
  CHECK(plan(1).scratch.expert_sum_type == DataType::kF32);
}

namespace {

// Adds up what is asked of a backend.
class MeasuringBackend final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  std::int64_t allocated = 0;
  std::int64_t host = 0;
  std::int64_t scratch = 0;

  Result<DeviceBuffer> Allocate(std::size_t bytes) override {
    allocated += static_cast<std::int64_t>(bytes);
    return ForwardingBackend::Allocate(bytes);
  }
  Result<HostBuffer> AllocateHost(std::size_t bytes) override {
    host += static_cast<std::int64_t>(bytes);
    return ForwardingBackend::AllocateHost(bytes);
  }
  Status ReserveScratch(const ScratchLimits& limits) override {
    scratch += ScratchBytes(limits);
    return ForwardingBackend::ReserveScratch(limits);
  }
};

}  // namespace

TEST_CASE("an executor takes the memory that was planned", "[model][limits]") {
  const auto* name = GENERATE("v32_f32", "v32_fp8");
  CpuBackend cpu(2);
  MeasuringBackend backend(cpu);
  const TestModel model(CheckpointFolder(name, FindGoldenCase(name).options), backend);
  const Checkpoint checkpoint = Checkpoint::Open(CheckpointFolder(name, {})).value();
  CHECK(backend.allocated == WeightBytes(checkpoint, WholeModel(checkpoint.config())));
  backend.allocated = 0;
  backend.host = 0;  // of the loader
  const ModelExecutorConfig config = {
      .limits = {.tokens_max = 33,
                 .sequences_max = 5,
                 .table_rows_max = 9,
                 .context_max = 700,
                 .logit_rows_max = 5,
                 .given_rows_max = 0,
                 .row_adjustments = 10,
                 .masked_until = GENERATE(0, 100),
                 .score_bytes_max = 1 << 16,
                 .logits_rows_host = 0},
      .blocks = 7,
      .kv_format = model.config.default_kv_format(),
      .vocabulary_limit = static_cast<std::int32_t>(model.config.vocabulary)};
  const ExecutorMemory planned = PlanMemory(backend, model.config, config);
  REQUIRE(ModelExecutor::Create(backend, model.loaded(), config).ok());
  CHECK(backend.allocated + backend.host == planned.cache + planned.workspace + planned.rope);
  CHECK(backend.scratch == planned.scratch);
  CHECK(planned.total() == backend.allocated + backend.host + backend.scratch);
}

TEST_CASE("buffers are aligned and do not overlap", "[model][limits]") {
  CpuBackend backend(1);
  WorkspacePlan plan{};
  plan.bytes.fill(300);
  CHECK(plan.total_bytes() == kBuffers * 512);
  const Activations activations = Activations::Create(backend, plan, DataType::kBf16).value();
  const std::uint8_t* first = activations.AsVector<std::uint8_t>(Buffer::kStepInputs, 300).data;
  for (int i = 0; i < kBuffers; ++i) {
    const auto buffer = static_cast<Buffer>(i);
    CHECK(activations.AsVector<std::uint8_t>(buffer, 300).data == first + i * 512);
  }
}

}  // namespace dsa::testing
