#include "server/cli/progress.h"

#include <cstdio>
#include <utility>

#include <fmt/core.h>
#include <unistd.h>

namespace dsa {
namespace {

constexpr std::int64_t kCells = 30;

std::int64_t Permille(std::int64_t bytes, std::int64_t bytes_total) {
  // In double: 1000 times the bytes of a large model still fit, but nothing depends on it.
  return bytes_total > 0 ? static_cast<std::int64_t>(1000.0 * static_cast<double>(bytes) /
                                                     static_cast<double>(bytes_total))
                         : 1000;
}

}  // namespace

std::string ProgressText(std::string_view label, std::int64_t bytes, std::int64_t bytes_total) {
  constexpr double kGigabyte = 1e9;
  const std::int64_t permille = Permille(bytes, bytes_total);
  const auto filled = static_cast<std::size_t>(permille * kCells / 1000);
  const std::string cells =
      std::string(filled, '#') + std::string(static_cast<std::size_t>(kCells) - filled, ' ');
  return fmt::format("{} [{}] {:3} %  {:.2f} / {:.2f} GB", label, cells, permille / 10,
                     static_cast<double>(bytes) / kGigabyte,
                     static_cast<double>(bytes_total) / kGigabyte);
}

ProgressBar::ProgressBar(std::string label)
    : label_(std::move(label)), on_terminal_(isatty(STDERR_FILENO) != 0) {}

ProgressBar::~ProgressBar() {
  if (shown_permille_ >= 0) {
    std::fputs("\r\x1b[K", stderr);
  }
}

void ProgressBar::OnBytes(std::int64_t bytes, std::int64_t bytes_total) {
  const std::int64_t permille = Permille(bytes, bytes_total);
  if (!on_terminal_ || permille == shown_permille_) {
    return;  // redrawn at most a thousand times
  }
  shown_permille_ = permille;
  std::fputs(("\r" + ProgressText(label_, bytes, bytes_total)).c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace dsa
