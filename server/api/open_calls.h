// Looks at every open call a few times a second, so that a client that does not read is dropped
// although nothing else happens to its call.  Thread-safe; has a thread of its own.
#pragma once

#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

namespace dsa {

class OpenCall {
 public:
  OpenCall() = default;
  OpenCall(const OpenCall&) = delete;
  OpenCall& operator=(const OpenCall&) = delete;

  // Time has passed.  Neither waits nor adds or removes a call.
  virtual void Look() = 0;

 protected:
  ~OpenCall() = default;
};

class OpenCalls final {
 public:
  OpenCalls();
  ~OpenCalls();
  OpenCalls(const OpenCalls&) = delete;
  OpenCalls& operator=(const OpenCalls&) = delete;

  // `call` stays until Remove has returned.
  void Add(OpenCall* call);
  void Remove(OpenCall* call);

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<OpenCall*> calls_;  // guarded by mutex_
  bool stopping_ = false;      // guarded by mutex_
  std::thread thread_;
};

}  // namespace dsa
