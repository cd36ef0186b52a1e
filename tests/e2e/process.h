// Runs the real `dsa` binary as a process.  Every wait ends after a limit, by killing the process.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include <sys/types.h>

namespace dsa::testing {

using Arguments = std::vector<std::string>;

// How a process ended and what it wrote.
struct Ended {
  int exit_code = -1;  // -1: by a signal, or not within the limit
  std::string out;
  std::string err;
};

// What standard input, output and error are.
enum class Streams {
  kPipes,
  kBroken,    // as kPipes, but standard input is a folder, and standard output's disk is full
  kShared,    // as kPipes, but another process has made standard output's pipe non-blocking
  kTerminal,  // one controlling terminal for all three; what it shows is in out()
};

// One process.  Test thread only; killed where it still runs when the object goes.
class Process final {
 public:
  Process(const Arguments& arguments, Streams streams);
  // Through a shell that runs `preparation` first, such as "ulimit -n 100".
  Process(const std::string& preparation, const Arguments& arguments);
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void Write(const std::string& text) const;  // to its standard input
  void CloseInput();
  void Signal(int signal) const;
  pid_t pid() const { return pid_; }

  // Reads on until the output, or the error output, holds `text` behind byte `from`.  False where
  // it ends or the limit of process.cpp passes before.
  bool WaitForOut(const std::string& text, std::size_t from);
  bool WaitForErr(const std::string& text);

  const std::string& out() const { return out_; }
  const std::string& err() const { return err_; }

  // Waits until it ends, at most for that limit.
  Ended Wait();
  // The same, and nobody reads what it writes meanwhile.  The exit code.
  int WaitUnread();

  void CloseOut();  // nobody will read it
  void CloseErr();

 private:
  using Clock = std::chrono::steady_clock;

  void StartOnPipes(const Arguments& words, Streams streams);
  void Start(Arguments words, const int (&child_ends)[3], const char* terminal);
  bool ReadMore(Clock::time_point limit);  // false: both are at their end, or it is too late
  // The exit code, or -1; kills it at `limit`.
  int WaitForExit(Clock::time_point limit);

  pid_t pid_ = -1;
  int in_ = -1;
  int out_end_ = -1;
  int err_end_ = -1;  // -1 on a terminal
  std::string out_;
  std::string err_;
};

// Runs `dsa` to its end with `input` as its standard input.
Ended RunDsa(const Arguments& arguments, const std::string& input);

}  // namespace dsa::testing
