// What clients heard of their requests.
#include "tests/sim/simulator.h"

#include <algorithm>
#include <string>
#include <vector>

#include <fmt/format.h>

namespace dsa::sim {

// Where the request first ran, from which token on; on one rank alone.
std::optional<std::int64_t> Simulator::FirstComputed(const Request& request) const {
  std::optional<std::int64_t> first;
  for (std::size_t rank = 0; rank < executors_.size(); ++rank) {
    const auto& computed = executors_.At(rank).writes().first_computed();
    const auto found = computed.find(Value(request.id));
    if (found != computed.end()) {
      SIM_CHECK(!first.has_value(), fmt::format("request {} runs on two ranks", Value(request.id)));
      first = found->second;
    }
  }
  return first;
}

void Simulator::CheckEnded(const Client& client) {
  CheckUsage(client);
  CheckOutput(client);
  stats_.hit_tokens += client.usage.cache_hit_tokens;
  stats_.preemptions += client.usage.preemptions;
  switch (*client.finish) {
    case FinishReason::kCancelled:
      SIM_CHECK(client.cancelled(), "ended as cancelled, but nobody did");
      ++stats_.cancelled;
      break;
    case FinishReason::kAborted:
      SIM_CHECK(client.aborted, "ended as aborted, but nobody did");
      break;
    case FinishReason::kDeadline: {
      const auto& deadline = client.request.stop.deadline_us;
      SIM_CHECK(deadline.has_value() && *deadline <= clock_.now_us, "ended before its deadline");
      const bool ran = FirstComputed(client.request).has_value();
      SIM_CHECK(
          client.error.has_value() && client.error->code == ErrorCode::kDeadlineExceeded &&
              client.error->message == (ran ? "deadline expired" : "deadline expired in queue"),
          "an expired request hears something else");
      ++stats_.expired;
      break;
    }
    case FinishReason::kError:
      SIM_CHECK(client.error.has_value() && client.error->code == ErrorCode::kInternal,
                "a faulty request hears something else");
      ++stats_.failed;
      break;
    case FinishReason::kStop: ++stats_.stopped; break;
    case FinishReason::kLength:
      stats_.scored += client.prompt.empty() ? 0 : client.tokens.empty();
      break;
  }
}

void Simulator::CheckUsage(const Client& client) {
  const Usage& usage = client.usage;
  SIM_CHECK(usage.prompt_tokens == static_cast<std::int64_t>(client.request.prompt.size()),
            "prompt tokens are miscounted");
  const std::int64_t found = FirstComputed(client.request).value_or(0);
  SIM_CHECK(usage.cache_hit_tokens == found,
            fmt::format("{} hit tokens are billed, {} were found", usage.cache_hit_tokens, found));
  SIM_CHECK(found < usage.prompt_tokens, "nothing of the prompt was computed");
  SIM_CHECK(found == 0 || (client.request.prompt_logits == PromptLogits::kNone &&
                           !client.request.prompt_logprobs.has_value()),
            "prompt logits were wanted of positions that were not computed");
  SIM_CHECK(usage.queue_us >= 0 && usage.prefill_us >= 0 && usage.decode_us >= 0,
            "time runs backwards");
}

void Simulator::CheckOutput(const Client& client) {
  const Expected expected = RunAlone(config_, client.request);
  std::vector<TokenId> ids;
  for (const GeneratedToken& token : client.tokens) {
    ids.push_back(token.id);
    const auto& wanted = client.request.sampling.top_logprobs;
    SIM_CHECK(static_cast<std::int64_t>(token.top_logprobs.size()) == wanted.value_or(0),
              "wrong number of likely tokens");
    SIM_CHECK(!wanted.has_value() || token.logprob == -static_cast<float>(Value(token.id)),
              "the log-probability of another token");
    for (std::size_t k = 0; k < token.top_logprobs.size(); ++k) {
      SIM_CHECK(token.top_logprobs[k].logprob == -static_cast<float>(k), "likely tokens mixed up");
    }
  }
  CheckPromptLogprobs(client, expected);
  const FinishReason finish = *client.finish;
  const bool natural = finish == FinishReason::kStop || finish == FinishReason::kLength ||
                       finish == FinishReason::kError;
  SIM_CHECK(!natural || finish == expected.finish,
            fmt::format("request {} ends otherwise than alone", Value(client.request.id)));
  SIM_CHECK(natural ? ids == expected.tokens
                    : ids.size() < expected.tokens.size() + 1 &&
                          std::equal(ids.begin(), ids.end(), expected.tokens.begin()),
            fmt::format("request {} has other tokens than alone", Value(client.request.id)));
  const std::string text = natural ? expected.text : TextOf(config_, ids);
  SIM_CHECK(client.text == text, fmt::format("request {} shows \"{}\", alone it shows \"{}\"",
                                             Value(client.request.id), client.text, text));
}

}  // namespace dsa::sim
