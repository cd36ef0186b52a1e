// The log of this process while it is alive: standard error goes to a file of its own.
#pragma once

#include "common/check.h"
#include "common/log.h"

#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

#include <unistd.h>

namespace dsa::testing {

class LogCapture final {
 public:
  LogCapture() : file_(std::tmpfile()), before_(dup(STDERR_FILENO)) {
    DSA_CHECK(file_ != nullptr && before_ >= 0, "LogCapture: no file");
    FlushLog();
    dup2(fileno(file_), STDERR_FILENO);
  }
  ~LogCapture() {
    FlushLog();
    dup2(before_, STDERR_FILENO);
    close(before_);
    std::fclose(file_);
  }
  LogCapture(const LogCapture&) = delete;
  LogCapture& operator=(const LogCapture&) = delete;

  // The lines so far that contain `word`.
  std::vector<std::string> Lines(const std::string& word) const {
    FlushLog();
    std::string text(static_cast<std::size_t>(lseek(fileno(file_), 0, SEEK_END)), '\0');
    const ssize_t got = pread(fileno(file_), text.data(), text.size(), 0);
    std::istringstream whole(text.substr(0, got < 0 ? 0 : static_cast<std::size_t>(got)));
    std::vector<std::string> lines;
    for (std::string line; std::getline(whole, line);) {
      if (line.find(word) != std::string::npos) {
        lines.push_back(line);
      }
    }
    return lines;
  }

 private:
  std::FILE* const file_;
  const int before_;  // standard error's own
};

}  // namespace dsa::testing
