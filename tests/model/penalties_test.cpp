// Penalties and biases from the request to the token, through a whole model beyond its top-k: each
// token is what a reference in double makes of the model's own logits.
#include "common/prng.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/model/golden.h"
#include "tests/model/sequence_runner.h"

#include <algorithm>
#include <cmath>

#include <catch2/catch.hpp>

namespace dsa::testing {
namespace {

std::vector<std::int32_t> MixedPrompt(std::int64_t tokens, std::int32_t seed) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<std::int32_t>((i * i * 7 + i + static_cast<std::size_t>(seed)) % 61);
  }
  return ids;
}

// vLLM's definitions, id by id.
std::vector<double> Adjusted(const std::vector<float>& logits, const SequenceRequest& request,
                             const std::vector<std::int32_t>& generated) {
  const SamplingParams& sampling = *request.sampling;
  std::vector<double> adjusted(logits.begin(), logits.end());
  for (std::size_t i = 0; i < adjusted.size(); ++i) {
    const auto id = static_cast<std::int32_t>(i);
    const auto times = std::count(generated.begin(), generated.end(), id);
    const bool in_prompt =
        std::find(request.prompt.begin(), request.prompt.end(), id) != request.prompt.end();
    double& z = adjusted[i];
    if (times > 0 || in_prompt) {
      z = z > 0 ? z / sampling.repetition_penalty : z * sampling.repetition_penalty;
    }
    z -= static_cast<double>(times) * sampling.frequency_penalty;
    z -= times > 0 ? sampling.presence_penalty : 0;
    for (const LogitBias& bias : sampling.logit_bias) {
      z += bias.id == TokenId{id} ? bias.add : 0;
    }
  }
  return adjusted;
}

std::int32_t Draw(const std::vector<double>& logits, const SamplingParams& sampling,
                  std::int64_t position) {
  const auto best = std::max_element(logits.begin(), logits.end());
  if (sampling.temperature == 0.0F) {
    return static_cast<std::int32_t>(best - logits.begin());
  }
  const auto weight = [&](double z) { return std::exp((z - *best) / sampling.temperature); };
  double total = 0;
  for (const double z : logits) {
    total += weight(z);
  }
  const double target = total * CounterUniform(sampling.seed, static_cast<std::uint64_t>(position));
  double sum = 0;
  for (std::size_t id = 0; id < logits.size(); ++id) {
    sum += weight(logits[id]);
    if (sum > target) {
      return static_cast<std::int32_t>(id);
    }
  }
  return static_cast<std::int32_t>(logits.size()) - 1;
}

// How many of its tokens are not the reference's.
int Deviations(const SequenceRequest& request, const SequenceOutput& output) {
  int deviations = 0;
  std::vector<std::int32_t> generated;
  for (const std::int32_t id : output.ids) {
    const auto position = static_cast<std::int64_t>(request.prompt.size() + generated.size());
    const std::vector<double> logits = Adjusted(output.logits.at(position - 1), request, generated);
    deviations += Draw(logits, *request.sampling, position) == id ? 0 : 1;
    generated.push_back(id);
  }
  return deviations;
}

std::vector<SequenceRequest> PenalizedRequests() {
  std::vector<SequenceRequest> requests = {
      {.prompt = MixedPrompt(100, 1), .max_tokens = 100, .sampling = SamplingParams{}},
      {.prompt = MixedPrompt(120, 2), .max_tokens = 80, .sampling = SamplingParams{}},
      {.prompt = MixedPrompt(90, 3), .max_tokens = 90, .sampling = SamplingParams{}},
      {.prompt = MixedPrompt(110, 4), .max_tokens = 70, .sampling = SamplingParams{}}};
  for (std::size_t i = 0; i < requests.size(); ++i) {
    SamplingParams& sampling = *requests[i].sampling;
    sampling.temperature = i % 2 == 0 ? 0.0F : 0.7F;
    sampling.seed = 40 + i;
  }
  requests[0].sampling->repetition_penalty = 1.3F;
  requests[1].sampling->frequency_penalty = 0.4F;
  requests[1].sampling->presence_penalty = -0.7F;
  requests[2].sampling->frequency_penalty = 0.15F;
  requests[2].sampling->presence_penalty = 1.1F;
  requests[2].sampling->repetition_penalty = 0.9F;
  requests[2].sampling->logit_bias = {{.id = TokenId{7}, .add = 1.5F},
                                      {.id = TokenId{80}, .add = -100.0F},
                                      {.id = TokenId{99}, .add = 2.5F}};
  requests[3].sampling->logit_bias = {{.id = TokenId{3}, .add = 4.0F},
                                      {.id = TokenId{90}, .add = 3.5F}};
  return requests;
}

}  // namespace

TEST_CASE("penalties and biases give the tokens of a reference in double", "[model][penalties]") {
  const auto* name = GENERATE("v32_f32", "v32_fp8");
  const bool recorded = GENERATE(false, true);
  CpuBackend backend(2);
  const TestModel model(CheckpointFolder(name, FindGoldenCase(name).options), backend);
  REQUIRE(model.config.index_topk < 90);  // no prompt is as short
  RunOptions options;
  options.kv_format = model.config.default_kv_format();
  options.blocks = 6;  // their growth does not fit: the last in order are preempted
  if (recorded) {
    options.row_buckets = {1, 2, 4, 8};
  }
  const std::vector<SequenceRequest> requests = PenalizedRequests();
  SequenceRunner runner(backend, model.loaded(), options);
  const std::vector<SequenceOutput> outputs = runner.Run(requests);
  std::int32_t preemptions = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    CAPTURE(name, recorded, i);
    REQUIRE(static_cast<std::int64_t>(outputs[i].ids.size()) == requests[i].max_tokens);
    CHECK(Deviations(requests[i], outputs[i]) == 0);
    preemptions += outputs[i].preemptions;
    // They change much, or the test would see nothing.
    SequenceRequest plain = requests[i];
    plain.sampling->frequency_penalty = 0;
    plain.sampling->presence_penalty = 0;
    plain.sampling->repetition_penalty = 1;
    plain.sampling->logit_bias = {};
    CHECK(Deviations(plain, outputs[i]) > 3);
  }
  CHECK(preemptions > 0);
}

}  // namespace dsa::testing
