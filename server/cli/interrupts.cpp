#include "server/cli/interrupts.h"

#include <csignal>

#include <fmt/core.h>
#include <grpcpp/client_context.h>
#include <pthread.h>

namespace dsa {
namespace {

// SIGUSR1 ends the thread.
sigset_t TakenSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGUSR1);
  return signals;
}

}  // namespace

Interrupts::Interrupts() {
  const sigset_t signals = TakenSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  thread_ = std::thread([this] { Run(); });
}

Interrupts::~Interrupts() {
  pthread_kill(thread_.native_handle(), SIGUSR1);
  thread_.join();
}

void Interrupts::Watch(grpc::ClientContext* call) {
  const std::lock_guard lock(mutex_);
  call_ = call;
}

void Interrupts::Run() {
  const sigset_t signals = TakenSignals();
  int signal = 0;
  while (sigwait(&signals, &signal) == 0 && signal == SIGINT) {
    const std::lock_guard lock(mutex_);
    if (call_ != nullptr) {
      call_->TryCancel();
    } else {
      fmt::print(stderr, "\n(Ctrl-D ends)\n> ");
    }
  }
}

}  // namespace dsa
