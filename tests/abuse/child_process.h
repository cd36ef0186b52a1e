// This program again, as a server or as a sink that only reads, in a process of its own, so that
// what it takes is its alone.
#pragma once

#include <cstdint>
#include <string>

#include <sys/types.h>

namespace dsa::testing {

class ChildProcess final {
 public:
  // Runs /proc/self/exe with the words of `arguments`, which must print "port N" when it listens;
  // it ends when its standard input does.
  explicit ChildProcess(const std::string& arguments);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  std::int64_t port() const { return port_; }
  bool Lives() const;

  std::int64_t ResidentBytes() const;
  // Since the last ResetPeak.
  std::int64_t PeakBytes() const;
  void ResetPeak() const;
  std::int64_t ProcessorUs() const;  // that it has used so far

 private:
  pid_t pid_ = -1;
  int in_ = -1;
  std::int64_t port_ = 0;
};

// Says "port N" on standard output.
void SayPort(std::int64_t port);
void WaitForEndOfInput();

}  // namespace dsa::testing
