// How far a benchmark is, on standard error: one line that changes on a terminal, otherwise a line
// every ten seconds.  Main thread.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace dsa::bench {

class ProgressLine final {
 public:
  ProgressLine();
  ~ProgressLine() { Clear(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void Show(const std::string& text);
  void Clear();  // before other output

 private:
  const bool terminal_;
  std::size_t shown_ = 0;  // characters on the terminal
  std::chrono::steady_clock::time_point last_;
};

}  // namespace dsa::bench
