// Laws of server/watchdog.h.
#include "server/watchdog.h"

#include "server/engine/wakeup.h"
#include "server/watched_parts.h"
#include "tests/log_capture.h"

#include <array>
#include <atomic>
#include <csignal>
#include <mutex>
#include <vector>

#include <catch2/catch.hpp>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

namespace dsa {
namespace {

constexpr std::chrono::milliseconds kTick{2};
constexpr std::chrono::milliseconds kLimit{60};

void Pause(std::chrono::milliseconds duration) {
  Wakeup().WaitFor(duration);
}

// One part that does what the test says, and what the watchdog said of it.
struct Rig {
  explicit Rig(bool vital)
      : Rig(vital, [this] {
          const bool busy = works;
          done += busy ? 1 : 0;
          return Activity{.done = done, .waiting = waiting, .estimate_us = estimate_us};
        }) {}
  Rig(bool vital, std::function<Activity()> read) {
    watchdog =
        std::move(Watchdog::Start({{.name = "part", .read = std::move(read), .vital = vital}},
                                  {.tick = kTick,
                                   .limit = kLimit,
                                   .on_change =
                                       [this](bool stalled) {
                                         const std::lock_guard lock(mutex);
                                         told.push_back(stalled);
                                       },
                                   .on_lost = [this] { lost = true; }}))
            .value();
  }
  std::vector<bool> Told() {
    const std::lock_guard lock(mutex);
    return told;
  }
  // Waits until so much was told; false after 20 s.
  bool Hears(std::size_t count) {
    for (int i = 0; i < 10'000 && Told().size() < count; ++i) {
      Pause(kTick);
    }
    return Told().size() == count;
  }

  std::atomic<std::int64_t> done{0};
  std::atomic<bool> works{false};
  std::atomic<bool> waiting{false};
  std::atomic<std::int64_t> estimate_us{0};
  std::atomic<bool> lost{false};
  std::mutex mutex;
  std::vector<bool> told;  // guarded by mutex
  std::unique_ptr<Watchdog> watchdog;
};

TEST_CASE("who is idle, or gets on, is never stalled", "[watchdog]") {
  Rig rig(true);
  rig.works = GENERATE(false, true);
  rig.waiting = rig.works.load();
  Pause(4 * kLimit);
  CHECK(rig.Told().empty());
  CHECK_FALSE(rig.lost);
}

TEST_CASE("who has work and does none is stalled until it does, and the log says who",
          "[watchdog]") {
  const testing::LogCapture log;
  Rig rig(false);
  rig.waiting = true;
  rig.works = true;  // first it gets on
  Pause(kLimit);
  rig.works = false;
  const auto start = std::chrono::steady_clock::now();
  REQUIRE(rig.Hears(1));
  CHECK(std::chrono::steady_clock::now() - start >= kLimit - kTick);
  rig.works = true;
  REQUIRE(rig.Hears(2));
  CHECK(rig.Told() == std::vector<bool>{true, false});
  CHECK_FALSE(rig.lost);
  REQUIRE(log.Lines("there is work").size() == 1);
  CHECK(log.Lines("there is work")[0].find("part=\"part\"") != std::string::npos);
  CHECK(log.Lines("no longer stalled").size() == 1);
}

TEST_CASE("a piece of work gets ten times its estimate", "[watchdog]") {
  Rig rig(false);
  rig.estimate_us = 20'000;
  const auto start = std::chrono::steady_clock::now();
  rig.waiting = true;
  REQUIRE(rig.Hears(1));
  CHECK(std::chrono::steady_clock::now() - start >= std::chrono::milliseconds(200));
}

TEST_CASE("an acceptor that stands still is seen, and a silent one is not", "[watchdog]") {
  const testing::LogCapture log;
  ListenSockets listening = std::move(OpenListenSockets("127.0.0.1", 0)).value();
  const std::int64_t port = listening.port;
  std::mutex held;
  const auto acceptor =
      std::move(Acceptor::Start(std::move(listening), {.connections_max = 8,
                                                       .take =
                                                           [&held](int /*listener*/, int taken) {
                                                             const Descriptor socket(taken);
                                                             const std::lock_guard wait(held);
                                                           }}))
          .value();
  Rig rig(false, [&acceptor] { return ActivityOf(acceptor->progress()); });
  Pause(4 * kLimit);
  CHECK(rig.Told().empty());
  std::unique_lock lock(held);
  const Descriptor client(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(connect(client.number(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  REQUIRE(rig.Hears(1));
  CHECK_FALSE(rig.lost);  // what runs goes on without new clients
  lock.unlock();
  REQUIRE(rig.Hears(2));
  CHECK(rig.Told() == std::vector<bool>{true, false});
}

TEST_CASE("a vital part that stalls ends the process with 5; being stopped is no stall",
          "[watchdog]") {
  constexpr std::chrono::milliseconds kLooksEvery{20};
  constexpr int kLooks = 30;
  const testing::LogCapture log;
  std::array<int, 2> looks{};  // a byte for each
  REQUIRE(pipe(looks.data()) == 0);
  const pid_t child = fork();
  if (child == 0) {
    close(looks[0]);
    auto watchdog =
        Watchdog::Start({{.name = "engine",
                          .read =
                              [&] {
                                const bool told = write(looks[1], ".", 1) == 1;
                                return Activity{.done = 0, .waiting = told, .estimate_us = 0};
                              },
                          .vital = true}},
                        {.tick = kLooksEvery,
                         .limit = kLooks * kLooksEvery,
                         .on_change = [](bool) {},
                         .on_lost = EndStalledProcess});
    constexpr unsigned kLongSeconds = 100;
    alarm(kLongSeconds);
    while (watchdog.ok()) {
      pause();
    }
    _exit(1);
  }
  REQUIRE(child > 0);
  close(looks[1]);
  int seen = 0;
  const auto looks_again = [&] {
    char byte = 0;
    const bool came = read(looks[0], &byte, 1) == 1;
    seen += came ? 1 : 0;
    return came;
  };
  while (seen < 3 && looks_again()) {
  }
  kill(child, SIGSTOP);
  Pause(2 * kLooks * kLooksEvery);  // longer than the limit
  kill(child, SIGCONT);
  while (looks_again()) {
  }
  close(looks[0]);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(seen == kLooks);  // it went on as if nothing had been
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 5);
  CHECK(log.Lines("engine").size() == 1);
}

}  // namespace
}  // namespace dsa
