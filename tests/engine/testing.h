// An executor that gives scripted tokens, a client that records, and a clock that stands still:
// shared by the engine's tests.
#pragma once

#include "common/clock.h"
#include "kernels/batch_view.h"
#include "server/engine/engine_loop.h"

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace dsa::testing {

class ManualClock final : public Clock {
 public:
  MonotonicUs NowUs() const override { return now_us; }
  MonotonicUs now_us = 1000;
};

// The token that follows position p is (p + 1) % 50; nothing is allocated once its arrays have
// grown.
class ScriptedExecutor final : public StepExecutor {
 public:
  const StepResult& Execute(const ForwardBatch& batch) override {
    if (on_execute) {
      on_execute(batch);
    }
    const std::size_t samples = batch.sample_rows.size();
    tokens_.resize(samples);
    logprobs_.assign(samples, -0.5F);
    top_ids_.assign(samples * kTopLogprobsMax, -1);
    top_logprobs_.assign(samples * kTopLogprobsMax, 0.0F);
    row_faults_.assign(batch.token_ids.size(), 0);
    sample_faults_.assign(samples, 0);
    for (std::size_t i = 0; i < samples; ++i) {
      tokens_[i] = static_cast<std::int32_t>(batch.sampling[i].position % 50);
      for (std::int32_t k = 0; k < batch.sampling[i].top_logprobs; ++k) {
        top_ids_[i * kTopLogprobsMax + k] = k;
      }
    }
    if (faulty_row >= 0) {
      row_faults_[faulty_row] = kRowFaultIndexerNan;
    }
    result_ = {.tokens = tokens_,
               .logprobs = logprobs_,
               .top_ids = top_ids_,
               .top_logprobs = top_logprobs_,
               .row_faults = row_faults_,
               .sample_faults = sample_faults_,
               .logits = {}};
    return result_;
  }

  std::function<void(const ForwardBatch&)> on_execute;
  std::int64_t faulty_row = -1;

 private:
  std::vector<std::int32_t> tokens_;
  std::vector<float> logprobs_;
  std::vector<std::int32_t> top_ids_;
  std::vector<float> top_logprobs_;
  std::vector<std::int32_t> row_faults_;
  std::vector<std::int32_t> sample_faults_;
  StepResult result_{};
};

// What a client saw.  Thread-safe.
class RecordingSink final : public TokenSink {
 public:
  void OnDelta(TokenDelta&& delta) override {
    const std::lock_guard lock(mutex_);
    for (const GeneratedToken& token : delta.tokens) {
      ids_.push_back(Value(token.id));
    }
    text_ += delta.text;
    usage_ = delta.usage;
    error_ = delta.error;
    ends_ += delta.finish.has_value() ? 1 : 0;
    if (delta.finish.has_value()) {
      finish_ = delta.finish;
    }
  }

  std::vector<std::int32_t> ids() const { return Locked(ids_); }
  std::string text() const { return Locked(text_); }
  std::optional<FinishReason> finish() const { return Locked(finish_); }
  std::optional<Error> error() const { return Locked(error_); }
  Usage usage() const { return Locked(usage_); }
  int ends() const { return Locked(ends_); }

 private:
  template <typename T>
  T Locked(const T& value) const {
    const std::lock_guard lock(mutex_);
    return value;
  }

  mutable std::mutex mutex_;
  std::vector<std::int32_t> ids_;
  std::string text_;
  Usage usage_;
  std::optional<Error> error_;
  std::optional<FinishReason> finish_;
  int ends_ = 0;
};

// Token i is the letter 'a' + i % 26.
class LetterDecoderFactory final : public TextDecoderFactory {
 public:
  std::unique_ptr<TextDecoder> Make() const override { return std::make_unique<Decoder>(); }
  std::int64_t text_bytes_max() const override { return 1; }

 private:
  class Decoder final : public TextDecoder {
    void Push(TokenId id, std::string& out) override {
      out += static_cast<char>('a' + Value(id) % 26);
    }
    void Finish(std::string& /*out*/) override {}
  };
};

inline EngineConfig SmallEngine() {
  return {.scheduler = {.step_tokens_max = 64,
                        .sequences_max = 8,
                        .waiting_max = 16,
                        .context_tokens_max = 256,
                        .index_topk = 16},
          .blocks = 64,
          .tokens_per_block = 8,
          .vocabulary = 50,
          .end_ids = {TokenId{49}},
          .cache_identity = "test",
          .hash_bits = 256};
}

// Tokens 0 .. tokens - 1.
inline Request MakeRequest(std::string external_id, std::int32_t tokens, std::int64_t max_tokens) {
  Request request;
  request.external_id = std::move(external_id);
  for (std::int32_t i = 0; i < tokens; ++i) {
    request.prompt.push_back(TokenId{i % 50});
  }
  request.stop.max_tokens = max_tokens;
  return request;
}

}  // namespace dsa::testing
