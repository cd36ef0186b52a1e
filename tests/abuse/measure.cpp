// What each abuse costs the server, and what it does to streams that others read.
//
//   dsa_abuse full [off] [NAME]   the full amounts; "off": without the guard; the attack NAME alone
//   dsa_abuse quick [off] [NAME]  small ones: fails where memory grows or a stream ends, and with
//                                 "off" where it does not grow
//   dsa_abuse at PORT [NAME]      the full amounts at what listens there, a proxy for instance
//   dsa_abuse latency             what the relay adds to the time of a call
//   dsa_abuse burst               how soon each of 10,000 calls is refused, and the memory a minute
//   later dsa_abuse health              health beside eight processes that send texts of 16 MB
//   dsa_abuse silent SECONDS      a stream that says nothing for so long still ends well
//   dsa_abuse http                serves HTTP/1.1 over steps of 20 ms, for http1.py
#include "common/check.h"
#include "common/descriptor.h"
#include "server/http/http_server.h"
#include "tests/abuse/attacks.h"
#include "tests/abuse/child_process.h"
#include "tests/abuse/latency.h"
#include "tests/abuse/limits.h"
#include "tests/abuse/victim.h"
#include "tests/api/test_server.h"
#include "tests/sanitized.h"

#include <array>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include <arpa/inet.h>
#include <fmt/core.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

namespace dsa::testing {
namespace {

constexpr std::chrono::milliseconds kStep{20};
constexpr double kMb = 1e6;

// The real gRPC server over an engine whose steps take 20 ms.
int Serve(bool guarded) {
  TestServerOptions options;
  options.listen.guard.enabled = guarded;
  TestServer server(options);
  server.steps().SetDuration(kStep);
  SayPort(server.port());
  WaitForEndOfInput();
  return EXIT_SUCCESS;
}

// The real HTTP server over such an engine.
int ServeHttp() {
  TestServer server;
  server.steps().SetDuration(kStep);
  HttpServerConfig config;
  config.port = 0;
  Result<std::unique_ptr<HttpServer>> http = HttpServer::Start(config, server.context());
  DSA_CHECK(http.ok(), "HTTP: {}", http.error().message);
  SayPort(http.value()->port());
  WaitForEndOfInput();
  return EXIT_SUCCESS;
}

// Takes connections and drops what comes.
int Sink() {
  const Descriptor listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* const raw = reinterpret_cast<sockaddr*>(&address);
  if (bind(listener.number(), raw, size) != 0 || listen(listener.number(), SOMAXCONN) != 0 ||
      getsockname(listener.number(), raw, &size) != 0) {
    return EXIT_FAILURE;
  }
  SayPort(ntohs(address.sin_port));
  std::vector<Descriptor> connections;
  std::vector<pollfd> waited = {{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0},
                                {.fd = listener.number(), .events = POLLIN, .revents = 0}};
  std::array<char, 64 << 10> bytes;
  while (poll(waited.data(), waited.size(), -1) > 0 && waited[0].revents == 0) {
    for (std::size_t i = waited.size() - 1; i > 1; --i) {
      if (waited[i].revents != 0 && recv(waited[i].fd, bytes.data(), bytes.size(), 0) <= 0) {
        connections.erase(connections.begin() + static_cast<std::ptrdiff_t>(i) - 2);
        waited.erase(waited.begin() + static_cast<std::ptrdiff_t>(i));
      }
    }
    if (waited[1].revents != 0) {
      Descriptor connection(accept4(listener.number(), nullptr, nullptr, SOCK_NONBLOCK));
      if (connection.ok()) {
        waited.push_back({.fd = connection.number(), .events = POLLIN, .revents = 0});
        connections.push_back(std::move(connection));
      }
    }
  }
  return EXIT_SUCCESS;
}

struct Run {
  AttackResult attack;
  TokenGaps gaps;
};

// The attack at `target` while streams of `server` are read.
Run Observe(std::int64_t server, std::int64_t target, const Attack& attack, const AttackSize& size,
            std::chrono::milliseconds at_least) {
  constexpr int kStreams = 4;
  Victim victim(server, kStreams);
  const auto until = std::chrono::steady_clock::now() + at_least;
  Run run;
  run.attack = attack.run(target, size);
  while (std::chrono::steady_clock::now() < until) {
    Pause(kStep);
  }
  run.gaps = victim.Stop();
  return run;
}

struct Plan {
  bool full = false;
  bool guarded = true;
  std::int64_t port = 0;  // of what runs already, whose memory is somebody else's to look at
  std::string name;       // empty: every attack
};

struct Outcome {
  AttackResult attack;
  std::int64_t before_bytes = 0;
  std::int64_t added_bytes = 0;
  std::int64_t processor_us = 0;
  TokenGaps gaps;
  TokenGaps sunk;  // where the attack went into a sink
  bool serves = false;
};

Outcome TryAt(std::int64_t port, const Attack& attack) {
  constexpr std::chrono::seconds kTime{10};
  Run run =
      Observe(port, port, attack, {.amount = attack.full_amount, .time_max = kTime}, kTime / 2);
  Outcome outcome;
  outcome.attack = run.attack;
  outcome.gaps = std::move(run.gaps);
  outcome.serves = Victim(port, 1).Stop().all_ok;
  return outcome;
}

Outcome Try(const Plan& plan, const Attack& attack) {
  if (plan.port != 0) {
    return TryAt(plan.port, attack);
  }
  const ChildProcess server(plan.guarded ? "serve" : "serve off");
  const AttackSize size{.amount = plan.full ? attack.full_amount : attack.quick_amount,
                        .time_max = std::chrono::seconds(plan.full ? 10 : 3)};
  const std::chrono::milliseconds at_least(plan.full ? 5000 : 0);
  Outcome outcome;
  if (plan.full) {
    const ChildProcess sink("sink");
    outcome.sunk = Observe(server.port(), sink.port(), attack, size, at_least).gaps;
  } else {
    Victim(server.port(), 4).Stop();  // what the first calls take is not the attack's
  }
  server.ResetPeak();
  outcome.before_bytes = server.ResidentBytes();
  const std::int64_t processor_before_us = server.ProcessorUs();
  Run run = Observe(server.port(), server.port(), attack, size, at_least);
  outcome.attack = run.attack;
  outcome.gaps = std::move(run.gaps);
  outcome.added_bytes = server.PeakBytes() - outcome.before_bytes;
  outcome.processor_us = server.ProcessorUs() - processor_before_us;
  outcome.serves = server.Lives() && Victim(server.port(), 1).Stop().all_ok;
  return outcome;
}

void Print(const Attack& attack, const Outcome& outcome) {
  const auto code = outcome.attack.go_away_code;
  fmt::print(
      "| {} | {} {} | {}, {}, {} | {:.1f}, {:.1f} | {:.2f} | {:.1f}, {:.1f}, {:.1f} | "
      "{:.1f}, {:.1f}, {:.1f} | {} |\n",
      attack.name, outcome.attack.done, attack.unit, outcome.attack.connections,
      outcome.attack.refused, code ? std::to_string(*code) : "none",
      static_cast<double>(outcome.before_bytes) / kMb,
      static_cast<double>(outcome.added_bytes) / kMb,
      static_cast<double>(outcome.processor_us) / 1e6, outcome.gaps.At(0.5), outcome.gaps.At(0.99),
      outcome.gaps.At(1), outcome.sunk.At(0.5), outcome.sunk.At(0.99), outcome.sunk.At(1),
      outcome.gaps.all_ok && outcome.serves ? "yes" : "no");
  std::fflush(stdout);
}

// Whether what a test asks for holds.  Sanitizers keep memory that was freed.
bool IsAsWanted(const Plan& plan, const Attack& attack, const Outcome& outcome) {
  constexpr bool kMemoryCounts = !kSanitized;
  const bool small = outcome.added_bytes <= kAddedBytesMax;
  if (!plan.guarded) {
    return !kMemoryCounts || !attack.quick_swells || !small;
  }
  return (small || !kMemoryCounts) && outcome.gaps.all_ok && outcome.serves;
}

int Measure(const Plan& plan) {
  fmt::print(
      "| attack | sent | connections, ended by the server, GOAWAY | memory before, peak "
      "added, MB | server's processor, s | ITL p50, p99, max, ms | with a sink | others "
      "served |\n|---|---|---|---|---|---|---|---|\n");
  bool all_ok = true;
  for (const Attack& attack : Attacks()) {
    const bool chosen = plan.name.empty() ? plan.full || plan.guarded || attack.quick_swells
                                          : plan.name == attack.name;
    if (chosen) {
      const Outcome outcome = Try(plan, attack);
      Print(attack, outcome);
      all_ok = all_ok && IsAsWanted(plan, attack, outcome);
    }
  }
  return all_ok ? EXIT_SUCCESS : EXIT_FAILURE;
}

int Main(const std::vector<std::string>& words) {
  if (words.empty()) {
    return EXIT_FAILURE;
  }
  const bool off = words.size() > 1 && words[1] == "off";
  if (words[0] == "serve") {
    return Serve(!off);
  }
  if (words[0] == "http") {
    return ServeHttp();
  }
  if (words[0] == "sink") {
    return Sink();
  }
  if (const std::optional<int> code = RunLimits(words); code) {
    return *code;
  }
  if (words[0] == "latency") {
    return PrintLatency();
  }
  if (words[0] == "silent" && words.size() == 2) {
    return StaySilent(std::chrono::seconds(std::stoi(words[1])));
  }
  if (words[0] == "at" && words.size() >= 2) {
    return Measure({.full = true,
                    .guarded = true,
                    .port = std::stoll(words[1]),
                    .name = words.size() > 2 ? words[2] : ""});
  }
  const std::size_t name_at = off ? 2 : 1;
  return Measure({.full = words[0] == "full",
                  .guarded = !off,
                  .port = 0,
                  .name = words.size() > name_at ? words[name_at] : ""});
}

}  // namespace
}  // namespace dsa::testing

int main(int argc, char** argv) {
  return dsa::testing::Main({argv + 1, argv + argc});
}
