// The quality gate: the model that ships with the server finds facts far behind index_topk tokens,
// through gRPC, scheduler, paged caches and forward pass, and only if the indexer works.
//
// Eight questions share each haystack of about 1,024 tokens, so all but the first of a haystack
// read its keys from the prefix cache.
#include "common/file.h"
#include "common/json.h"
#include "kernels/cpu/cpu_backend.h"
#include "proto/chat.grpc.pb.h"
#include "server/app.h"
#include "tests/model/indexer_faults.h"
#include "tests/paths.h"

#include <array>
#include <functional>
#include <future>
#include <set>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

namespace dsa {
namespace {

const std::string kModel = testing::SourcePath("models/dsa-tiny");
const std::string kQuestions = testing::SourcePath("tests/fixtures/quality/questions.json");
constexpr int kThreads = 2;
constexpr std::int64_t kCodeTokens = 4;  // a right answer is the code and the end
constexpr std::int64_t kSentenceTokens = 64;
constexpr int kNeedles = 16;
constexpr int kRightAtLeast = 15;  // of 16, by a model whose recall is at least 95 %
constexpr int kBrokenAtMost = 11;  // of 16: under 70 %
constexpr int kBrokenWrong = kNeedles - kBrokenAtMost;  // so many are enough to call it broken

Json Questions() {
  const auto text = ReadFile(kQuestions, 1 << 20);
  REQUIRE(text.ok());
  const auto json = ParseJson(text.value(), kQuestions);
  REQUIRE(json.ok());
  return json.value();
}

ServerConfig AskedConfig() {
  ServerConfig config;
  config.model = kModel;
  config.listen = "127.0.0.1:0";
  config.max_model_len = 2048;
  config.max_num_seqs = 4;
  config.max_num_batched_tokens = 512;
  return config;
}

// The whole server, on `backend` or on its own, and questions to it.
class Asked final {
 public:
  Asked(Backend& backend, const std::string& attention)
      : Asked([&] {
          ServerConfig config = AskedConfig();
          config.attention = attention;
          return App::StartOn(backend, config);
        }()) {}
  explicit Asked(Result<std::unique_ptr<App>> app) {
    REQUIRE(app.ok());
    app_ = std::move(app).value();
    stub_ = v1::ChatService::NewStub(grpc::CreateChannel(fmt::format("127.0.0.1:{}", app_->port()),
                                                         grpc::InsecureChannelCredentials()));
  }

  // The greedy answer to one message, of at most `tokens_max`.
  v1::ChatResponse Answer(const std::string& text, std::int64_t tokens_max) {
    v1::ChatResponse response;
    const grpc::Status status = Ask(text, tokens_max, response);
    INFO(status.error_message());
    REQUIRE(status.ok());
    return response;
  }
  // Any thread.
  grpc::Status Ask(const std::string& text, std::int64_t tokens_max, v1::ChatResponse& response) {
    v1::ChatRequest request;
    v1::Message& message = *request.add_messages();
    message.set_role(v1::ROLE_USER);
    message.set_content(text);
    request.mutable_sampling()->set_temperature(0.0F);
    request.mutable_stop()->set_max_tokens(tokens_max);
    grpc::ClientContext rpc;
    return stub_->Chat(&rpc, request, &response);
  }

  int Right(const Json& questions) {
    int right = 0;
    for (const Json& question : questions) {
      const v1::ChatResponse answer =
          Answer(question["question"].get<std::string>(), kSentenceTokens);
      UNSCOPED_INFO(answer.message().content());
      right += answer.message().content() == question["answer"].get<std::string>() ? 1 : 0;
    }
    return right;
  }

 private:
  std::unique_ptr<App> app_;
  std::unique_ptr<v1::ChatService::Stub> stub_;
};

// Facts found, of 16.  `before` is called with each haystack before its first question.  Once
// `wrong_max` answers were wrong, the rest is not asked and counts as found.
int Recall(Asked& asked, const std::function<void(const Json& haystack)>& before,
           int wrong_max = kNeedles) {
  int wrong = 0;
  int questions = 0;
  const Json all = Questions();
  for (const Json& haystack : all["haystacks"]) {
    before(haystack);
    std::int64_t cached = 0;
    for (const Json& question : haystack["questions"]) {
      const v1::ChatResponse answer = asked.Answer(
          haystack["text"].get<std::string>() + "\n\n" + question["question"].get<std::string>(),
          kCodeTokens);
      wrong += answer.message().content() == question["answer"].get<std::string>() ? 0 : 1;
      ++questions;
      CHECK(answer.usage().prompt_tokens() > 960);  // nearly four times index_topk, or more
      CHECK(answer.usage().prompt_tokens() < 1100);
      cached += answer.usage().cache_hit_tokens();
      if (wrong == wrong_max) {
        return kNeedles - wrong;
      }
    }
    CHECK(cached > 6300);  // seven times 900
  }
  CHECK(questions == kNeedles);
  return kNeedles - wrong;
}

void IgnoreHaystack(const Json& /*haystack*/) {}

// Positions of all blocks that hold a part of one of the haystack's facts.
std::set<std::int32_t> FactBlocks(const Tokenizer& tokenizer, const Json& haystack) {
  constexpr std::size_t kHeadTokens = 2;  // begin of sentence, user
  const auto text = haystack["text"].get<std::string>();
  std::set<std::int32_t> positions;
  for (const Json& question : haystack["questions"]) {
    const auto fact = question["fact"].get<std::string>();
    const std::size_t at = text.find(fact);
    REQUIRE(at != std::string::npos);
    const std::size_t first = kHeadTokens + tokenizer.Encode(text.substr(0, at)).size() - 1;
    const std::size_t last = first + tokenizer.Encode(fact).size() + 1;
    for (std::size_t block = first / kTokensPerBlock; block <= last / kTokensPerBlock; ++block) {
      for (std::size_t i = 0; i < kTokensPerBlock; ++i) {
        positions.insert(static_cast<std::int32_t>(block * kTokensPerBlock + i));
      }
    }
  }
  return positions;
}

using Wrap = std::unique_ptr<Backend> (*)(Backend& inner);

int RecallWith(Wrap wrap) {
  CpuBackend cpu(kThreads);
  const std::unique_ptr<Backend> faulty = wrap(cpu);
  Asked asked(*faulty, "sparse");
  return Recall(asked, IgnoreHaystack, kBrokenWrong);
}

}  // namespace

TEST_CASE("quality gate: sparse attention finds the facts, defines and adds", "[e2e][quality]") {
  CpuBackend cpu(kThreads);
  Asked asked(cpu, "sparse");
  CHECK(Recall(asked, IgnoreHaystack) >= kRightAtLeast);
  const Json questions = Questions();
  CHECK(asked.Right(questions["definitions"]) >= 5);  // of 8; 60 % is asked of the model
  CHECK(asked.Right(questions["sums"]) >= 7);  // of 8; a model at 95 % misses two in one set of 17
}

// Each has a place, so the questions run side by side, and the rows of both go to the experts of
// both.  Takes six seconds on two cores: `make test-needles`.
TEST_CASE("quality gate: two data ranks find a fact each", "[.data_rank_needles]") {
  ServerConfig config = AskedConfig();
  config.threads = kThreads;
  config.data_parallel_size = 2;
  config.expert_parallel = true;
  config.max_num_seqs = 1;
  Asked asked(App::Start(config));
  const Json haystacks = Questions()["haystacks"];
  REQUIRE(haystacks.size() == 2);
  std::array<v1::ChatResponse, 2> answers;
  const auto ask = [&](std::size_t index) {
    const Json& haystack = haystacks[index];
    const Json& question = haystack["questions"][0];
    return asked.Ask(
        haystack["text"].get<std::string>() + "\n\n" + question["question"].get<std::string>(),
        kCodeTokens, answers[index]);
  };
  auto second = std::async(std::launch::async, [&] { return ask(1); });
  CHECK(ask(0).ok());
  CHECK(second.get().ok());
  for (std::size_t i = 0; i < answers.size(); ++i) {
    CHECK(answers[i].message().content() ==
          haystacks[i]["questions"][0]["answer"].get<std::string>());
  }
}

TEST_CASE("quality gate: dense attention finds the same facts", "[e2e][quality]") {
  CpuBackend cpu(kThreads);
  Asked asked(cpu, "dense");
  CHECK(Recall(asked, IgnoreHaystack) >= kRightAtLeast);
}

TEST_CASE("quality gate: a random selection is seen", "[e2e][quality]") {
  CHECK(RecallWith(testing::WithRandomSelection) <= kBrokenAtMost);
}

TEST_CASE("quality gate: a selection shifted by a block is seen", "[e2e][quality]") {
  CHECK(RecallWith(testing::WithShiftedSelection) <= kBrokenAtMost);
}

TEST_CASE("quality gate: a Hadamard transform of keys alone is seen", "[e2e][quality]") {
  CHECK(RecallWith(testing::WithoutQueryHadamard) <= kBrokenAtMost);
}

TEST_CASE("quality gate: index keys zeroed in the facts' blocks are seen", "[e2e][quality]") {
  const auto tokenizer = Tokenizer::Load(std::string(kModel) + "/tokenizer.json");
  REQUIRE(tokenizer.ok());
  std::set<std::int32_t> zeroed;
  CpuBackend cpu(kThreads);
  const std::unique_ptr<Backend> faulty = testing::WithZeroedIndexKeys(cpu, zeroed);
  Asked asked(*faulty, "sparse");
  const auto zero = [&](const Json& haystack) {
    zeroed = FactBlocks(*tokenizer.value(), haystack);
    CHECK(zeroed.size() < 800);  // most other keys stay
  };
  CHECK(Recall(asked, zero, kBrokenWrong) <= kBrokenAtMost);
}

TEST_CASE("quality gate: the indexer's RoPE in the other layout is seen", "[e2e][quality]") {
  CHECK(RecallWith(testing::WithOtherIndexRope) <= kBrokenAtMost);
}

}  // namespace dsa
