// Deltas on their way from the engine to the stream pump: one producer, one consumer, bounded,
// lock-free and preallocated, so that a step neither waits for a client nor allocates.
//
// Three rings move together: events, the bytes of their texts, and their likely tokens.  The engine
// asks for the room of a whole step before it starts one.
#pragma once

#include "common/cache_line.h"
#include "common/ids.h"
#include "server/engine/live_request.h"
#include "server/engine/token_sink.h"

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

// One delta without its variable parts.
struct OutboxEvent {
  LiveRequest* request = nullptr;  // owned by the consumer where `finish` is set
  std::optional<FinishReason> finish{};
  ErrorCode error_code{};
  const char* error_message = nullptr;  // a constant; null: no error
  bool has_token = false;
  bool has_prompt = false;  // LiveRequest::prompt goes with it
  TokenId token{};
  float logprob = 0.0F;
  std::int32_t text_bytes = 0;
  std::int32_t top_logprobs = 0;
  std::int64_t content_bytes_max = -1;  // as TokenDelta's; -1: none
  Usage usage{};

  // All but the usage, field by field: assigning an empty event becomes a string instruction,
  // which takes longer to start than this takes.
  void Clear() {
    request = nullptr;
    finish.reset();
    error_code = {};
    error_message = nullptr;
    has_token = false;
    has_prompt = false;
    token = {};
    logprob = 0.0F;
    text_bytes = 0;
    top_logprobs = 0;
    content_bytes_max = -1;
  }
};

class Outbox final {
 public:
  struct Capacity {
    std::int64_t events;
    std::int64_t text_bytes;
    std::int64_t top_logprobs;
  };
  explicit Outbox(const Capacity& capacity);  // at least: each ring is a power of two
  Outbox(const Outbox&) = delete;
  Outbox& operator=(const Outbox&) = delete;

  // Producer.
  // True where this much may be pushed, in any number of events, before it is called again.
  bool TryReserve(const Capacity& needed);
  // The entry that the next Push hands over, cleared but for its usage: filled in place, since a
  // copy of fields that were written a moment ago waits for them.
  OutboxEvent& Next();
  // Hands it over; a Next comes first.  The event's counts are set from the views.
  void Push(std::string_view text, std::span<const TokenLogprob> top_logprobs);

  // Consumer.  The next event with its text and likely tokens, which are appended; false where
  // there is none.
  bool Pop(OutboxEvent& event, std::string& text, std::vector<TokenLogprob>& top_logprobs);

  // Any thread: some have not been popped.  A hint.
  bool has_events() const {
    return events_popped_.load(std::memory_order_relaxed) !=
           events_pushed_.load(std::memory_order_relaxed);
  }

 private:
  struct Position {
    std::int64_t events = 0;
    std::int64_t text_bytes = 0;
    std::int64_t top_logprobs = 0;
  };

  std::vector<OutboxEvent> events_;
  std::vector<char> text_;
  std::vector<TokenLogprob> top_logprobs_;

  // Each side counts what it has done since the start.  A count is written by one side with
  // release, after it has touched the entries, and read by the other with acquire, before it does.
  Position pushed_;              // producer
  Position limit_;               // producer: how far the last TryReserve lets it go
  OutboxEvent* next_ = nullptr;  // producer: given out by Next, null behind Push
  Position popped_;              // consumer
  alignas(kCacheLineBytes) std::atomic<std::int64_t> events_pushed_{0};
  alignas(kCacheLineBytes) std::atomic<std::int64_t> events_popped_{0};
  std::atomic<std::int64_t> text_bytes_popped_{0};
  std::atomic<std::int64_t> top_logprobs_popped_{0};
};

}  // namespace dsa
