// How tokens are drawn, through the whole server and beyond its model's top-k.
#include "tests/e2e/tiny_server.h"

#include <map>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::Answer;
using testing::Ask;
using testing::Server;

v1::CompletionRequest LongPrompt(int answers, std::uint64_t seed) {
  v1::CompletionRequest request;
  for (int i = 0; i < 3 * testing::kTinyTopK; ++i) {
    request.mutable_token_ids()->add_ids((i * i * 7 + i) % 500);
  }
  request.mutable_sampling()->set_temperature(1.0F);
  request.mutable_sampling()->set_seed(seed);
  request.mutable_sampling()->set_n(answers);
  request.mutable_sampling()->set_frequency_penalty(0.5F);
  request.mutable_sampling()->set_repetition_penalty(1.2F);
  (*request.mutable_sampling()->mutable_logit_bias())[17] = 2.0F;
  request.mutable_stop()->set_max_tokens(10);
  request.mutable_stop()->set_ignore_eos(true);
  return request;
}

ServerConfig OverDataRanks(std::int64_t ranks) {
  ServerConfig config = testing::TinyConfig();
  config.data_parallel_size = ranks;
  config.expert_parallel = ranks > 1;
  return config;
}

}  // namespace

TEST_CASE("answer i is that of a request with seed + i", "[e2e][sampling]") {
  constexpr int kAnswers = 5;
  constexpr std::uint64_t kSeed = 1000;
  std::vector<Answer> alone;
  {
    Server server(testing::TinyConfig());
    for (int i = 0; i < kAnswers; ++i) {
      alone.push_back(Ask(server.channel, LongPrompt(1, kSeed + static_cast<std::uint64_t>(i))));
      REQUIRE(alone.back().status.ok());
      CHECK((i == 0 || alone.back().ids != alone.front().ids));
    }
  }
  Server server(OverDataRanks(GENERATE(1, 2)));
  const auto stub = v1::CompletionService::NewStub(server.channel);
  const std::int64_t computed_before = server.app->engine().Load().tokens_computed;
  grpc::ClientContext rpc;
  const auto reader = stub->CompleteStream(&rpc, LongPrompt(kAnswers, kSeed));
  std::map<std::int64_t, std::vector<std::int64_t>> ids;
  v1::CompletionStreamResponse last;
  int ends = 0;
  for (v1::CompletionStreamResponse part; reader->Read(&part); last = part) {
    std::vector<std::int64_t>& own = ids[part.index()];
    own.insert(own.end(), part.token_ids().begin(), part.token_ids().end());
    CHECK(part.seed() == kSeed + static_cast<std::uint64_t>(part.index()));
    ends += part.finish_reason() == v1::FINISH_REASON_LENGTH ? 1 : 0;
  }
  REQUIRE(reader->Finish().ok());
  CHECK(ends == kAnswers);
  for (int i = 0; i < kAnswers; ++i) {
    CAPTURE(i);
    CHECK(ids[i] == alone[static_cast<std::size_t>(i)].ids);
  }
  CHECK(last.usage().prompt_tokens() == 3 * testing::kTinyTopK);
  CHECK(last.usage().cache_hit_tokens() == 0);
  CHECK(last.usage().completion_tokens() == 10 * kAnswers);
  // The prompt was computed once, and its last block for each.
  CHECK(server.app->engine().Load().tokens_computed - computed_before <
        3 * testing::kTinyTopK + kAnswers * (kTokensPerBlock + 10));

  grpc::ClientContext whole_rpc;
  v1::CompletionResponse whole;
  REQUIRE(stub->Complete(&whole_rpc, LongPrompt(kAnswers, kSeed), &whole).ok());
  REQUIRE(whole.more_choices_size() == kAnswers - 1);
  for (int i = 1; i < kAnswers; ++i) {
    const v1::CompletionChoice& choice = whole.more_choices(i - 1);
    CHECK(choice.index() == i);
    CHECK(choice.seed() == kSeed + static_cast<std::uint64_t>(i));
    CHECK(std::vector<std::int64_t>(choice.token_ids().begin(), choice.token_ids().end()) ==
          alone[static_cast<std::size_t>(i)].ids);
  }
}

TEST_CASE("log-probabilities of a prompt are those of generating it, whatever is cached",
          "[e2e][sampling]") {
  Server server(OverDataRanks(GENERATE(1, 2)));
  const auto stub = v1::CompletionService::NewStub(server.channel);
  const auto complete = [&](const v1::CompletionRequest& request) {
    grpc::ClientContext rpc;
    v1::CompletionResponse response;
    const grpc::Status status = stub->Complete(&rpc, request, &response);
    INFO(status.error_message());
    REQUIRE(status.ok());
    return response;
  };
  v1::CompletionRequest request = LongPrompt(1, 5);
  request.mutable_stop()->set_max_tokens(80);  // into a block of its own
  request.set_logprobs(true);
  request.set_top_logprobs(3);
  const v1::CompletionResponse said = complete(request);
  const int prompt = request.token_ids().ids_size();

  v1::CompletionRequest scored = request;
  scored.mutable_token_ids()->mutable_ids()->MergeFrom(said.token_ids());
  scored.mutable_stop()->set_max_tokens(1);
  scored.set_prompt_logprobs(3);
  const v1::CompletionResponse cold = complete(scored);
  REQUIRE(cold.prompt_logprobs_size() == prompt + 80 - 1);
  for (int i = 0; i < 80; ++i) {
    CAPTURE(i);
    CHECK(cold.prompt_logprobs(prompt - 1 + i).SerializeAsString() ==
          said.logprobs(i).SerializeAsString());
  }
  CHECK(cold.usage().cache_hit_tokens() == 0);
  // Its blocks are there for others, and it reads nobody's.
  const v1::CompletionResponse warm = complete(scored);
  CHECK(warm.usage().cache_hit_tokens() == 0);
  // With nothing generated, and with several answers, which compute the prompt once.
  const std::int64_t before = server.app->engine().Load().tokens_computed;
  scored.mutable_stop()->set_max_tokens(0);
  const v1::CompletionResponse only = complete(scored);
  CHECK(server.app->engine().Load().tokens_computed - before == prompt + 80);
  CHECK(only.finish_reason() == v1::FINISH_REASON_LENGTH);
  CHECK(only.text().empty());
  CHECK(only.token_ids_size() == 0);
  CHECK(only.usage().completion_tokens() == 0);
  CHECK(only.usage().prompt_tokens() == prompt + 80);
  CHECK(only.usage().prefill_ms() > 0);
  scored.mutable_stop()->set_max_tokens(5);
  scored.mutable_sampling()->set_n(3);
  const v1::CompletionResponse thrice = complete(scored);
  CHECK(thrice.usage().prompt_tokens() == prompt + 80);
  CHECK(thrice.more_choices_size() == 2);
  CHECK(server.app->engine().Load().tokens_computed - before <
        2 * (prompt + 80) + 3 * (kTokensPerBlock + 5));
  for (const v1::CompletionResponse* again : {&only, &thrice}) {
    REQUIRE(again->prompt_logprobs_size() == cold.prompt_logprobs_size());
    for (int i = 0; i < cold.prompt_logprobs_size(); ++i) {
      CHECK(again->prompt_logprobs(i).SerializeAsString() ==
            cold.prompt_logprobs(i).SerializeAsString());
    }
  }
  scored.mutable_sampling()->set_n(1);
  scored.mutable_stop()->set_max_tokens(1);
  scored.clear_prompt_logprobs();
  CHECK(complete(scored).usage().cache_hit_tokens() == (prompt + 80 - 1) / 64 * 64);
  REQUIRE(warm.prompt_logprobs_size() == cold.prompt_logprobs_size());
  for (int i = 0; i < warm.prompt_logprobs_size(); ++i) {
    CHECK(warm.prompt_logprobs(i).SerializeAsString() ==
          cold.prompt_logprobs(i).SerializeAsString());
  }
}

}  // namespace dsa
