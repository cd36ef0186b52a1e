// Logits on CUDA against the CPU.
//
// In float32 they agree to rounding, whatever the family and past top-k: nothing else is wrong.
// In bf16 and fp8 any other order of sums moves roundings, and what is rounded is rounded again in
// every layer; how far that carries is the model's own sensitivity.  It is measured beside: the CPU
// against itself, with attention on its masked path, which only sums in another order.  CUDA may be
// little further from the CPU than that.
#include "model/checkpoint.h"
#include "model/random_checkpoint.h"
#include "model/weight_loader.h"
#include "server/engine/offline.h"
#include "tests/gpu/gpu_checks.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <optional>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa {
namespace {

constexpr double kFloat32 = 1e-5;  // measured: 2e-7
// Of the CPU's distance from itself; measured: 0.95 to 1.15.
constexpr double kOfSensitivity = 1.5;

struct Run {
  std::string device = "cpu";
  std::int64_t masked_mha_until = 0;
  std::int64_t step_tokens_max = 2048;
  std::optional<KvFormat> kv_format = std::nullopt;  // the checkpoint's own
};

std::vector<float> Logits(const std::string& model, const std::vector<TokenId>& ids,
                          const Run& run) {
  const std::unique_ptr<Backend> backend = testing::MustMake(run.device);
  const Checkpoint checkpoint = Checkpoint::Open(model).value();
  NoProgress progress;
  const DeviceWeights loaded = LoadWeights(checkpoint, *backend, progress).value();
  Request request;
  request.external_id = "logits";
  request.prompt = ids;
  request.sampling.temperature = 0.0F;
  request.stop.max_tokens = 1;
  request.prompt_logits = PromptLogits::kAll;
  auto result =
      RunOffline(*backend, {.config = checkpoint.config(), .weights = loaded.weights},
                 {.kv_format = run.kv_format.value_or(checkpoint.config().default_kv_format()),
                  .attention = AttentionMode::kSparse,
                  .step_tokens_max = run.step_tokens_max,
                  .masked_mha_until = run.masked_mha_until},
                 std::move(request));
  INFO((result.ok() ? "" : result.error().message));
  REQUIRE(result.ok());
  return std::move(result.value().prompt_logits);
}

double RelativeError(const std::vector<float>& actual, const std::vector<float>& expected,
                     std::size_t count) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double d = double{actual[i]} - double{expected[i]};
    difference += d * d;
    norm += double{expected[i]} * double{expected[i]};
  }
  return std::sqrt(difference / norm);
}

// Positions whose two best logits lie further apart than a margin, and at how many of them the
// best one is another.
struct Agreement {
  static constexpr std::array<float, 2> kMargins = {0.1F, 0.5F};
  std::array<double, 2> positions{};
  std::array<double, 2> different{};

  void Count(const std::vector<float>& actual, const std::vector<float>& expected,
             std::int64_t vocabulary) {
    const auto row_size = static_cast<std::size_t>(vocabulary);
    for (std::size_t first = 0; first < expected.size(); first += row_size) {
      const float* row = &expected[first];
      const auto best = std::max_element(row, row + vocabulary) - row;
      float second = -INFINITY;
      for (std::int64_t i = 0; i < vocabulary; ++i) {
        second = i == best ? second : std::max(second, row[i]);
      }
      const float* other = &actual[first];
      const bool same = std::max_element(other, other + vocabulary) - other == best;
      for (std::size_t i = 0; i < kMargins.size(); ++i) {
        positions[i] += row[best] - second > kMargins[i] ? 1 : 0;
        different[i] += row[best] - second > kMargins[i] && !same ? 1 : 0;
      }
    }
  }
  double Share(std::size_t margin) const { return different[margin] / positions[margin]; }
};

// Greedy, up to the model's end.
std::vector<TokenId> CpuAnswer(const std::vector<TokenId>& prompt) {
  constexpr std::int64_t kTokensMax = 40;
  const std::unique_ptr<Backend> backend = testing::MustMake("cpu");
  const Checkpoint checkpoint = Checkpoint::Open(testing::kGpuModel).value();
  NoProgress progress;
  const DeviceWeights loaded = LoadWeights(checkpoint, *backend, progress).value();
  Request request;
  request.external_id = "answer";
  request.prompt = prompt;
  request.sampling.temperature = 0.0F;
  request.stop.max_tokens = kTokensMax;
  const auto result =
      RunOffline(*backend, {.config = checkpoint.config(), .weights = loaded.weights},
                 {.kv_format = checkpoint.config().default_kv_format(),
                  .attention = AttentionMode::kSparse,
                  .step_tokens_max = 2048,
                  .masked_mha_until = 0},
                 std::move(request));
  REQUIRE(result.ok());
  std::vector<TokenId> ids;
  for (const std::int32_t id : result.value().ids) {
    ids.push_back(TokenId{id});
  }
  return ids;
}

}  // namespace

TEST_CASE("in float32 logits on CUDA are the CPU's, below and past top-k", "[logits]") {
  RandomCheckpointOptions options;
  options.type = CheckpointType::kF32;
  options.architecture =
      GENERATE(Architecture::kDeepseekV32, Architecture::kDeepseekV3, Architecture::kGlmMoeDsa);
  const std::string folder = "build/random-checkpoint";
  REQUIRE(WriteRandomCheckpoint(options, folder).ok());
  for (const std::int64_t length : {50, 160, 700}) {  // top-k is 64
    std::vector<TokenId> ids;
    for (std::int64_t i = 0; i < length; ++i) {
      ids.push_back(static_cast<TokenId>((i * 131 + i * i * 7 + 3) % options.vocabulary));
    }
    const std::vector<float> cpu = Logits(folder, ids, {.device = "cpu"});
    for (const std::int64_t step : {2048, 48}) {
      const std::vector<float> cuda =
          Logits(folder, ids, {.device = "cuda", .step_tokens_max = step});
      const double error = RelativeError(cuda, cpu, cpu.size());
      fmt::print("logits  {:12} float32  tokens={:4} in steps of {:4}  error {:.1e}\n",
                 ToString(options.architecture), length, step, error);
      CAPTURE(length, step);
      CHECK(error < kFloat32);
    }
  }
  std::filesystem::remove_all(folder);
}

// Random models carry roundings less far than a trained one.
TEST_CASE("logits of random models on CUDA, with every type and cache format", "[logits]") {
  constexpr double kQuantized = 3e-2;  // measured: 1e-5 to 1.7e-2
  RandomCheckpointOptions options;
  options.architecture =
      GENERATE(Architecture::kDeepseekV32, Architecture::kDeepseekV3, Architecture::kGlmMoeDsa);
  const std::string folder = "build/random-checkpoint";
  for (const CheckpointType type : {CheckpointType::kFp8, CheckpointType::kBf16}) {
    options.type = type;
    REQUIRE(WriteRandomCheckpoint(options, folder).ok());
    for (const KvFormat format : {KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32}) {
      for (const std::int64_t length : {60, 300}) {  // top-k is 64
        std::vector<TokenId> ids;
        for (std::int64_t i = 0; i < length; ++i) {
          ids.push_back(static_cast<TokenId>((i * 131 + i * i * 7 + 3) % options.vocabulary));
        }
        const std::vector<float> cpu = Logits(folder, ids, {.device = "cpu", .kv_format = format});
        const std::vector<float> cuda =
            Logits(folder, ids, {.device = "cuda", .kv_format = format});
        const double error = RelativeError(cuda, cpu, cpu.size());
        fmt::print("logits  {:12} {} weights, cache {}  tokens={:4}  error {:.1e}\n",
                   ToString(options.architecture), type == CheckpointType::kFp8 ? "fp8 " : "bf16",
                   format == KvFormat::kFp8    ? "fp8 "
                   : format == KvFormat::kBf16 ? "bf16"
                                               : "f32 ",
                   length, error);
        CAPTURE(length, static_cast<int>(format), static_cast<int>(type));
        CHECK(error < kQuantized);
      }
    }
  }
  std::filesystem::remove_all(folder);
}

TEST_CASE("the small model's logits on CUDA are as near to the CPU's as those are to themselves",
          "[logits]") {
  constexpr std::array<std::size_t, 12> kLengths = {100,  150,  200,  250,  300,    512,
                                                    1000, 2000, 4000, 8000, 12'000, 16'000};
  constexpr std::size_t kMeasured = 4000;  // longer prompts take the CPU too long twice
  constexpr std::int64_t kAll = 1 << 20;
  const ModelConfig config = LoadModelConfig(testing::kGpuModel).value();
  Agreement cuda_agreement;
  Agreement cpu_agreement;
  double cuda_sum = 0;
  double sensitivity_sum = 0;
  int measured = 0;
  for (std::size_t i = 0; i < kLengths.size(); ++i) {
    const std::size_t length = kLengths[i];
    const std::vector<TokenId> ids = testing::TextIds(i * 700, length);
    const std::vector<float> cpu = Logits(testing::kGpuModel, ids, {.device = "cpu"});
    const std::vector<float> cuda = Logits(testing::kGpuModel, ids, {.device = "cuda"});
    REQUIRE(cuda.size() == cpu.size());
    const double error = RelativeError(cuda, cpu, cpu.size());
    CAPTURE(length);
    if (length > kMeasured) {
      fmt::print("logits  tokens={:6}  CUDA from CPU {:.2e}\n", length, error);
      CHECK(error < 2 * kOfSensitivity * sensitivity_sum / measured);
      continue;
    }
    const std::vector<float> again =
        Logits(testing::kGpuModel, ids, {.device = "cpu", .masked_mha_until = kAll});
    const double sensitivity = RelativeError(again, cpu, cpu.size());
    fmt::print("logits  tokens={:6}  CUDA from CPU {:.2e}, CPU from itself {:.2e}\n", length, error,
               sensitivity);
    cuda_agreement.Count(cuda, cpu, config.vocabulary);
    cpu_agreement.Count(again, cpu, config.vocabulary);
    if (length >= 192) {  // shorter prompts never take the masked path
      cuda_sum += error;
      sensitivity_sum += sensitivity;
      ++measured;
    }
  }
  fmt::print("logits  mean: CUDA from CPU {:.2e}, CPU from itself {:.2e}\n", cuda_sum / measured,
             sensitivity_sum / measured);
  CHECK(cuda_sum < kOfSensitivity * sensitivity_sum);
  for (std::size_t i = 0; i < Agreement::kMargins.size(); ++i) {
    fmt::print(
        "logits  another best token where the margin is over {}: CUDA {:.2f} %, CPU from "
        "itself {:.2f} %\n",
        Agreement::kMargins[i], 100 * cuda_agreement.Share(i), 100 * cpu_agreement.Share(i));
    CHECK(cuda_agreement.Share(i) < kOfSensitivity * cpu_agreement.Share(i) + 1e-3);
  }
}

// What a client sees: the tokens of answers, each behind what the CPU has answered before it.
TEST_CASE("along the CPU's answers CUDA's best token is the CPU's", "[logits]") {
  const ModelConfig config = LoadModelConfig(testing::kGpuModel).value();
  Agreement agreement;
  for (const std::vector<TokenId>& prompt : testing::QuestionPrompts()) {
    const std::vector<TokenId> answer = CpuAnswer(prompt);
    std::vector<TokenId> ids = prompt;
    ids.insert(ids.end(), answer.begin(), answer.end() - 1);
    const auto first = static_cast<std::ptrdiff_t>((prompt.size() - 1) *
                                                   static_cast<std::size_t>(config.vocabulary));
    const auto answers = [&](const std::string& device) {
      const std::vector<float> logits = Logits(testing::kGpuModel, ids, {.device = device});
      return std::vector<float>(logits.begin() + first, logits.end());
    };
    agreement.Count(answers("cuda"), answers("cpu"), config.vocabulary);
  }
  for (std::size_t i = 0; i < Agreement::kMargins.size(); ++i) {
    fmt::print(
        "logits  along the CPU's answers: {:.0f} of {:.0f} best tokens differ where the "
        "margin is over {}\n",
        agreement.different[i], agreement.positions[i], Agreement::kMargins[i]);
  }
  CHECK(agreement.positions[1] > 150);
  CHECK(agreement.Share(0) <= 0.01);
  CHECK(agreement.different[1] == 0);
}

}  // namespace dsa
