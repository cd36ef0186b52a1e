#include "common/log_writer.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include <poll.h>
#include <unistd.h>

namespace dsa {

LogWriter::LogWriter(const Options& options) : options_(options) {
  filling_.text.reserve(static_cast<std::size_t>(options.bytes_max));
  writing_.text.reserve(static_cast<std::size_t>(options.bytes_max));
}

LogWriter::~LogWriter() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) {
    thread_.join();
  }
}

void LogWriter::Start() {
  thread_ = std::thread([this] { Run(); });
  const std::lock_guard lock(mutex_);
  started_ = true;
}

void LogWriter::Append(std::string_view line) {
  {
    const std::lock_guard lock(mutex_);
    ++appended_;
    // Behind a line that was dropped no other goes before that has been said.
    const bool fits = filling_.text.size() + line.size() <= filling_.text.capacity();
    if (filling_.dropped > 0 || !fits) {
      ++filling_.dropped;
    } else {
      filling_.text.append(line);
      ++filling_.lines;
    }
    waiting_.store(true, std::memory_order_relaxed);
    if (!started_) {
      std::swap(filling_, writing_);
      WriteOut(writing_);
      settled_ = appended_;
      waiting_.store(false, std::memory_order_relaxed);
      return;
    }
  }
  changed_.notify_all();
}

void LogWriter::CountDropped() {
  const std::lock_guard lock(mutex_);
  ++filling_.dropped;
  ++appended_;
}

bool LogWriter::Flush(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  const std::int64_t until = appended_;
  return !started_ || changed_.wait_for(lock, limit, [&] { return settled_ >= until; });
}

void LogWriter::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || settled_ < appended_; });
    if (settled_ == appended_) {
      return;
    }
    std::swap(filling_, writing_);
    const std::int64_t settled = appended_;
    lock.unlock();
    WriteOut(writing_);
    lock.lock();
    settled_ = settled;
    waiting_.store(settled_ < appended_, std::memory_order_relaxed);
    changed_.notify_all();
  }
}

// A line that does not end up whole counts as dropped.  How many were is said where they are
// missing.
void LogWriter::WriteOut(Batch& batch) {
  SayDropped();
  const std::string_view left = Write(batch.text);
  lost_ += std::count(left.begin(), left.end(), '\n') + batch.dropped;
  SayDropped();
  lines_done_.fetch_add(batch.lines + batch.dropped, std::memory_order_relaxed);
  batch.text.clear();  // keeps its room
  batch.lines = 0;
  batch.dropped = 0;
}

void LogWriter::SayDropped() {
  if (lost_ > 0 && Write(options_.dropped_line(lost_)).empty()) {
    lost_ = 0;
  }
}

// What could not be written, such as on a full disk or where the reader is gone.
std::string_view LogWriter::Write(std::string_view text) {
  if (in_line_ && !text.empty() && write(options_.descriptor, "\n", 1) == 1) {
    in_line_ = false;
  }
  while (!text.empty()) {
    const ssize_t count = write(options_.descriptor, text.data(), text.size());
    if (count > 0) {
      in_line_ = text[static_cast<std::size_t>(count) - 1] != '\n';
      text.remove_prefix(static_cast<std::size_t>(count));
    } else if (errno == EAGAIN) {  // another process made it non-blocking
      pollfd ready = {.fd = options_.descriptor, .events = POLLOUT, .revents = 0};
      poll(&ready, 1, -1);
    } else if (count == 0 || errno != EINTR) {
      return text;
    }
  }
  return text;
}

}  // namespace dsa
