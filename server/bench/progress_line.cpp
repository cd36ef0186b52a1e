#include "server/bench/progress_line.h"

#include <cstdio>

#include <fmt/core.h>
#include <unistd.h>

namespace dsa::bench {
namespace {

constexpr auto kTerminalInterval = std::chrono::milliseconds(200);
constexpr auto kLogInterval = std::chrono::seconds(10);

}  // namespace

ProgressLine::ProgressLine()
    : terminal_(isatty(STDERR_FILENO) == 1), last_(std::chrono::steady_clock::now()) {}

void ProgressLine::Show(const std::string& text) {
  const auto now = std::chrono::steady_clock::now();
  const std::chrono::steady_clock::duration interval =
      terminal_ ? std::chrono::steady_clock::duration(kTerminalInterval)
                : std::chrono::steady_clock::duration(kLogInterval);
  if (now - last_ < interval) {
    return;
  }
  last_ = now;
  if (!terminal_) {
    fmt::print(stderr, "{}\n", text);
    return;
  }
  fmt::print(stderr, "\r{:<{}}", text, shown_);
  std::fflush(stderr);
  shown_ = text.size();
}

void ProgressLine::Clear() {
  if (terminal_ && shown_ > 0) {
    fmt::print(stderr, "\r{:<{}}\r", "", shown_);
    std::fflush(stderr);
    shown_ = 0;
  }
}

}  // namespace dsa::bench
