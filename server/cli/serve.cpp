#include "common/log.h"
#include "common/machine.h"
#include "server/app.h"
#include "server/cli/commands.h"
#include "server/cli/config_flags.h"
#include "server/cli/report.h"

#include <atomic>
#include <csignal>
#include <ctime>

#include <CLI/CLI.hpp>
#include <fmt/core.h>
#include <semaphore.h>
#include <unistd.h>

namespace dsa {
namespace {

// Signals end the process until it serves, then drain it once, then end it again.
enum class Phase : int { kLoading, kServing, kDraining };
std::atomic<Phase> phase{Phase::kLoading};
static_assert(std::atomic<Phase>::is_always_lock_free, "used in a signal handler");
sem_t stop_asked;

void OnStopSignal(int /*signal*/) {
  Phase serving = Phase::kServing;
  if (phase.compare_exchange_strong(serving, Phase::kDraining, std::memory_order_relaxed)) {
    sem_post(&stop_asked);
  } else {
    _exit(1);
  }
}

// A terminal that goes away says so more than once: only the first counts.
void OnHangUp(int signal) {
  if (phase.load(std::memory_order_relaxed) != Phase::kDraining) {
    OnStopSignal(signal);
  }
}

void TakeStopSignals() {
  sem_init(&stop_asked, 0, 0);
  struct sigaction action {};
  action.sa_handler = OnStopSignal;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  struct sigaction before {};
  sigaction(SIGHUP, nullptr, &before);
  if (before.sa_handler != SIG_IGN) {  // nohup
    action.sa_handler = OnHangUp;
    sigaction(SIGHUP, &action, nullptr);
  }
}

void WaitForStopSignal() {
  constexpr time_t kPauseS = 10;
  timespec until{};
  do {
    GiveFreePagesBack();
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += kPauseS;
  } while (sem_clockwait(&stop_asked, CLOCK_MONOTONIC, &until) != 0);
}

int Serve(const ConfigFlags& flags, bool print_config) {
  const Result<ServerConfig> config = ReadConfig(flags);
  if (!config.ok()) {
    return ReportError(config.error());
  }
  if (print_config) {
    fmt::print("{}\n", ToJson(config.value()));
    return 0;
  }
  SaveAddressSpace();
  GiveLargeBlocksBack();
  ConfigureLog(*ParseLogLevel(config.value().log_level),
               *ParseLogFormat(config.value().log_format));
  const Status writing = StartLogThread();
  if (!writing.ok()) {
    return ReportError(writing.error());
  }
  TakeStopSignals();
  Result<std::unique_ptr<App>> app = App::Start(config.value());
  if (!app.ok()) {
    return ReportError(app.error());
  }
  phase.store(Phase::kServing, std::memory_order_relaxed);  // who reads that line may stop it
  app.value()->LogReady();
  WaitForStopSignal();
  Log(LogLevel::kInfo, "draining");
  app.value()->Drain();
  Log(LogLevel::kInfo, "stopped");
  return 0;
}

}  // namespace

void AddServeCommand(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand("serve", "Serve a model over gRPC");
  const auto flags = AddConfigFlags(*command);
  auto print_config = std::make_shared<bool>(false);
  command->add_flag("--print-config", *print_config,
                    "Print the effective configuration as JSON and exit");
  command->footer(
      "SIGTERM, SIGINT or SIGHUP drains and exits with 0; a second SIGTERM or SIGINT stops at "
      "once.");
  command->callback(
      [flags, print_config, &exit_code] { exit_code = Serve(*flags, *print_config); });
}

}  // namespace dsa
