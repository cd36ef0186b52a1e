#include "server/warm_up.h"

#include <future>
#include <memory>
#include <utility>

namespace dsa {
namespace {

constexpr std::int64_t kGeneratedTokens = 2;  // the second is a decode step

class WarmUpSink final : public TokenSink {
 public:
  void OnDelta(TokenDelta&& delta) override {
    if (!delta.finish) {
      return;
    }
    if (*delta.finish == FinishReason::kLength) {
      done_.set_value({});
    } else {
      done_.set_value(delta.error.value_or(Error{ErrorCode::kInternal, "warm-up: did not finish"}));
    }
  }
  Status Wait() { return done_.get_future().get(); }

 private:
  std::promise<Status> done_;
};

}  // namespace

Status RunWarmUp(Engine& engine, const Clock& clock, const WarmUpOptions& options) {
  Request request;
  request.id = engine.NextRequestId();
  request.external_id = "warm-up";
  request.cache_salt = "warm-up";  // no client hits what it leaves in the cache
  request.billed = false;
  request.arrival_us = clock.NowUs();
  request.sampling.temperature = 0.0F;
  request.stop.max_tokens = kGeneratedTokens;
  request.stop.ignore_end = true;
  for (std::int64_t i = 0; i < options.prompt_tokens; ++i) {
    request.prompt.push_back(static_cast<TokenId>((i * 7 + 1) % options.vocabulary));
  }
  const auto sink = std::make_shared<WarmUpSink>();
  DSA_RETURN_IF_ERROR(engine.Submit(std::move(request), sink));
  return sink->Wait();
}

}  // namespace dsa
