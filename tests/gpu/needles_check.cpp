// The gate: facts in long texts, found through the whole server on the GPU, and only if the indexer
// works there.
#include "common/check.h"
#include "common/prng.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/kv_layout.h"
#include "proto/chat.grpc.pb.h"
#include "tests/gpu/gpu_checks.h"
#include "tests/model/indexer_faults.h"

#include <array>
#include <atomic>
#include <functional>
#include <future>
#include <set>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa {
namespace {

constexpr int kNeedles = 40;
constexpr int kRightAtLeast = 39;
constexpr int kBrokenAtMost = 20;
constexpr int kFactsPerText = 4;
constexpr std::int64_t kCodeTokens = 4;  // a right answer is the code and the end

constexpr std::array kAdjectives = {"small", "dry",  "white",  "plain",
                                    "lost",  "full", "simple", "red"};
constexpr std::array kNouns = {"drawer", "needle", "tiger", "forest", "lantern"};

struct Fact {
  std::string thing;
  std::string code;
};

std::string Said(const Fact& fact) {
  return fmt::format(" The code of the {} is {}.", fact.thing, fact.code);
}

std::vector<Fact> DrawFacts(std::uint64_t seed) {
  std::vector<Fact> facts;
  std::set<std::string> things;
  for (std::uint64_t draw = 0; facts.size() < kFactsPerText; ++draw) {
    const std::uint64_t bits = CounterBits(seed, draw);
    const std::string thing = fmt::format("{} {}", kAdjectives[bits % kAdjectives.size()],
                                          kNouns[(bits >> 16) % kNouns.size()]);
    if (things.insert(thing).second) {
      facts.push_back({.thing = thing, .code = std::to_string(100 + (bits >> 32) % 900)});
    }
  }
  return facts;
}

// Sentences of about `tokens` tokens with the facts among them at random depths.
std::string Haystack(const std::vector<Fact>& facts, std::size_t tokens, std::uint64_t seed) {
  const std::vector<std::string>& sentences = testing::Sentences();
  std::vector<std::string> parts;
  std::size_t length = 0;
  for (std::size_t i = SplitMix64(seed) % sentences.size(); length < tokens; ++i) {
    parts.push_back(sentences[i % sentences.size()]);
    length += testing::GpuTokenizer().Encode(parts.back()).size();
  }
  for (std::size_t i = 0; i < facts.size(); ++i) {
    const auto at = static_cast<std::ptrdiff_t>(CounterBits(seed, 1000 + i) % parts.size());
    parts.insert(parts.begin() + at, Said(facts[i]));
  }
  std::string text;
  for (const std::string& part : parts) {
    text += part;
  }
  return text;
}

std::string Answer(v1::ChatService::Stub& stub, const std::string& text, std::int64_t& tokens) {
  v1::ChatRequest request;
  v1::Message& message = *request.add_messages();
  message.set_role(v1::ROLE_USER);
  message.set_content(text);
  request.mutable_sampling()->set_temperature(0.0F);
  request.mutable_stop()->set_max_tokens(kCodeTokens);
  grpc::ClientContext rpc;
  v1::ChatResponse response;
  const grpc::Status status = stub.Chat(&rpc, request, &response);
  DSA_CHECK(status.ok(), "{}", status.error_message());  // Catch2's are of one thread
  tokens = response.usage().prompt_tokens();
  return response.message().content();
}

// Facts found, of kNeedles, each asked for behind a text of `length` tokens.  `before` is called
// with each text and its facts before its first question.
using Before = std::function<void(const std::string& text, const std::vector<Fact>& facts)>;
int Recall(const testing::GpuServer& server, std::size_t length, const Before& before) {
  const auto stub = v1::ChatService::NewStub(server.channel);
  std::atomic<int> right = 0;
  std::atomic<std::int64_t> prompt_tokens = 0;
  for (int text = 0; text < kNeedles / kFactsPerText; ++text) {
    const std::uint64_t seed = length * 100 + static_cast<std::uint64_t>(text);
    const std::vector<Fact> facts = DrawFacts(seed);
    const std::string haystack = Haystack(facts, length, seed);
    before(haystack, facts);
    std::vector<std::future<void>> questions;  // all at once: each data rank has some
    for (const Fact& fact : facts) {
      questions.push_back(std::async(std::launch::async, [&] {
        const std::string question =
            fmt::format("{}\n\nWhat is the code of the {}?", haystack, fact.thing);
        std::int64_t tokens = 0;
        right += Answer(*stub, question, tokens) == fact.code ? 1 : 0;
        prompt_tokens = tokens;
      }));
    }
    for (std::future<void>& question : questions) {
      question.get();
    }
  }
  fmt::print("tokens={:6}  {} of {}\n", prompt_tokens.load(), right.load(), kNeedles);
  return right;
}

struct Layout {
  std::int64_t ranks;
  std::int64_t data_ranks;
};

void DoNothing(const std::string& /*text*/, const std::vector<Fact>& /*facts*/) {}

// Positions of all blocks that hold a part of one of the facts.
std::set<std::int32_t> FactBlocks(const std::string& text, const std::vector<Fact>& facts) {
  constexpr std::size_t kHeadTokens = 2;  // begin of sentence, user
  const Tokenizer& tokenizer = testing::GpuTokenizer();
  std::set<std::int32_t> positions;
  for (const Fact& fact : facts) {
    const std::size_t at = text.find(Said(fact));
    REQUIRE(at != std::string::npos);
    const std::size_t first = kHeadTokens + tokenizer.Encode(text.substr(0, at)).size() - 1;
    const std::size_t last = first + tokenizer.Encode(Said(fact)).size() + 1;
    for (std::size_t position = first / kTokensPerBlock * kTokensPerBlock;
         position < (last / kTokensPerBlock + 1) * kTokensPerBlock; ++position) {
      positions.insert(static_cast<std::int32_t>(position));
    }
  }
  return positions;
}

}  // namespace

TEST_CASE("facts in texts of 1K to 16K tokens are found through the server on CUDA", "[needles]") {
  const std::unique_ptr<Backend> cuda = testing::MustMake("cuda");
  const testing::GpuServer server(*cuda, 18'000, 8);
  for (const std::size_t length : {1000U, 4000U, 8000U, 15'900U}) {
    fmt::print("needles  ");
    CHECK(Recall(server, length, DoNothing) >= kRightAtLeast);
  }
}

// On two GPUs, and on four where there are so many; by name alone.
TEST_CASE("facts are found where GPUs share the model", "[.needles_ranks]") {
  const auto [ranks, data_ranks] =
      GENERATE(Layout{2, 1}, Layout{1, 2}, Layout{4, 1}, Layout{1, 4}, Layout{2, 2});
  if (!CudaBackend::Make(static_cast<int>(ranks * data_ranks) - 1).ok()) {
    fmt::print("needles, {} x {} ranks: not so many devices\n", ranks, data_ranks);
    return;
  }
  ServerConfig config;
  config.device = "cuda";
  config.max_model_len = 18'000;
  config.max_num_seqs = 8;
  config.expert_parallel = data_ranks > 1;
  config.tensor_parallel_size = ranks;
  config.data_parallel_size = data_ranks;
  const testing::GpuServer server(config);
  for (const std::size_t length : {1000U, 4000U, 8000U, 15'900U}) {
    fmt::print("needles, {} data ranks of {} tensor ranks  ", data_ranks, ranks);
    CHECK(Recall(server, length, DoNothing) >= kRightAtLeast);
  }
  if (data_ranks > 1) {
    const EngineLoad load = server.app->engine().Load();
    CHECK(load.ranks.size() == static_cast<std::size_t>(data_ranks));
    for (const RankLoad& rank : load.ranks) {
      CHECK(rank.rows > 1000);
    }
  }
}

TEST_CASE("a fault of the indexer on CUDA loses the facts", "[needles]") {
  constexpr std::size_t kLength = 4000;
  struct Planted {
    const char* name;
    std::unique_ptr<Backend> (*wrap)(Backend& inner);
  };
  for (const Planted& fault : {Planted{"a random selection", testing::WithRandomSelection},
                               Planted{"a selection one block off", testing::WithShiftedSelection},
                               Planted{"no Hadamard of queries", testing::WithoutQueryHadamard},
                               Planted{"the other RoPE", testing::WithOtherIndexRope}}) {
    const std::unique_ptr<Backend> cuda = testing::MustMake("cuda");
    const std::unique_ptr<Backend> faulty = fault.wrap(*cuda);
    const testing::GpuServer server(*faulty, 6'000, 8);
    fmt::print("needles  {}: ", fault.name);
    CHECK(Recall(server, kLength, DoNothing) <= kBrokenAtMost);
  }
  const std::unique_ptr<Backend> cuda = testing::MustMake("cuda");
  std::set<std::int32_t> zeroed;
  const std::unique_ptr<Backend> faulty = testing::WithZeroedIndexKeys(*cuda, zeroed);
  const testing::GpuServer server(*faulty, 6'000, 8);
  fmt::print("needles  zero keys in the facts' blocks: ");
  const auto zero = [&](const std::string& text, const std::vector<Fact>& facts) {
    zeroed = FactBlocks(text, facts);
  };
  CHECK(Recall(server, kLength, zero) <= kBrokenAtMost);
}

}  // namespace dsa
