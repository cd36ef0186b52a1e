// The relay between real sockets, with the test in the place of gRPC.
#include "server/net/relay.h"

#include "server/net/acceptor.h"
#include "tests/abuse/raw_http2.h"
#include "tests/log_capture.h"
#include "tests/moved_clock.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>

#include <catch2/catch.hpp>
#include <poll.h>
#include <sys/socket.h>

namespace dsa {
namespace {

using namespace testing;

constexpr int kLongMs = 20'000;

// Up to `size` bytes, fewer where the other side ends or stays silent for `ms`.
std::string Read(int socket, std::size_t size, int ms = kLongMs) {
  std::string bytes;
  std::array<char, 8192> part;
  while (bytes.size() < size) {
    pollfd ready = {.fd = socket, .events = POLLIN, .revents = 0};
    if (poll(&ready, 1, ms) <= 0) {
      break;
    }
    const ssize_t got = recv(socket, part.data(), std::min(part.size(), size - bytes.size()), 0);
    if (got <= 0) {
      break;
    }
    bytes.append(part.data(), static_cast<std::size_t>(got));
  }
  return bytes;
}

// Whether it says that it has ended, and nothing before.
bool Ends(int socket, int ms = kLongMs) {
  pollfd ready = {.fd = socket, .events = POLLIN, .revents = 0};
  char byte = 0;
  return poll(&ready, 1, ms) > 0 && recv(socket, &byte, 1, 0) <= 0;
}

// Fewer where the other side has ended, or takes nothing for so long.
void Write(int socket, std::string_view bytes) {
  while (!bytes.empty()) {
    pollfd ready = {.fd = socket, .events = POLLOUT, .revents = 0};
    if (poll(&ready, 1, kLongMs) <= 0) {
      return;
    }
    const ssize_t sent = send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0) {
      return;
    }
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
}

bool TakesNothing(int socket) {
  pollfd ready = {.fd = socket, .events = POLLOUT, .revents = 0};
  return poll(&ready, 1, 0) == 0;
}

struct Line {
  explicit Line(const GuardLimits& limits = {}) {
    ListenSockets listening = std::move(OpenListenSockets("127.0.0.1", 0)).value();
    port = listening.port;
    acceptor =
        std::move(Acceptor::Start(std::move(listening),
                                  {.connections_max = 8,
                                   .take =
                                       [this](int /*listener*/, int connection) {
                                         const std::lock_guard lock(mutex);
                                         taken = Descriptor(connection);
                                         changed.notify_all();
                                       },
                                   .relay = RelayOptions{.clock = &clock,
                                                         .limits = limits,
                                                         .handshake_ms_max = kHandshake.count()}}))
            .value();
  }
  // A client whose preface has reached the server's end.
  void Connect() {
    client = std::make_unique<RawConnection>(port);
    Write(client->socket(), ClientPreface());
    std::unique_lock lock(mutex);
    const bool came =
        changed.wait_for(lock, std::chrono::milliseconds(kLongMs), [this] { return taken.ok(); });
    INFO("the relay took no connection");
    REQUIRE(came);
    server = std::exchange(taken, Descriptor());
    CHECK(Read(server.number(), ClientPreface().size()) == ClientPreface());
  }
  bool HasTaken() {
    const std::lock_guard lock(mutex);
    return taken.ok();
  }

  // Of the clock below: however long this machine takes, nobody is late by it.
  static constexpr std::chrono::milliseconds kHandshake{3'600'000};
  MovedClock clock;
  std::int64_t port = 0;
  std::mutex mutex;
  std::condition_variable changed;
  Descriptor taken;  // guarded by mutex; gRPC's end of the last connection, until Connect
  std::unique_ptr<Acceptor> acceptor;
  std::unique_ptr<RawConnection> client;
  Descriptor server;
};

// Data frames of random sizes and bytes.
std::string Traffic(std::size_t bytes_min) {
  std::mt19937_64 random(7);
  std::string traffic;
  while (traffic.size() < bytes_min) {
    std::string payload(64 + random() % 20'000, '\0');
    for (std::size_t i = 0; i < payload.size(); i += sizeof(std::uint64_t)) {
      const std::uint64_t value = random();
      std::memcpy(payload.data() + i, &value, std::min(sizeof(value), payload.size() - i));
    }
    traffic += Frame(kDataFrame, 0, 1, payload);
  }
  return traffic;
}

// How often both sides write the same bytes: until it is said that they are stuck, and then the one
// as often as the other.
class Rounds final {
 public:
  enum Side : std::uint8_t { kClient, kServer };

  bool Begin(Side side) {
    const std::lock_guard lock(mutex_);
    if (begun_[side] == rounds_) {
      return false;
    }
    ++begun_[side];
    return true;
  }
  std::int64_t begun() const {
    const std::lock_guard lock(mutex_);
    return begun_[kClient] + begun_[kServer];
  }
  // From now on none begins beyond what the other has begun.
  std::int64_t Settle() {
    const std::lock_guard lock(mutex_);
    rounds_ = std::max(begun_[kClient], begun_[kServer]);
    return rounds_;
  }

 private:
  mutable std::mutex mutex_;
  std::array<std::int64_t, 2> begun_{};          // guarded by mutex_
  std::int64_t rounds_ = std::int64_t{1} << 40;  // guarded by mutex_
};

TEST_CASE("bytes come as they were sent, both ways at once, whoever is slow", "[net][relay]") {
  Line line;
  line.Connect();
  const std::string traffic = Traffic(1 << 20);
  // More than the kernel's buffers hold; what the relay itself holds has a bound far below.
  constexpr std::int64_t kRoundsMax = 512;
  Rounds rounds;
  const auto write = [&](int socket, Rounds::Side side) {
    while (rounds.Begin(side)) {
      Write(socket, traffic);
    }
  };
  std::thread client_writes([&] { write(line.client->socket(), Rounds::kClient); });
  std::thread server_writes([&] { write(line.server.number(), Rounds::kServer); });
  // Nobody reads until both are stuck; the relay waits for neither.
  constexpr int kStuckLooks = 10;
  int stuck = 0;
  for (std::int64_t before = 0; stuck < kStuckLooks && rounds.begun() < kRoundsMax;) {
    poll(nullptr, 0, 10);
    const bool stands = TakesNothing(line.client->socket()) && TakesNothing(line.server.number());
    const std::int64_t begun = rounds.begun();
    stuck = stands && begun == before ? stuck + 1 : 0;
    before = begun;
  }
  CHECK(stuck == kStuckLooks);
  const std::size_t bytes = static_cast<std::size_t>(rounds.Settle()) * traffic.size();
  std::string at_server;
  std::thread server_reads([&] { at_server = Read(line.server.number(), bytes); });
  const std::string at_client = Read(line.client->socket(), bytes);
  for (std::thread* const thread : {&client_writes, &server_writes, &server_reads}) {
    thread->join();
  }
  const auto is_right = [&](std::string_view got) {
    bool right = got.size() == bytes;
    for (; right && !got.empty(); got.remove_prefix(traffic.size())) {
      right = got.starts_with(traffic);
    }
    return right;
  };
  CHECK(is_right(at_client));
  CHECK(is_right(at_server));
}

TEST_CASE("a side that ends ends the other behind its bytes", "[net][relay]") {
  Line line;
  line.Connect();
  const std::string traffic = Traffic(1 << 20);
  SECTION("the client, which still hears the server") {
    std::thread writes([&] {
      Write(line.client->socket(), traffic);
      shutdown(line.client->socket(), SHUT_WR);
    });
    CHECK((Read(line.server.number(), traffic.size()) == traffic));
    CHECK(Ends(line.server.number()));
    writes.join();
    Write(line.server.number(), Frame(kPingFrame, 0, 0, "12345678"));
    CHECK(Read(line.client->socket(), 17) == Frame(kPingFrame, 0, 0, "12345678"));
    line.server.Close();
    CHECK(Ends(line.client->socket()));
  }
  SECTION("the server") {
    std::thread writes([&] {
      Write(line.server.number(), traffic);
      shutdown(line.server.number(), SHUT_RDWR);  // as gRPC does
      line.server.Close();
    });
    CHECK((Read(line.client->socket(), traffic.size()) == traffic));
    CHECK(Ends(line.client->socket()));
    writes.join();
  }
  SECTION("the client, for good") {
    line.client.reset();
    CHECK(Ends(line.server.number()));
  }
  SECTION("the client, by a reset") {
    const linger at_once = {.l_onoff = 1, .l_linger = 0};
    setsockopt(line.client->socket(), SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    line.client.reset();
    CHECK(Ends(line.server.number()));
    CHECK(line.acceptor->open() == 0);
  }
}

TEST_CASE("who opens no HTTP/2 costs gRPC nothing", "[net][relay]") {
  Line line;
  const RawConnection silent(line.port);
  const RawConnection half(line.port);
  Write(half.socket(), ClientPreface().substr(0, 24 + 8));
  const RawConnection wrong(line.port);
  Write(wrong.socket(), "GET / HTTP/1.1\r\n\r\n");
  CHECK(Ends(wrong.socket()));
  CHECK_FALSE(line.HasTaken());
  line.acceptor->Close();  // they never will, now
  CHECK(Ends(silent.socket()));
  CHECK(Ends(half.socket()));
  CHECK_FALSE(line.HasTaken());
}

TEST_CASE("a silent client and one that acknowledges nothing have so much time", "[net][relay]") {
  Line line;
  const RawConnection silent(line.port);
  line.Connect();
  line.clock.Move(Line::kHandshake / 2);
  CHECK_FALSE(Ends(silent.socket(), 300));  // in which the relay has looked at the clock
  CHECK_FALSE(Ends(line.client->socket(), 0));
  line.clock.Move(Line::kHandshake);
  CHECK(Ends(silent.socket()));
  const std::string told = Read(line.client->socket(), 1000);
  CHECK(told.substr(3, 1) == "\x07");  // GOAWAY
  CHECK(told.ends_with("the server's settings are not acknowledged"));
  CHECK(Ends(line.server.number()));
}

TEST_CASE("who is refused is told between two frames, and others are not", "[net][relay]") {
  const LogCapture log;
  GuardLimits limits;
  limits.control_frames_burst = 10;
  limits.control_frames_per_s = 0;
  Line line(limits);
  line.Connect();
  const std::unique_ptr<RawConnection> first = std::move(line.client);
  const Descriptor first_server = std::move(line.server);
  line.Connect();  // another
  const std::string frame = Frame(kDataFrame, 0, 1, std::string(100, 't'));
  const bool within = GENERATE(true, false);
  if (within) {
    Write(first_server.number(), frame.substr(0, 50));
    CHECK(Read(first->socket(), 50) == frame.substr(0, 50));
  }
  for (int i = 0; i < 20; ++i) {
    Write(first->socket(), Frame(kPingFrame, 0, 0, "12345678"));
  }
  if (within) {
    CHECK(Read(first->socket(), 1, 200).empty());
    Write(first_server.number(), frame.substr(50) + frame);
    CHECK(Read(first->socket(), frame.size() - 50) == frame.substr(50));
  }
  const std::string told = Read(first->socket(), 1000);
  const std::string calm("\x00\x00\x2a\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0b",
                         17);
  CHECK(told == calm + "too many frames that carry nothing");
  const std::string pings = Read(first_server.number(), 1000);
  CHECK(pings.size() == (within ? 10 : 9) * 17);  // the server's frame makes up for the settings
  CHECK(Ends(first_server.number()));
  CHECK(line.acceptor->told_off() == 1);
  CHECK(log.Lines("client refused").size() == 1);
  Write(line.server.number(), frame);
  CHECK(Read(line.client->socket(), frame.size()) == frame);
}

TEST_CASE("a stream that waits passes when another has ended, and its client may leave",
          "[net][relay]") {
  GuardLimits limits;
  limits.streams_max = 1;
  Line line(limits);
  line.Connect();
  const auto open = [](std::uint32_t stream) {
    return Frame(kHeadersFrame, kEndHeadersFlag, stream, "\x82");
  };
  Write(line.client->socket(), open(1) + open(3) + open(5));
  CHECK(Read(line.server.number(), open(1).size()) == open(1));
  CHECK(Read(line.server.number(), 1, 200).empty());
  const std::string trailers = Frame(kHeadersFrame, kEndHeadersFlag | kEndStreamFlag, 1, "\x88");
  Write(line.server.number(), trailers);
  CHECK(Read(line.client->socket(), trailers.size()) == trailers);
  CHECK(Read(line.server.number(), open(3).size()) == open(3));
  CHECK(Read(line.server.number(), 1, 200).empty());
  line.client.reset();
  CHECK(Ends(line.server.number()));
}

TEST_CASE("a stop delivers what was said last", "[net][relay]") {
  Line line;
  line.Connect();
  const std::string last = Traffic(100'000);
  Write(line.server.number(), last);
  line.server.Close();
  line.acceptor->Stop();
  CHECK((Read(line.client->socket(), last.size()) == last));
  CHECK(Ends(line.client->socket()));
}

}  // namespace
}  // namespace dsa
