// Logits of the small model: CUDA against the CPU, below and far above top-k.
#include "model/checkpoint.h"
#include "model/weight_loader.h"
#include "server/engine/offline.h"
#include "tests/gpu/gpu_checks.h"

#include <algorithm>
#include <array>
#include <cmath>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa {
namespace {

// Bounds of docs/numerics.md: fp8 products keep 14 bits, and beyond top-k a key at the border of
// the selection may be another one.
constexpr double kBelowTopK = 5e-3;
constexpr double kEachPrompt = 3e-2;
constexpr double kMean = 2e-2;

std::vector<float> Logits(const std::string& device, const std::vector<TokenId>& ids,
                          KvFormat format) {
  const std::unique_ptr<Backend> backend = testing::MustMake(device);
  const Checkpoint checkpoint = Checkpoint::Open(testing::kGpuModel).value();
  NoProgress progress;
  const DeviceWeights loaded = LoadWeights(checkpoint, *backend, progress).value();
  Request request;
  request.external_id = "logits";
  request.prompt = ids;
  request.sampling.temperature = 0.0F;
  request.stop.max_tokens = 1;
  request.prompt_logits = PromptLogits::kAll;
  auto result = RunOffline(*backend, {.config = checkpoint.config(), .weights = loaded.weights},
                           {.kv_format = format,
                            .attention = AttentionMode::kSparse,
                            .step_tokens_max = 2048,
                            .masked_mha_until = 0},
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

// Positions whose two best logits on the CPU lie further apart than a margin, and at how many of
// them the best one is another on CUDA.
struct Agreement {
  std::int64_t positions = 0;
  std::int64_t different = 0;
};

void CountAgreement(const float* cuda, const float* cpu, std::int64_t vocabulary,
                    std::array<Agreement, 2>& by_margin) {
  constexpr std::array<float, 2> kMargins = {0.1F, 0.5F};
  const auto best = std::max_element(cpu, cpu + vocabulary) - cpu;
  float second = -INFINITY;
  for (std::int64_t i = 0; i < vocabulary; ++i) {
    second = i == best ? second : std::max(second, cpu[i]);
  }
  const bool same = std::max_element(cuda, cuda + vocabulary) - cuda == best;
  for (std::size_t i = 0; i < kMargins.size(); ++i) {
    if (cpu[best] - second > kMargins[i]) {
      ++by_margin[i].positions;
      by_margin[i].different += same ? 0 : 1;
    }
  }
}

}  // namespace

TEST_CASE("logits of the small model on CUDA are the CPU's", "[logits]") {
  constexpr std::array<std::size_t, 12> kLengths = {100,  150,  200,  250,  300,    512,
                                                    1000, 2000, 4000, 8000, 12'000, 16'000};
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  const std::string name = format == KvFormat::kFp8    ? "fp8"
                           : format == KvFormat::kBf16 ? "bf16"
                                                       : "f32";
  const ModelConfig config = LoadModelConfig(testing::kGpuModel).value();
  double sum = 0;
  std::size_t cases = 0;
  std::array<Agreement, 2> by_margin{};
  for (std::size_t i = 0; i < kLengths.size(); ++i) {
    const std::size_t length = kLengths[i];
    if (format != KvFormat::kFp8 && length > 2000) {
      continue;  // the checkpoint's own format goes the whole way
    }
    const std::vector<TokenId> ids = testing::TextIds(i * 700, length);
    const std::vector<float> cpu = Logits("cpu", ids, format);
    const std::vector<float> cuda = Logits("cuda", ids, format);
    REQUIRE(cuda.size() == cpu.size());
    const auto vocabulary = static_cast<std::size_t>(config.vocabulary);
    const std::size_t below =
        std::min(length, static_cast<std::size_t>(config.index_topk)) * vocabulary;
    const double error = RelativeError(cuda, cpu, cpu.size());
    const double error_below = RelativeError(cuda, cpu, below);
    for (std::size_t row = 0; row < length; ++row) {
      CountAgreement(&cuda[row * vocabulary], &cpu[row * vocabulary], config.vocabulary, by_margin);
    }
    fmt::print("logits  cache={:4}  tokens={:6}  error {:.2e}, below top-k {:.2e}\n", name, length,
               error, error_below);
    CAPTURE(name, length);
    CHECK(error_below <= kBelowTopK);
    CHECK(error <= kEachPrompt);
    sum += error;
    ++cases;
  }
  const double mean = sum / static_cast<double>(cases);
  fmt::print(
      "logits  cache={:4}  mean {:.2e}; argmax differs at {} of {} positions with a margin "
      "over 0.1, {} of {} over 0.5\n",
      name, mean, by_margin[0].different, by_margin[0].positions, by_margin[1].different,
      by_margin[1].positions);
  CHECK(mean <= kMean);
  CHECK(by_margin[0].different * 100 <= by_margin[0].positions);
  CHECK(by_margin[1].different == 0);
}

}  // namespace dsa
