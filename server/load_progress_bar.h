// How far loading is: a bar on a terminal, otherwise a log line every few seconds.
#pragma once

#include "common/clock.h"
#include "model/load_progress.h"

#include <cstdint>

namespace dsa {

class LoadProgressBar final : public LoadProgress {
 public:
  LoadProgressBar();
  ~LoadProgressBar() override;

  void OnBytes(std::int64_t bytes, std::int64_t bytes_total) override;

 private:
  void Draw(std::int64_t bytes, std::int64_t bytes_total, MonotonicUs now_us) const;

  const SteadyClock clock_;
  const bool is_terminal_;
  const MonotonicUs start_us_;
  MonotonicUs shown_us_;
  bool drawn_ = false;
};

}  // namespace dsa
