// Ctrl-C in a client: cancels the call that runs, and not the program.
#pragma once

#include <mutex>
#include <thread>

namespace grpc {
class ClientContext;
}

namespace dsa {

// SIGINT is taken by a thread of its own, since a signal handler may not cancel a call.  Make one
// before any other thread.
class Interrupts final {
 public:
  Interrupts();
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  // The call that Ctrl-C cancels; null between calls, where it does nothing.
  void Watch(grpc::ClientContext* call);

 private:
  void Run();

  std::mutex mutex_;
  grpc::ClientContext* call_ = nullptr;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace dsa
