// Lines on their way to a descriptor whose reader may be slow, stuck or gone.  Append never waits:
// two buffers of a fixed size, one that fills and one that the writer thread writes out; what finds
// no room is dropped and counted.  Only the writer thread blocks, and the descriptor's flags are
// left alone, since another process may share it.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

namespace dsa {

class LogWriter final {
 public:
  // The line, with its end, that says how many were dropped; called by the writer.
  using DroppedLine = std::string (*)(std::int64_t lines);

  struct Options {
    int descriptor;
    std::int64_t bytes_max;  // of each buffer
    DroppedLine dropped_line;
  };
  // Until Start, Append writes by itself and may block.
  explicit LogWriter(const Options& options);
  // Joins the thread, which must be able to write.  The process's own is never destroyed.
  ~LogWriter();
  LogWriter(const LogWriter&) = delete;
  LogWriter& operator=(const LogWriter&) = delete;

  // Throws std::system_error where no thread can be started.  Once, before others call Append.
  void Start();

  // Thread-safe.  `line` ends with a line feed.
  void Append(std::string_view line);
  // Thread-safe.  Counts a line that could not even be made.
  void CountDropped();

  // Thread-safe.  Waits until what was appended before has been written or dropped; false where
  // that takes longer than `limit`.
  bool Flush(std::chrono::milliseconds limit);

  // Any thread.  Lines taken care of so far, and whether some wait: for the watchdog.
  std::int64_t lines_done() const { return lines_done_.load(std::memory_order_relaxed); }
  bool waiting() const { return waiting_.load(std::memory_order_relaxed); }

 private:
  struct Batch {
    std::string text;
    std::int64_t lines = 0;
    std::int64_t dropped = 0;  // behind the text
  };

  void Run();
  void WriteOut(Batch& batch);
  void SayDropped();
  std::string_view Write(std::string_view text);

  const Options options_;
  std::atomic<std::int64_t> lines_done_{0};  // counts; order nothing
  std::atomic<bool> waiting_{false};

  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_:
  Batch filling_;
  std::int64_t appended_ = 0;  // lines, dropped ones included
  std::int64_t settled_ = 0;   // of them, those written or given up
  bool stopping_ = false;
  bool started_ = false;

  // The writer thread; before Start, guarded by mutex_:
  Batch writing_;
  std::int64_t lost_ = 0;  // lines dropped and not yet said
  bool in_line_ = false;   // the last write ended within a line
  std::thread thread_;
};

}  // namespace dsa
