#include "server/engine/outbox.h"

#include <random>
#include <string>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

std::string TextOf(int index) {
  return std::string(index % 7, static_cast<char>('a' + index % 26));
}

std::vector<TokenLogprob> LogprobsOf(int index) {
  std::vector<TokenLogprob> values;
  for (int i = 0; i < index % 4; ++i) {
    values.push_back({.id = TokenId{index + i}, .logprob = static_cast<float>(-index)});
  }
  return values;
}

bool CheckNext(Outbox& outbox, int index) {
  OutboxEvent event;
  std::string text;
  std::vector<TokenLogprob> top;
  if (!outbox.Pop(event, text, top)) {
    return false;
  }
  REQUIRE(Value(event.token) == index);
  REQUIRE(text == TextOf(index));
  REQUIRE(top.size() == LogprobsOf(index).size());
  for (std::size_t i = 0; i < top.size(); ++i) {
    REQUIRE(top[i].id == LogprobsOf(index)[i].id);
  }
  return true;
}

bool TryPush(Outbox& outbox, int index) {
  const std::string text = TextOf(index);
  const auto top = LogprobsOf(index);
  if (!outbox.TryReserve({.events = 1,
                          .text_bytes = static_cast<std::int64_t>(text.size()),
                          .top_logprobs = static_cast<std::int64_t>(top.size())})) {
    return false;
  }
  OutboxEvent& event = outbox.Next();
  event.has_token = true;
  event.token = TokenId{index};
  outbox.Push(text, top);
  return true;
}

TEST_CASE("Events come out whole and in order, however the rings wrap", "[outbox]") {
  Outbox outbox({.events = 5, .text_bytes = 17, .top_logprobs = 7});
  std::mt19937 random(3);
  int pushed = 0;
  int popped = 0;
  while (popped < 5000) {
    if (random() % 2 == 0) {
      pushed += TryPush(outbox, pushed) ? 1 : 0;
    } else {
      popped += CheckNext(outbox, popped) ? 1 : 0;
    }
    REQUIRE(pushed - popped <= 8);  // the next power of two
  }
}

TEST_CASE("One thread may push while another pops", "[outbox][threads]") {
  constexpr int kEvents = 20000;
  Outbox outbox({.events = 8, .text_bytes = 32, .top_logprobs = 8});
  std::thread producer([&] {
    for (int index = 0; index < kEvents;) {
      if (TryPush(outbox, index)) {
        ++index;
      } else {
        std::this_thread::yield();
      }
    }
  });
  for (int index = 0; index < kEvents;) {
    if (CheckNext(outbox, index)) {
      ++index;
    } else {
      std::this_thread::yield();
    }
  }
  producer.join();
}

}  // namespace
}  // namespace dsa
