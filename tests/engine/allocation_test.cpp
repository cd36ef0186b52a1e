// Counts operator new on this thread, and makes it fail.  A binary of its own: it replaces the
// global operators.
#include "server/api/reply.h"
#include "server/engine/engine_loop.h"
#include "tests/engine/testing.h"

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>

namespace {

thread_local std::int64_t allocations = 0;
thread_local std::int64_t allocations_left = -1;  // until one fails; -1: none does

// More bytes than there are.
std::size_t TooMany() {
  static const std::size_t bytes = SIZE_MAX / 4;
  return bytes;
}

void* Allocate(std::size_t bytes) {
  ++allocations;
  if (allocations_left >= 0 && allocations_left-- == 0) {
    return ::operator new (TooMany(), std::align_val_t{64});  // the library's own, which fails
  }
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) {
    std::abort();
  }
  return memory;
}

}  // namespace

void* operator new(std::size_t bytes) {
  return Allocate(bytes);
}
void* operator new[](std::size_t bytes) {
  return Allocate(bytes);
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t /*bytes*/) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t /*bytes*/) noexcept {
  std::free(memory);
}

namespace dsa {
namespace {

constexpr int kWarmUpSteps = 20;
constexpr int kSteps = 1000;

// In which eight replies of 2000 tokens have room, and nothing ends them.
EngineConfig RoomyEngine() {
  EngineConfig config = testing::SmallEngine();
  config.scheduler.context_tokens_max = 4096;
  config.blocks = 4096;
  config.end_ids.clear();
  return config;
}

// Of the engine's thread, once it has warmed up.
std::int64_t AllocationsOfSteadySteps(EngineLoop& engine) {
  for (int step = 0; step < kWarmUpSteps; ++step) {
    engine.RunOnce();
    engine.PumpOnce();
  }
  std::int64_t counted = 0;
  for (int step = 0; step < kSteps; ++step) {
    const std::int64_t before = allocations;
    engine.RunOnce();
    counted += allocations - before;
    engine.PumpOnce();  // another thread's work in a server
  }
  return counted;
}

TEST_CASE("A steady step allocates nothing", "[engine][allocation]") {
  testing::ScriptedExecutor executor;
  testing::ManualClock clock;
  const testing::LetterDecoderFactory decoders;
  EngineLoop engine(RoomyEngine(), {.executor = executor, .clock = clock, .decoders = &decoders});
  std::vector<std::shared_ptr<testing::RecordingSink>> sinks;
  for (int i = 0; i < 8; ++i) {
    auto request = testing::MakeRequest(std::to_string(i), 30 + i, 2000);
    request.stop.stop_strings = {"zzzz", "never this text", "abcdx"};
    request.sampling.top_logprobs = i;
    request.sampling.frequency_penalty = i % 2 == 0 ? 0.0F : 0.5F;
    request.sampling.repetition_penalty = i % 3 == 0 ? 1.0F : 1.1F;
    request.stop.min_tokens = 100 * (i % 4);
    sinks.push_back(std::make_shared<testing::RecordingSink>());
    REQUIRE(engine.Submit(std::move(request), sinks.back()).ok());
  }
  CHECK(AllocationsOfSteadySteps(engine) == 0);
  CHECK(engine.Load().running == 8);
  CHECK(sinks[0]->ids().size() > kSteps);
}

// What a model may write between tool calls: long pieces, half marks, feeds that are held back.
class PieceDecoderFactory final : public TextDecoderFactory {
 public:
  std::unique_ptr<TextDecoder> Make() const override { return std::make_unique<Decoder>(); }
  std::int64_t text_bytes_max() const override { return kBytesMax; }

 private:
  static constexpr std::int64_t kBytesMax = 400;

  class Decoder final : public TextDecoder {
    void Push(TokenId id, std::string& out) override {
      constexpr std::string_view kPieces[] = {"words that take more than a short string's room",
                                              "\n\n",
                                              "<",
                                              "<｜DSML｜inv",
                                              "<｜DSML｜parameter name=\"never a call",
                                              "</think> a stop strin",
                                              "\xff<｜tool▁call▁end｜>\xfe"};
      const auto token = static_cast<std::size_t>(Value(id));
      if (token % 8 == 7) {
        out.append(kBytesMax, 'w');
      } else {
        out += kPieces[token % 8];
      }
    }
    void Finish(std::string& /*out*/) override {}
  };
};

class ReplySink final : public TokenSink {
 public:
  explicit ReplySink(const ReplyFormat& format) : format_(format) {}
  void OnDelta(TokenDelta&& delta) override { tokens += delta.tokens.size(); }
  std::unique_ptr<ContentReader> MakeContentReader() const override {
    return MakeReplyContentReader(format_);
  }
  std::size_t tokens = 0;

 private:
  const ReplyFormat format_;
};

TEST_CASE("A steady step of chats with stop strings allocates nothing", "[engine][allocation]") {
  testing::ScriptedExecutor executor;
  testing::ManualClock clock;
  const PieceDecoderFactory decoders;
  EngineLoop engine(RoomyEngine(), {.executor = executor, .clock = clock, .decoders = &decoders});
  std::vector<std::shared_ptr<ReplySink>> sinks;
  for (int i = 0; i < 8; ++i) {
    auto request = testing::MakeRequest(std::to_string(i), 30 + i, 2000);
    request.stop.stop_strings = {"never this text", " a stop string"};
    const ReplyFormat format = {.chat = i % 2 == 0 ? ChatFormat::kV32 : ChatFormat::kV31,
                                .thinking = i % 4 < 2};
    sinks.push_back(std::make_shared<ReplySink>(format));
    REQUIRE(engine.Submit(std::move(request), sinks.back()).ok());
  }
  CHECK(AllocationsOfSteadySteps(engine) == 0);
  CHECK(engine.Load().running == 8);
  CHECK(sinks[0]->tokens > kSteps);
}

TEST_CASE("An allocation that fails ends that request alone", "[engine][allocation]") {
  testing::ScriptedExecutor executor;
  testing::ManualClock clock;
  const testing::LetterDecoderFactory decoders;
  EngineLoop engine(testing::SmallEngine(),
                    {.executor = executor, .clock = clock, .decoders = &decoders});
  const auto sink = std::make_shared<testing::RecordingSink>();
  bool failed = true;
  std::int64_t failures = 0;
  for (; failed; ++failures) {
    auto request = testing::MakeRequest("a-name-that-needs-memory-of-its-own", 30, 5);
    request.stop.stop_strings = {"zzzz", "never this text"};
    allocations_left = failures;
    const Status status = engine.Submit(std::move(request), sink);
    failed = allocations_left < 0;
    allocations_left = -1;
    CAPTURE(failures);
    REQUIRE(status.ok() == !failed);
    if (failed) {
      CHECK(status.error().code == ErrorCode::kResourceExhausted);
      CHECK(engine.Load().waiting == 0);
    }
  }
  CHECK(failures > 8);
  while (sink->ends() == 0) {
    engine.RunOnce();
    engine.PumpOnce();
  }
  CHECK(sink->ids().size() == 5);
  CHECK(engine.Load().requests_finished == 1);
}

TEST_CASE("The counter counts", "[engine][allocation]") {
  const std::int64_t before = allocations;
  const auto number = std::make_unique<int>(1);
  CHECK(allocations - before >= *number);
}

}  // namespace
}  // namespace dsa
