// An executor that gives scripted tokens, a client that records, and a clock that stands still:
// shared by the engine's tests.
#pragma once

#include "common/clock.h"
#include "kernels/batch_view.h"
#include "server/engine/engine_loop.h"

#include <algorithm>
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
  void Launch(const ForwardBatch& batch) override {
    if (on_execute) {
      on_execute(batch);
    }
    std::swap(outputs_, before_);
    const StepOutputs& outputs = outputs_.Reset(batch.shape, experts);
    std::copy(expert_pairs.begin(), expert_pairs.end(), outputs.expert_pairs.data);
    for (std::int64_t i = 0; i < outputs.tokens.size; ++i) {
      const SamplingRow& sampling = batch.sampling[i];
      outputs.tokens.data[i] = static_cast<std::int32_t>(sampling.position % 50);
      outputs.logprobs.data[i] = -0.5F;
      for (std::int32_t k = 0; k < sampling.top_logprobs; ++k) {
        outputs.top_ids.Row(i)[k] = k;
      }
    }
    if (faulty_row >= 0) {
      outputs.row_faults.data[faulty_row] = kRowFaultIndexerNan;
    }
    if (faulty_sample >= 0) {
      outputs.sample_faults.data[faulty_sample] = sample_fault;
    }
  }
  const StepResult& Collect() override {
    if (on_collect) {
      on_collect();
    }
    return outputs_.result();
  }
  bool RunsAhead() const override { return runs_ahead; }

  std::function<void(const ForwardBatch&)> on_execute;  // at Launch
  std::function<void()> on_collect;
  bool runs_ahead = false;
  std::int64_t faulty_row = -1;
  std::int64_t faulty_sample = -1;  // and what it has
  std::int32_t sample_fault = 0;
  ExpertExtents experts{};
  std::vector<std::int32_t> expert_pairs;  // of every step

 private:
  HostStepOutputs outputs_;
  HostStepOutputs before_;  // of the step before: still read while this one runs
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
