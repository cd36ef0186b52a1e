// Where a request's tokens go.
#pragma once

#include "common/ids.h"
#include "common/status.h"
#include "scheduler/request.h"
#include "server/engine/busy_time.h"
#include "server/engine/text_decoder.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace dsa {

struct TokenLogprob {
  TokenId id{};
  float logprob = 0.0F;
};

struct GeneratedToken {
  TokenId id{};
  float logprob = 0.0F;         // where the request asked for log-probabilities
  std::int32_t text_bytes = 0;  // of the delta's text, behind those of the tokens before
  std::vector<TokenLogprob> top_logprobs;
};

// Counted by the engine; times from its clock.
struct Usage {
  std::int64_t prompt_tokens = 0;
  std::int64_t completion_tokens = 0;  // delivered, the end id included
  std::int64_t cache_hit_tokens = 0;   // of the prompt; hit + miss == prompt
  std::int64_t preemptions = 0;        // recomputed tokens are never billed nor counted as hits
  std::int64_t queue_us = 0;           // arrival to first scheduled, or to the end
  std::int64_t prefill_us = 0;         // first scheduled to first token
  std::int64_t decode_us = 0;          // first token to last
  RequestCost cost{};                  // its share of the steps that it was in
};

struct TokenDelta {
  // Where the request asks for their log-probabilities: the prompt's tokens but the first.  With
  // the first generated token, or with the end of a request that wants none.
  std::vector<GeneratedToken> prompt{};
  std::vector<GeneratedToken> tokens{};  // end and stop ids included
  std::string text{};                    // what became certain; whole characters
  std::optional<FinishReason> finish{};  // set on the last delta, once
  std::optional<Error> error{};          // with kError, kDeadline: what the client is told
  Usage usage{};                         // final on the last delta, so far before it
  // How many bytes of content, since the beginning, may be shown so far, where a ContentReader
  // decides: what lies behind may belong to a stop string, and does where this is the last delta.
  std::optional<std::int64_t> content_bytes_max{};
};

// Receives the deltas of one request.  OnDelta is called from the stream pump's thread, in order;
// cancelled may be set by any thread and is polled by the engine every step.
class TokenSink {
 public:
  TokenSink() : flag_(&cancelled_) {}
  TokenSink(const TokenSink&) = delete;
  TokenSink& operator=(const TokenSink&) = delete;
  virtual ~TokenSink() = default;

  virtual void OnDelta(TokenDelta&& delta) = 0;

  // How this reply's ids become text, and which of it stop strings act on; null: as the engine's
  // own decoder has it, and on all of it.  Called once each, by the thread that submits.
  virtual std::unique_ptr<TextDecoder> MakeDecoder() const { return nullptr; }
  virtual std::unique_ptr<ContentReader> MakeContentReader() const { return nullptr; }

  void Cancel() { flag_->store(true, std::memory_order_relaxed); }
  bool cancelled() const { return flag_->load(std::memory_order_relaxed); }

 protected:
  // One that is cancelled together with `other`, which outlives it.
  explicit TokenSink(TokenSink* other) : flag_(other->flag_) {}

 private:
  std::atomic<bool> cancelled_{false};  // a hint that is polled: nothing is ordered by it
  std::atomic<bool>* const flag_;       // this one's or another's
};

}  // namespace dsa
