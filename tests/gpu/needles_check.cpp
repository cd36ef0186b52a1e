// The gate: facts in long texts, found through the whole server on the GPU.
#include "common/prng.h"
#include "proto/chat.grpc.pb.h"
#include "tests/gpu/gpu_checks.h"

#include <array>
#include <set>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa {
namespace {

constexpr int kNeedles = 40;
constexpr int kRightAtLeast = 39;
constexpr int kFactsPerText = 4;
constexpr std::int64_t kCodeTokens = 4;  // a right answer is the code and the end

constexpr std::array kAdjectives = {"small", "dry",  "white",  "plain",
                                    "lost",  "full", "simple", "red"};
constexpr std::array kNouns = {"drawer", "needle", "tiger", "forest", "lantern"};

struct Fact {
  std::string thing;
  std::string code;
};

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
    parts.insert(parts.begin() + at,
                 fmt::format(" The code of the {} is {}.", facts[i].thing, facts[i].code));
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
  INFO(status.error_message());
  REQUIRE(status.ok());
  tokens = response.usage().prompt_tokens();
  return response.message().content();
}

// Facts found, of kNeedles, each asked for behind a text of `length` tokens.
int Recall(v1::ChatService::Stub& stub, std::size_t length, std::int64_t& prompt_tokens) {
  int right = 0;
  for (int text = 0; text < kNeedles / kFactsPerText; ++text) {
    const std::uint64_t seed = length * 100 + static_cast<std::uint64_t>(text);
    const std::vector<Fact> facts = DrawFacts(seed);
    const std::string haystack = Haystack(facts, length, seed);
    for (const Fact& fact : facts) {
      const std::string question =
          fmt::format("{}\n\nWhat is the code of the {}?", haystack, fact.thing);
      right += Answer(stub, question, prompt_tokens) == fact.code ? 1 : 0;
    }
  }
  return right;
}

}  // namespace

TEST_CASE("facts in texts of 1K to 16K tokens are found through the server on CUDA", "[needles]") {
  const testing::GpuServer server("cuda", 18'000, 8);
  const auto stub = v1::ChatService::NewStub(server.channel);
  for (const std::size_t length : {1000U, 4000U, 8000U, 15'000U}) {
    std::int64_t prompt_tokens = 0;
    const int right = Recall(*stub, length, prompt_tokens);
    fmt::print("needles  tokens={:6}  {} of {}\n", prompt_tokens, right, kNeedles);
    if (right < kRightAtLeast) {  // is it the model, with this text, or the device?
      const testing::GpuServer on_cpu("cpu", 18'000, 8);
      const auto cpu = v1::ChatService::NewStub(on_cpu.channel);
      const int right_on_cpu = Recall(*cpu, length, prompt_tokens);
      fmt::print("needles  tokens={:6}  {} of {} on the CPU\n", prompt_tokens, right_on_cpu,
                 kNeedles);
      CHECK(right >= right_on_cpu - 1);
    }
  }
}

}  // namespace dsa
