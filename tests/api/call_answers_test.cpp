// What a call's answers hold, and in which order it is taken.
#include "server/api/call_answers.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

constexpr std::array<std::int64_t, 2> kPromptTokens = {3, 5};

struct Held {
  explicit Held(std::int64_t answers) { all.Begin(kPromptTokens, answers, ReportLogprobs::kYes); }
  ~Held() { all.Drop(); }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;

  enum class Says : std::uint8_t { kText, kPromptToo };
  void Say(std::int64_t index, const std::string& text, Says says = Says::kText) {
    ReplyPart part;
    if (says == Says::kPromptToo) {
      part.prompt.push_back({.id = TokenId{1}, .top_logprobs = {}});
    }
    part.index = index;
    part.content = text;
    part.tokens.push_back({.id = TokenId{1}, .top_logprobs = {{}, {}}});
    part.usage.completion_tokens = 1;
    all.Note(part);
    all.Hold(std::move(part));
  }
  void End(std::int64_t index) {
    ReplyPart part;
    part.index = index;
    part.finish = ReplyFinish::kStop;
    all.Note(part);
    all.Hold(std::move(part));
  }
  std::vector<std::int64_t> TakeOrder() {
    std::vector<std::int64_t> order;
    while (all.waiting() > 0) {
      order.push_back(all.Take().index);
    }
    return order;
  }

  std::atomic<std::int64_t> bytes{0};
  CallAnswers all{bytes};
};

using Order = std::vector<std::int64_t>;

TEST_CASE("answers take turns, but what is said of a prompt comes before its other answers",
          "[api][answers]") {
  using Says = Held::Says;
  Held held(3);
  held.Say(1, "x");
  held.Say(0, "y");
  held.Say(2, "x");
  CHECK(held.all.Take().index == 0);
  CHECK(held.all.Take().index == 1);
  held.Say(0, "y");
  CHECK(held.TakeOrder() == Order{2, 0});
  // The turn of the second prompt's other answers has come when its first says what it is.
  CHECK(held.all.waiting() == 0);
  held.Say(1, "x");
  CHECK(held.TakeOrder() == Order{1});
  held.Say(4, "x");
  held.Say(5, "x");
  CHECK(held.all.Take().index == 4);
  held.Say(3, "y", Says::kPromptToo);
  held.Say(4, "x");
  CHECK(held.TakeOrder() == Order{3, 5, 4});
  // After that it waits for its turn as all do.
  for (std::int64_t i = 0; i < 6; ++i) {
    held.Say(i, "z");
  }
  CHECK(held.TakeOrder() == Order{5, 0, 1, 2, 3, 4});
}

TEST_CASE("what answers hold is counted until it is taken or dropped", "[api][answers]") {
  Held held(1);
  held.Say(0, "abc");
  held.Say(0, "d");
  held.Say(1, "ef");
  const std::int64_t all = held.all.held_bytes();
  CHECK(all > 6);
  CHECK(held.bytes == all);
  CHECK(held.all.held_logprobs() == 9);
  CHECK(held.all.waiting() == 2);
  CHECK(held.all.Take().content == "abcd");
  CHECK(held.all.waiting() == 1);
  CHECK(held.all.held_logprobs() == 3);
  CHECK(held.bytes == held.all.held_bytes());
  CHECK(held.all.held_bytes() < all);
  CHECK(held.all.Take().content == "ef");
  CHECK(held.all.held_bytes() == 0);
  CHECK(held.bytes == 0);
  held.Say(1, "g");
  held.all.Drop();
  CHECK(held.all.waiting() == 0);
  CHECK(held.all.held_bytes() == 0);
  CHECK(held.all.held_logprobs() == 0);
  CHECK(held.bytes == 0);
}

TEST_CASE("a call's usage has each prompt once and all its answers", "[api][answers]") {
  Held held(2);
  CHECK(held.all.usage().prompt_tokens == 8);  // before anything was said
  CHECK_FALSE(held.all.finished());
  const auto end = [&](std::int64_t index, std::int64_t prompt_tokens, std::int64_t hits) {
    ReplyPart part;
    part.index = index;
    part.finish = ReplyFinish::kStop;
    part.reasoning_tokens = 2;
    part.usage = {.prompt_tokens = prompt_tokens,
                  .completion_tokens = 10,
                  .cache_hit_tokens = hits,
                  .preemptions = 1,
                  .queue_us = 100 * (index + 1),
                  .prefill_us = 10,
                  .decode_us = 7 * index,
                  .cost = {.prefill_us = 1.0, .decode_us = 2.0}};
    held.all.Note(part);
    held.all.Hold(std::move(part));
  };
  end(0, 3, 1);
  end(1, 3, 3);
  end(3, 5, 5);
  CHECK_FALSE(held.all.finished());
  end(2, 5, 0);
  CHECK(held.all.finished());
  const ReplyPart all = held.all.TakeAll();
  CHECK(all.index == 0);
  REQUIRE(all.others.size() == 3);
  CHECK(all.others[1].index == 2);
  CHECK(all.reasoning_tokens == 8);
  const Usage& usage = all.usage;
  CHECK(usage.prompt_tokens == 8);
  CHECK(usage.cache_hit_tokens == 1);
  CHECK(usage.completion_tokens == 40);
  CHECK(usage.preemptions == 4);
  CHECK(usage.queue_us == 300);
  CHECK(usage.prefill_us == 10);
  CHECK(usage.decode_us == 21);
  CHECK(usage.cost.prefill_us == 4.0);
  CHECK(usage.cost.decode_us == 8.0);
}

}  // namespace
}  // namespace dsa
