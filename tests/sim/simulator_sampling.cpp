// What requests of the simulated world ask of the sampler, and hear from it beside their tokens.
#include "tests/sim/simulator.h"

#include <fmt/format.h>

namespace dsa::sim {

// Numbers whose sums are exact.
void Simulator::DrawPenalties(SamplingParams& sampling) {
  const auto quarters = [&] {
    return extras_.Chance(40) ? 0.0F : static_cast<float>(extras_.Between(-8, 8)) / 4;
  };
  sampling.frequency_penalty = quarters();
  sampling.presence_penalty = quarters();
  sampling.repetition_penalty =
      extras_.Chance(50) ? 1.0F : static_cast<float>(extras_.Between(1, 8)) / 4;
  for (std::int32_t id = 0; id < config_.vocabulary; ++id) {
    if (extras_.Chance(10)) {
      sampling.logit_bias.push_back({.id = TokenId{id}, .add = quarters()});
    }
  }
}

void Simulator::CheckPromptLogprobs(const Client& client, const Expected& expected) {
  const bool scored =
      client.request.stop.max_tokens == 0 && *client.finish == FinishReason::kLength;
  const bool wanted =
      client.request.prompt_logprobs.has_value() && (scored || !client.tokens.empty());
  const std::size_t tokens = wanted ? client.request.prompt.size() - 1 : 0;
  SIM_CHECK(client.prompt.size() == tokens, "log-probabilities of some other prompt");
  for (std::size_t i = 0; i < tokens; ++i) {
    const GeneratedToken& token = client.prompt[i];
    SIM_CHECK(
        token.id == client.request.prompt[i + 1] && token.logprob == expected.prompt_logprobs[i],
        fmt::format("request {} hears another log-probability of its token {}",
                    Value(client.request.id), i + 1));
    SIM_CHECK(
        static_cast<std::int32_t>(token.top_logprobs.size()) == *client.request.prompt_logprobs,
        "wrong number of likely tokens of a prompt");
  }
}

}  // namespace dsa::sim
