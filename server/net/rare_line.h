// A warning about clients, at most once a second: a flood of clients is no flood of lines.  One
// thread.
#pragma once

#include "common/clock.h"
#include "common/log.h"

#include <cstdint>
#include <string_view>

namespace dsa {

class RareLine final {
 public:
  explicit RareLine(std::string_view message) : message_(message) {}

  // `name` and `value` are a number that helps, such as a limit.
  void Log(std::string_view reason, std::string_view name, std::int64_t value) {
    constexpr MonotonicUs kEveryUs = 1'000'000;
    ++times_;
    const MonotonicUs now_us = clock_.NowUs();
    if (said_us_ == 0 || now_us - said_us_ >= kEveryUs) {
      dsa::Log(LogLevel::kWarning, message_,
               {{"reason", reason}, {"times", times_}, {name, value}});
      said_us_ = now_us;
      times_ = 0;
    }
  }

 private:
  const SteadyClock clock_;
  const std::string_view message_;
  MonotonicUs said_us_ = 0;
  std::int64_t times_ = 0;  // since then
};

}  // namespace dsa
