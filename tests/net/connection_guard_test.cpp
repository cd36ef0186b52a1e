// What passes a guard, to the frame; and that it does not matter how the bytes are cut.
#include "server/net/connection_guard.h"

#include "tests/abuse/raw_http2.h"

#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using namespace testing;
using Next = ConnectionGuard::Next;

constexpr MonotonicUs kSecondUs = 1'000'000;

const std::string kCancel("\0\0\0\x08", 4);

std::string Open(std::uint32_t stream) {
  return Frame(kHeadersFrame, kEndHeadersFlag, stream, "\x82");
}
std::string Cancel(std::uint32_t stream) {
  return Frame(kResetFrame, 0, stream, kCancel);
}
std::string Trailers(std::uint32_t stream) {  // the server's
  return Frame(kHeadersFrame, kEndHeadersFlag | kEndStreamFlag, stream, "\x88");
}

// A client and a server with a guard between, at a time that the test says.
struct Talk {
  explicit Talk(const GuardLimits& limits = {}, std::int64_t all_streams_max = 1'000'000)
      : budget(all_streams_max), guard(limits, budget, 0) {
    CHECK(Says(ClientPreface()) == Next::kBytes);
  }

  Next Says(const std::string& bytes) {
    held += bytes;
    const ConnectionGuard::Verdict verdict = guard.Inspect(held, now_us);
    held.erase(0, verdict.pass);
    reason = verdict.reason;
    return verdict.next;
  }
  Next SaysTimes(int count, const std::string& bytes) {
    Next next = Next::kBytes;
    for (int i = 0; i < count && next == Next::kBytes; ++i) {
      next = Says(bytes);
    }
    return next;
  }

  StreamBudget budget;
  ConnectionGuard guard;
  MonotonicUs now_us = 0;
  std::string held;
  std::string reason;
};

TEST_CASE("what opens no HTTP/2 is refused at its first wrong byte", "[net][guard]") {
  StreamBudget budget(10);
  ConnectionGuard guard({}, budget, 0);
  CHECK(guard.Inspect("PRI * HTT", 0).pass == 9);
  CHECK_FALSE(guard.begun());
  const auto verdict = guard.Inspect("Q/", 0);
  CHECK(verdict.next == Next::kRefuse);
  CHECK(verdict.reason.empty());
}

TEST_CASE("a header block may have its size and not a byte more", "[net][guard]") {
  constexpr std::int64_t kMax = 1000;
  const auto parts = GENERATE(1, 2, 10);
  const auto surplus = GENERATE(0, 1);
  CAPTURE(parts, surplus);
  GuardLimits limits;
  limits.header_bytes_max = kMax;
  Talk talk(limits);
  const std::int64_t payload = kMax + surplus - 9 * parts;
  std::string block;
  for (int i = 0; i < parts; ++i) {
    const std::int64_t size = i + 1 < parts ? 20 : payload - 20 * (parts - 1);
    block +=
        Frame(i == 0 ? kHeadersFrame : kContinuationFrame, i + 1 == parts ? kEndHeadersFlag : 0, 1,
              std::string(static_cast<std::size_t>(size), '\x82'));
  }
  CHECK(talk.Says(block) == (surplus == 0 ? Next::kBytes : Next::kRefuse));
  CHECK(talk.Says(Open(3)) == (surplus == 0 ? Next::kBytes : Next::kRefuse));
}

TEST_CASE("empty CONTINUATION frames end, too", "[net][guard]") {
  Talk talk;
  CHECK(talk.Says(Frame(kHeadersFrame, 0, 1, "\x82")) == Next::kBytes);
  CHECK(talk.SaysTimes(10'000, Frame(kContinuationFrame, 0, 1, "")) == Next::kRefuse);
  CHECK(talk.reason == "a header block is too large");
}

TEST_CASE("nothing comes between the frames of a header block", "[net][guard]") {
  const std::string between = GENERATE(as<std::string>(), Frame(kPingFrame, 0, 0, "12345678"),
                                       Frame(kContinuationFrame, 0, 3, "\x82"), Open(3));
  Talk talk;
  CHECK(talk.Says(Frame(kHeadersFrame, 0, 1, "\x82")) == Next::kBytes);
  CHECK(talk.Says(between) == Next::kRefuse);
  CHECK(talk.reason == "a header block is interrupted");
}

TEST_CASE("padded integers are seen behind padding and priorities, and in continuations",
          "[net][guard]") {
  constexpr std::uint8_t kPadded = 0x8;
  constexpr std::uint8_t kPriority = 0x20;
  const std::string endless(10, '\xff');
  const std::string priority(5, '\xff');
  {
    Talk talk;  // the fields are one; padding of 10 bytes looks like an integer and is none
    CHECK(talk.Says(Frame(kHeadersFrame, kEndHeadersFlag | kPadded | kPriority, 1,
                          "\x0a" + priority + "\x82" + endless)) == Next::kBytes);
    CHECK(talk.Says(Frame(kHeadersFrame, kEndHeadersFlag | kPadded | kPriority, 3,
                          "\x02" + priority + "\x82" + endless)) == Next::kRefuse);
  }
  Talk talk;
  CHECK(talk.Says(Frame(kHeadersFrame, 0, 1, "\x82\xff\xff")) == Next::kBytes);
  CHECK(talk.Says(Frame(kContinuationFrame, kEndHeadersFlag, 1, "\xff\xff\xff")) == Next::kRefuse);
}

TEST_CASE("cancels have an allowance that time gives back", "[net][guard]") {
  GuardLimits limits;
  limits.cancels_per_s = 2;
  Talk talk(limits);
  std::uint32_t stream = 1;
  const auto cancel = [&] {
    const std::string both = Open(stream) + Cancel(stream);
    stream += 2;
    return talk.Says(both);
  };
  for (int i = 0; i < 20; ++i) {
    REQUIRE(cancel() == Next::kBytes);
  }
  talk.now_us = kSecondUs;
  CHECK(cancel() == Next::kBytes);
  CHECK(cancel() == Next::kBytes);
  CHECK(cancel() == Next::kRefuse);
  CHECK(talk.reason == "streams are cancelled too fast");
}

TEST_CASE("calls that the server ends are no cancels, and ten thousand pass", "[net][guard]") {
  Talk talk;
  for (std::uint32_t stream = 1; stream < 20'000; stream += 2) {
    REQUIRE(talk.Says(Open(stream)) == Next::kBytes);
    talk.guard.Observe(Trailers(stream), talk.now_us);
    REQUIRE(talk.Says(Cancel(stream)) == Next::kBytes);  // it crossed the trailers
  }
  CHECK(talk.budget.open() == 0);
}

TEST_CASE("a stream that the server is made to reset was given up", "[net][guard]") {
  GuardLimits limits;
  limits.streams_max = 10;
  Talk talk(limits);
  std::uint32_t stream = 1;
  for (; talk.Says(Open(stream)) == Next::kBytes; stream += 2) {
    REQUIRE(stream < 100);
    talk.guard.Observe(Cancel(stream), talk.now_us);
  }
  CHECK(stream == 21);
  CHECK(talk.budget.open() == 0);
}

TEST_CASE("streams over the limit wait with what is behind them, and pass as others end",
          "[net][guard]") {
  GuardLimits limits;
  limits.streams_max = 3;
  Talk talk(limits);
  for (const std::uint32_t stream : {1, 3, 5}) {
    CHECK(talk.Says(Open(stream)) == Next::kBytes);
  }
  CHECK(talk.Says(Open(7) + Open(9)) == Next::kWait);
  CHECK(talk.held == Open(7) + Open(9));
  talk.guard.Observe(Trailers(3), talk.now_us);
  CHECK(talk.Says("") == Next::kWait);
  CHECK(talk.held == Open(9));
  talk.guard.Observe(Trailers(1), talk.now_us);
  CHECK(talk.Says("") == Next::kBytes);
}

TEST_CASE("streams that were given up count until gRPC has had time", "[net][guard]") {
  GuardLimits limits;
  limits.streams_max = 100;
  Talk talk(limits);
  std::uint32_t stream = 1;
  for (; talk.Says(Open(stream) + Cancel(stream)) == Next::kBytes; stream += 2) {
    REQUIRE(stream < 1000);
  }
  CHECK(stream == 201);
  CHECK(talk.held == Open(stream) + Cancel(stream));
  talk.now_us += static_cast<MonotonicUs>(10 / kClearedPerSecond * kSecondUs);
  CHECK(talk.Says("") == Next::kBytes);
}

TEST_CASE("one connection leaves something to others, and each may have one stream",
          "[net][guard]") {
  StreamBudget budget(30);
  GuardLimits limits;
  const auto fill = [&](ConnectionGuard& guard) {
    std::string bytes = ClientPreface();
    for (std::uint32_t stream = 1; stream < 200; stream += 2) {
      bytes += Open(stream);
    }
    const std::int64_t before = budget.open();
    CHECK(guard.Inspect(bytes, 0).next == Next::kWait);
    return budget.open() - before;
  };
  ConnectionGuard first(limits, budget, 0);
  CHECK(fill(first) == 20);
  ConnectionGuard second(limits, budget, 0);
  CHECK(fill(second) == 7);
  first.End(0);  // what leaves with open streams still counts, more than before
  ConnectionGuard third(limits, budget, 0);
  CHECK(fill(third) == 1);
  std::vector<std::unique_ptr<ConnectionGuard>> others;
  for (int i = 0; i < 50; ++i) {
    others.push_back(std::make_unique<ConnectionGuard>(limits, budget, 0));
    CHECK(fill(*others.back()) >= 1);
  }
  for (auto& one : others) {
    one->End(0);
  }
  ConnectionGuard later(limits, budget, kSecondUs);
  CHECK(later.Inspect(ClientPreface() + Open(1) + Open(3) + Open(5), kSecondUs).next ==
        Next::kBytes);
}

TEST_CASE("many connections together give up no more than gRPC clears", "[net][guard]") {
  constexpr std::int64_t kMax = 30;
  StreamBudget budget(kMax);
  int given_up = 0;
  std::vector<std::unique_ptr<ConnectionGuard>> guards;
  const auto one_each = [&](MonotonicUs now_us) {
    for (int i = 0; i < 100; ++i) {
      guards.push_back(std::make_unique<ConnectionGuard>(GuardLimits(), budget, now_us));
      const auto verdict = guards.back()->Inspect(ClientPreface() + Open(1) + Cancel(1), now_us);
      given_up += verdict.next == Next::kBytes ? 1 : 0;
    }
  };
  one_each(0);
  CHECK(given_up == kMax);
  one_each(static_cast<MonotonicUs>(10 / kClearedPerSecond * kSecondUs));
  CHECK(given_up == kMax + 10);
}

TEST_CASE("frames that carry nothing have an allowance, which the server's own earn",
          "[net][guard]") {
  const std::string frame = GENERATE(
      as<std::string>(), Frame(kPingFrame, 0, 0, "12345678"), Frame(kSettingsFrame, 0, 0, ""),
      Frame(kSettingsFrame, kAckFlag, 0, ""), Frame(kPingFrame, kAckFlag, 0, "12345678"),
      Frame(kWindowUpdateFrame, 0, 0, kCancel), Frame(kPriorityFrame, 0, 1, kCancel + "\x01"),
      Frame(kResetFrame, 0, 99, kCancel), Frame(kDataFrame, 0, 1, ""), Frame(kDataFrame, 0, 1, "x"),
      Frame(static_cast<RawFrameType>(77), 0, 0, "unknown"));
  GuardLimits limits;
  limits.control_frames_burst = 100;
  Talk talk(limits);
  CHECK(talk.SaysTimes(80, frame) == Next::kBytes);
  for (int i = 0; i < 1000; ++i) {  // as many as an honest client may answer
    talk.guard.Observe(Frame(kDataFrame, 0, 1, "token"), talk.now_us);
    REQUIRE(talk.SaysTimes(3, frame) == Next::kBytes);
  }
  CHECK(talk.SaysTimes(200, frame) == Next::kRefuse);
  CHECK(talk.reason == "too many frames that carry nothing");
}

TEST_CASE("a client that stood still answers what came on all of its streams", "[net][guard]") {
  constexpr std::uint32_t kStreams = 256;
  constexpr int kMessages = 60;  // of each, more together than may be answered at once otherwise
  const std::string update = Frame(kWindowUpdateFrame, 0, 0, kCancel);
  Talk talk;
  for (std::uint32_t i = 0; i < kStreams; ++i) {
    REQUIRE(talk.Says(Open(2 * i + 1)) == Next::kBytes);
  }
  const auto answer = [&] {
    for (int message = 0; message < kMessages; ++message) {
      for (std::uint32_t i = 0; i < kStreams; ++i) {
        talk.guard.Observe(Frame(kDataFrame, 0, 2 * i + 1, "token"), talk.now_us);
      }
    }
    return talk.SaysTimes(2 * kMessages * static_cast<int>(kStreams), update);
  };
  CHECK(answer() == Next::kBytes);
  CHECK(answer() == Next::kBytes);
  CHECK(talk.SaysTimes(64 * 4 * static_cast<int>(kStreams) + 1001, update) == Next::kRefuse);
}

TEST_CASE("what one stream's messages earn is not kept without end", "[net][guard]") {
  const std::string update = Frame(kWindowUpdateFrame, 0, 0, kCancel);
  const auto sent = GENERATE(1256, 1257);  // 1,000 at once, and 64 messages' four
  Talk talk;
  REQUIRE(talk.Says(Open(1)) == Next::kBytes);
  for (int message = 0; message < 10'000; ++message) {
    talk.guard.Observe(Frame(kDataFrame, 0, 1, "token"), talk.now_us);
  }
  CHECK(talk.SaysTimes(sent, update) == (sent == 1256 ? Next::kBytes : Next::kRefuse));
}

TEST_CASE("answers to the server's settings and pings are free", "[net][guard]") {
  GuardLimits limits;
  limits.control_frames_burst = 2;
  Talk talk(limits);
  CHECK_FALSE(talk.guard.settings_acknowledged());
  for (int i = 0; i < 1000; ++i) {
    talk.guard.Observe(Frame(kSettingsFrame, 0, 0, "") + Frame(kPingFrame, 0, 0, "12345678"), 0);
    REQUIRE(talk.Says(Frame(kSettingsFrame, kAckFlag, 0, "") +
                      Frame(kPingFrame, kAckFlag, 0, "12345678")) == Next::kBytes);
  }
  CHECK(talk.guard.settings_acknowledged());
}

TEST_CASE("a guard that is off lets everything pass", "[net][guard]") {
  GuardLimits limits;
  limits.enabled = false;
  Talk talk(limits, 1);
  for (std::uint32_t stream = 1; stream < 10'000; stream += 2) {
    REQUIRE(talk.Says(Open(stream) + Cancel(stream)) == Next::kBytes);
  }
  CHECK(talk.Says(Frame(kHeadersFrame, 0, 99'999, std::string(16'000, '\xff'))) == Next::kBytes);
  CHECK(talk.Says(Frame(kPingFrame, 0, 0, "12345678")) == Next::kBytes);
}

// Frames at random, honest ones or any.
class Frames final {
 public:
  explicit Frames(std::uint64_t seed) : random_(seed) {}

  std::string Some(bool honest) {
    std::string bytes = ClientPreface();
    for (int i = 0; i < 60; ++i) {
      bytes += honest || Below(4) != 0 ? Honest() : Any();
    }
    return bytes;
  }
  std::size_t Below(std::size_t end) { return random_() % end; }

 private:
  std::string Text(std::size_t size) {
    std::string text(size, '\0');
    for (char& byte : text) {
      byte = static_cast<char>(random_());
    }
    return text;
  }
  std::string Honest() {
    switch (Below(6)) {
      case 0: {
        stream_ += 2;
        const std::string block =
            RequestHeaders("/x") + LiteralHeader("n", std::string(Below(100), 'v'));
        const std::size_t cut = Below(block.size());
        return Below(2) == 0
                   ? Frame(kHeadersFrame, kEndHeadersFlag, stream_, block)
                   : Frame(kHeadersFrame, 0, stream_, block.substr(0, cut)) +
                         Frame(kContinuationFrame, kEndHeadersFlag, stream_, block.substr(cut));
      }
      case 1: return Frame(kDataFrame, 0, stream_, Text(Below(3000)));
      case 2: return Frame(kPingFrame, 0, 0, Text(8));
      case 3: return Frame(kWindowUpdateFrame, 0, 0, Text(4));
      case 4: return Frame(kResetFrame, 0, stream_, Text(4));
      default: return Frame(static_cast<RawFrameType>(20 + Below(100)), 0, 1, Text(5));
    }
  }
  std::string Any() {
    // One by one: in which order a call's arguments are drawn is the compiler's choice.
    const std::string text = Text(Below(300));
    const auto stream = static_cast<std::uint32_t>(Below(50));
    const auto flags = static_cast<std::uint8_t>(random_());
    const auto type = static_cast<RawFrameType>(Below(12));
    return Frame(type, flags, stream, text);
  }

  std::mt19937_64 random_;
  std::uint32_t stream_ = 1;
};

struct Heard {
  std::string passed;
  Next next = Next::kBytes;
  std::string reason;
};

// As the relay does: what did not pass is given again, with what came.
Heard Feed(const std::string& bytes, const std::function<std::size_t()>& piece) {
  StreamBudget budget(40);
  GuardLimits limits;
  limits.control_frames_burst = 60;
  ConnectionGuard guard(limits, budget, 0);
  Heard heard;
  std::string held;
  for (std::size_t begin = 0; begin < bytes.size() && heard.next == Next::kBytes;) {
    const std::size_t size = std::min(piece(), bytes.size() - begin);
    held += bytes.substr(begin, size);
    begin += size;
    const auto verdict = guard.Inspect(held, 0);
    heard.passed += held.substr(0, verdict.pass);
    held.erase(0, verdict.pass);
    heard.next = verdict.next;
    heard.reason = verdict.reason;
    if (heard.next == Next::kBytes) {
      REQUIRE(held.size() < kFrameHeaderBytes);
    }
  }
  return heard;
}

TEST_CASE("frames pass unchanged, and are refused alike, wherever they are cut",
          "[net][guard][fuzz]") {
  const bool honest = GENERATE(true, false);
  int refused = 0;
  constexpr int kSequences = 150;
  for (std::uint64_t seed = 1; seed <= kSequences; ++seed) {
    CAPTURE(seed);
    Frames frames(seed);
    const std::string bytes = frames.Some(honest);
    const Heard whole = Feed(bytes, [&] { return bytes.size(); });
    const Heard single = Feed(bytes, [] { return std::size_t{1}; });
    const Heard pieces = Feed(bytes, [&] { return 1 + frames.Below(40); });
    for (const Heard* const one : {&single, &pieces}) {
      REQUIRE(one->next == whole.next);
      REQUIRE(one->reason == whole.reason);
      // A piece of a frame that is refused for its payload may have passed before.
      REQUIRE(one->passed.size() >= whole.passed.size());
      REQUIRE(bytes.starts_with(one->passed));
    }
    REQUIRE(bytes.starts_with(whole.passed));
    refused += whole.next == Next::kRefuse ? 1 : 0;
    if (honest && whole.next == Next::kBytes) {
      REQUIRE(whole.passed == bytes);
    }
  }
  CHECK((honest ? kSequences - refused : refused) > kSequences / 2);
}

TEST_CASE("the server's frames are known wherever they are cut", "[net][guard][fuzz]") {
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    Frames frames(seed);
    StreamBudget budget(1000);
    ConnectionGuard guard({}, budget, 0);
    std::string client = ClientPreface();
    std::string server;
    std::int64_t ended = 0;
    for (std::uint32_t stream = 1; stream < 100; stream += 2) {
      client += Open(stream);
      server += Frame(kDataFrame, 0, stream, std::string(frames.Below(300), 'x'));
      if (frames.Below(2) == 0) {
        server += Trailers(stream);
        ++ended;
      }
    }
    REQUIRE(guard.Inspect(client, 0).next == Next::kBytes);
    REQUIRE(budget.open() == 50);
    while (!server.empty()) {
      const std::size_t size = std::min(server.size(), 1 + frames.Below(50));
      guard.Observe(server.substr(0, size), 0);
      server.erase(0, size);
      const std::size_t left = guard.ServerBytesToBoundary();
      REQUIRE(left <= server.size());
    }
    REQUIRE(guard.ServerBytesToBoundary() == 0);
    REQUIRE(budget.open() == 50 - ended);
  }
}

}  // namespace
}  // namespace dsa
