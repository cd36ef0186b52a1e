// Says on standard error, at once, how a request ended: for a process that ends before it could be
// asked.
#pragma once

#include "server/engine/token_sink.h"

#include <cstdio>
#include <future>

namespace dsa::testing {

class EndSink final : public TokenSink {
 public:
  void OnDelta(TokenDelta&& delta) override {
    if (delta.finish) {
      const bool unavailable = delta.error && delta.error->code == ErrorCode::kUnavailable;
      std::fprintf(stderr, unavailable ? "unavailable\n" : "answered\n");
      ended_.set_value();
    }
  }
  void Wait() { ended_.get_future().wait(); }

 private:
  std::promise<void> ended_;
};

}  // namespace dsa::testing
