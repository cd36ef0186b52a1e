// A bar on standard error while a model loads; silent where that is no terminal.
#pragma once

#include "model/load_progress.h"

#include <string>
#include <string_view>

namespace dsa {

// The bar as a line of text: "loading [#####     ]  50 %  1.2 / 2.4 GB".
std::string ProgressText(std::string_view label, std::int64_t bytes, std::int64_t bytes_total);

// Loading thread only.  The line is wiped when the bar goes.
class ProgressBar final : public LoadProgress {
 public:
  explicit ProgressBar(std::string label);
  ~ProgressBar() override;

  void OnBytes(std::int64_t bytes, std::int64_t bytes_total) override;

 private:
  const std::string label_;
  const bool on_terminal_;
  std::int64_t shown_permille_ = -1;  // -1: nothing is on the screen
};

}  // namespace dsa
