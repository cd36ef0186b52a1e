// Whether a thread that runs handlers gets on: it is asked, and answers when it comes to it.
#pragma once

#include "server/http/transport.h"

#include <atomic>
#include <cstdint>

namespace dsa {

class LoopProbe final {
 public:
  // How often the thread has answered, and whether it has yet to; asks again where it has answered.
  // `post` hands a handler to the thread, before whose end the probe lives.  One thread at a time.
  template <typename Post>
  LoopAnswers Ask(const Post& post) {
    const std::int64_t answered = answered_.load(std::memory_order_relaxed);
    const bool pending = answered != asked_;
    if (!pending) {
      ++asked_;
      post([this] { answered_.fetch_add(1, std::memory_order_relaxed); });
    }
    return {.count = answered, .pending = pending};
  }

 private:
  std::int64_t asked_ = 0;
  std::atomic<std::int64_t> answered_{0};  // a count that orders nothing
};

}  // namespace dsa
