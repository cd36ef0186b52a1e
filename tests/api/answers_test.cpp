// Several answers to one prompt, and log-probabilities of a prompt, as the protocols of others say
// them.
#include "proto/vllm/engine.pb.h"
#include "proto/xai/chat.pb.h"
#include "tests/api/loopback.h"
#include "tests/api/raw_stream.h"
#include "tests/paths.h"

#include <map>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <google/protobuf/text_format.h>

namespace dsa::answers_test {
namespace {

namespace vllm_engine = vllm::grpc::engine;
using testing::Delta;
using testing::LastDelta;
using testing::Loopback;
using testing::RawStream;
using vllm_engine::GenerateResponse;

const std::string kGenerate = "/vllm.grpc.engine.VllmEngine/Generate";

std::string ThreeIds(bool streams, const std::string& sampling) {
  vllm_engine::GenerateRequest request;
  REQUIRE(google::protobuf::TextFormat::ParseFromString(
      fmt::format("tokenized {{ input_ids: [7, 8, 9] }} stream: {} sampling_params {{ {} }}",
                  streams, sampling),
      &request));
  return request.SerializeAsString();
}

const Tokenizer& TinyTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer =
      std::move(Tokenizer::Load(testing::SourcePath("models/dsa-tiny/tokenizer.json"))).value();
  return *tokenizer;
}

std::string TwoAnswersToHi() {
  xai_api::GetCompletionsRequest request;
  REQUIRE(google::protobuf::TextFormat::ParseFromString(
      "messages { role: ROLE_USER content { text: 'hi' } } n: 2 seed: 70", &request));
  return request.SerializeAsString();
}

// Two answers, the second of which ends first.
void AnswerTwice(testing::FakeEngine& engine) {
  const auto first = engine.Wait(0);
  const auto second = engine.Wait(1);
  REQUIRE(second);
  CHECK(second->request.sampling.seed == first->request.sampling.seed + 1);
  TokenDelta one = Delta("", {4});
  one.usage.prompt_tokens = 3;
  first->sink->OnDelta(std::move(one));
  second->sink->OnDelta(Delta("", {5, 6}));
  TokenDelta end = LastDelta(FinishReason::kStop);
  end.tokens = Delta("", {1}).tokens;
  end.usage.completion_tokens = 3;
  second->sink->OnDelta(std::move(end));
  first->sink->OnDelta(LastDelta(FinishReason::kLength));
}

}  // namespace

TEST_CASE("each of several answers has its chunks and its end", "[api][vllm]") {
  for (const bool streams : {false, true}) {
    CAPTURE(streams);
    Loopback loopback(nullptr);
    RawStream stream(loopback.channel, kGenerate, ThreeIds(streams, "n: 2 logprobs: 0"));
    AnswerTwice(loopback.engine);
    std::map<std::uint32_t, std::vector<std::uint32_t>> ids;
    std::map<std::uint32_t, vllm_engine::GenerateComplete> ends;
    for (GenerateResponse response; stream.Read(response);) {
      if (response.has_chunk()) {
        const vllm_engine::GenerateStreamChunk& chunk = response.chunk();
        CHECK(ends.count(chunk.index()) == 0);
        std::vector<std::uint32_t>& own = ids[chunk.index()];
        own.insert(own.end(), chunk.token_ids().begin(), chunk.token_ids().end());
        CHECK(chunk.prompt_tokens() == 3);
        CHECK(chunk.output_logprobs().token_ids_size() == chunk.token_ids_size());
      } else {
        CHECK(ends.count(response.complete().index()) == 0);
        ends[response.complete().index()] = response.complete();
      }
    }
    CHECK(stream.Finish().ok());
    const auto said = [&](std::uint32_t index) {
      return std::vector<std::uint32_t>(ends[index].output_ids().begin(),
                                        ends[index].output_ids().end());
    };
    REQUIRE(ends.size() == 2);
    CHECK(said(0) == std::vector<std::uint32_t>{4});
    CHECK(said(1) == std::vector<std::uint32_t>{5, 6, 1});
    CHECK(ends[0].finish_reason() == "length");
    CHECK(ends[1].finish_reason() == "stop");
    CHECK(ends[1].matched_token_id() == 1);
    CHECK(ends[0].completion_tokens() == 2);  // as the engine counts
    CHECK(ends[1].completion_tokens() == 3);
    CHECK(ends[0].prompt_tokens() == 3);
    CHECK(ends[1].prompt_tokens() == 3);
    CHECK(ends[1].output_logprobs().token_ids_size() == (streams ? 0 : 3));
    if (streams) {
      CHECK(ids[0] == said(0));
      CHECK(ids[1] == said(1));
    }
  }
}

TEST_CASE("log-probabilities of a prompt come once, the first token without", "[api][vllm]") {
  for (const bool streams : {false, true}) {
    const bool generates = GENERATE(true, false);
    CAPTURE(streams, generates);
    Loopback loopback(nullptr);
    RawStream stream(
        loopback.channel, kGenerate,
        ThreeIds(streams, generates ? "prompt_logprobs: 1" : "prompt_logprobs: 1 max_tokens: 0"));
    const auto submitted = loopback.engine.Wait(0);
    REQUIRE(submitted);
    CHECK(submitted->request.prompt_logprobs == 1);
    TokenDelta first = Delta("", {4});
    first.prompt = {{.id = TokenId{8},
                     .logprob = -1.5F,
                     .top_logprobs = {{.id = TokenId{6}, .logprob = -0.25F}}},
                    {.id = TokenId{9}, .logprob = -2.5F, .top_logprobs = {}}};
    if (generates) {
      submitted->sink->OnDelta(std::move(first));
      submitted->sink->OnDelta(LastDelta(FinishReason::kLength));
    } else {
      TokenDelta end = LastDelta(FinishReason::kLength);
      end.prompt = std::move(first.prompt);
      submitted->sink->OnDelta(std::move(end));
    }
    int reported = 0;
    for (GenerateResponse response; stream.Read(response);) {
      const bool chunk = response.has_chunk();
      const vllm_engine::InputLogProbs& logprobs =
          chunk ? response.chunk().input_logprobs() : response.complete().input_logprobs();
      CHECK_FALSE((chunk ? response.chunk().has_output_logprobs()
                         : response.complete().has_output_logprobs()));
      if (logprobs.token_ids_size() == 0) {
        continue;
      }
      ++reported;
      CHECK(std::vector<std::uint32_t>(logprobs.token_ids().begin(), logprobs.token_ids().end()) ==
            std::vector<std::uint32_t>{7, 8, 9});
      REQUIRE(logprobs.token_logprobs_size() == 3);
      CHECK_FALSE(logprobs.token_logprobs(0).has_value());
      CHECK(logprobs.token_logprobs(1).value() == -1.5F);
      CHECK(logprobs.token_logprobs(2).value() == -2.5F);
      REQUIRE(logprobs.top_logprobs_size() == 3);
      CHECK(logprobs.top_logprobs(0).token_ids_size() == 0);
      CHECK(logprobs.top_logprobs(1).token_ids(0) == 6);
      CHECK(logprobs.top_logprobs(1).values(0) == -0.25F);
    }
    CHECK(reported == 1);
    CHECK(stream.Finish().ok());
  }
}

TEST_CASE("each of several answers of xAI's has its index and its reason", "[api][xai]") {
  constexpr std::int64_t kContext = 7;  // more than either takes, less than both
  const auto run = [](const char* method, const auto& read) {
    Loopback loopback(&TinyTokenizer());
    RawStream stream(loopback.channel, method, TwoAnswersToHi());
    const auto first = loopback.engine.Wait(0);
    const auto second = loopback.engine.Wait(1);
    REQUIRE(second);
    CHECK(first->request.sampling.seed == 70);
    CHECK(second->request.sampling.seed == 71);
    loopback.context->model.context_length = kContext;
    TokenDelta one = Delta("a", {4});
    one.usage.prompt_tokens = 3;
    first->sink->OnDelta(std::move(one));
    second->sink->OnDelta(Delta("b", {5}));
    TokenDelta end = LastDelta(FinishReason::kStop);
    end.text = "c";
    second->sink->OnDelta(std::move(end));
    first->sink->OnDelta(LastDelta(FinishReason::kLength));
    read(stream);
    CHECK(stream.Finish().ok());
  };
  run("/xai_api.Chat/GetCompletion", [](RawStream& stream) {
    xai_api::GetChatCompletionResponse response;
    REQUIRE(stream.Read(response));
    REQUIRE(response.outputs_size() == 2);
    for (int i = 0; i < 2; ++i) {
      CHECK(response.outputs(i).index() == i);
      CHECK(response.outputs(i).message().role() == xai_api::ROLE_ASSISTANT);
      CHECK(response.outputs(i).message().content() == (i == 0 ? "a" : "bc"));
      CHECK(response.outputs(i).finish_reason() ==
            (i == 0 ? xai_api::REASON_MAX_LEN : xai_api::REASON_STOP));
    }
    CHECK(response.usage().prompt_tokens() == 3);
    CHECK(response.usage().completion_tokens() == 4);  // of both
  });
  run("/xai_api.Chat/GetCompletionChunk", [](RawStream& stream) {
    std::map<int, std::string> contents;
    std::map<int, xai_api::FinishReason> reasons;
    xai_api::GetChatCompletionChunk chunk;
    while (stream.Read(chunk)) {
      REQUIRE(chunk.outputs_size() == 1);
      const xai_api::CompletionOutputChunk& output = chunk.outputs(0);
      CHECK(output.delta().role() == xai_api::ROLE_ASSISTANT);
      contents[output.index()] += output.delta().content();
      reasons[output.index()] = output.finish_reason();
    }
    CHECK(contents == std::map<int, std::string>{{0, "a"}, {1, "bc"}});
    CHECK(reasons[0] == xai_api::REASON_MAX_LEN);
    CHECK(reasons[1] == xai_api::REASON_STOP);
    CHECK(chunk.usage().completion_tokens() == 4);
  });
}

}  // namespace dsa::answers_test
