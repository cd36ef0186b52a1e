// Laws of common/log_writer.h: appending never waits, nothing is lost in silence.
#include "common/log_writer.h"

#include "common/check.h"
#include "tests/log_capture.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <memory>
#include <string>

#include <catch2/catch.hpp>
#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <unistd.h>

namespace dsa {
namespace {

constexpr std::int64_t kBytes = 1 << 10;
constexpr std::chrono::milliseconds kSoon{20'000};

std::string DroppedLine(std::int64_t lines) {
  return "dropped " + std::to_string(lines) + "\n";
}

struct Pipe {
  Pipe() {
    signal(SIGPIPE, SIG_IGN);
    std::array<int, 2> ends{};
    DSA_CHECK(pipe2(ends.data(), O_CLOEXEC) == 0, "pipe: none");
    read = ends[0];
    write = ends[1];
    fcntl(write, F_SETPIPE_SZ, 4096);
  }
  ~Pipe() {
    close(read);
    close(write);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;

  // Reads what there is, at least a byte.
  void ReadMore() {
    pollfd ready = {.fd = read, .events = POLLIN, .revents = 0};
    INFO("nothing more came behind: "
         << text.substr(text.size() - std::min<std::size_t>(text.size(), 100)));
    REQUIRE(poll(&ready, 1, static_cast<int>(kSoon.count())) == 1);
    std::array<char, 512> bytes{};
    const ssize_t count = ::read(read, bytes.data(), bytes.size());
    REQUIRE(count > 0);
    text.append(bytes.data(), static_cast<std::size_t>(count));
  }
  void ReadUntil(const std::string& end) {
    while (!text.ends_with(end)) {
      ReadMore();
    }
  }

  int read;
  int write;
  std::string text;
};

std::unique_ptr<LogWriter> Started(int descriptor) {
  auto writer = std::make_unique<LogWriter>(LogWriter::Options{
      .descriptor = descriptor, .bytes_max = kBytes, .dropped_line = DroppedLine});
  writer->Start();
  return writer;
}

std::string Line(int number) {
  return "line " + std::to_string(number) + "\n";
}

TEST_CASE("lines come out whole and in order", "[log_writer]") {
  Pipe pipe;
  const auto writer = Started(pipe.write);
  std::string expected;
  for (int i = 0; i < 100; ++i) {
    writer->Append(Line(i));
    expected += Line(i);
    if (i % 10 == 0) {
      REQUIRE(writer->Flush(kSoon));
    }
  }
  REQUIRE(writer->Flush(kSoon));
  pipe.ReadUntil(Line(99));
  CHECK(pipe.text == expected);
  CHECK(writer->lines_done() == 100);
  CHECK_FALSE(writer->waiting());
}

TEST_CASE("a pipe nobody reads delays nobody; the lines dropped are counted where they are missing",
          "[log_writer]") {
  Pipe pipe;
  const bool shared = GENERATE(false, true);  // non-blocking by another process
  CAPTURE(shared);
  if (shared) {
    fcntl(pipe.write, F_SETFL, O_WRONLY | O_NONBLOCK);
  }
  const int flags = fcntl(pipe.write, F_GETFL);
  const auto writer = Started(pipe.write);
  int lines = 0;
  do {
    writer->Append(Line(lines++));
  } while (lines % 50 != 0 || writer->Flush(std::chrono::milliseconds(100)));
  // It is stuck.
  constexpr int kMore = 20'000;
  for (int i = 0; i < kMore; ++i) {
    writer->Append(Line(lines++));  // hangs here where it waits
  }
  CHECK(writer->waiting());
  writer->CountDropped();
  writer->Append("\n");  // there may be room for it, but not before what is missing is said
  const std::string last = "last\n";
  while (pipe.text.find("dropped ") == std::string::npos) {
    pipe.ReadMore();  // room again
  }
  writer->Append(last);
  pipe.ReadUntil(last);
  REQUIRE(writer->Flush(kSoon));
  // From the first on, none is missing before the number that are; behind it come the others.
  int next = 0;
  std::int64_t dropped = 0;
  std::size_t at = 0;
  while (at < pipe.text.size()) {
    const std::string line = pipe.text.substr(at, pipe.text.find('\n', at) + 1 - at);
    at += line.size();
    if (line.starts_with("dropped ")) {
      dropped += std::stoll(line.substr(8));
      next += std::stoi(line.substr(8));
    } else if (line != last) {
      CHECK(line == Line(next));
      ++next;
    }
  }
  CHECK(dropped > kMore / 2);
  CHECK(next == lines + 2);
  CHECK(writer->lines_done() == lines + 3);
  CHECK(fcntl(pipe.write, F_GETFL) == flags);
  // As if nothing had been.
  pipe.text.clear();
  for (int i = 0; i < 4; ++i) {
    writer->Append(Line(i));
    REQUIRE(writer->Flush(kSoon));
  }
  pipe.ReadUntil(Line(3));
  CHECK(pipe.text == Line(0) + Line(1) + Line(2) + Line(3));
}

TEST_CASE("a reader that is gone, or a full disk, costs the lines and nothing else",
          "[log_writer]") {
  const bool disk = GENERATE(false, true);
  CAPTURE(disk);
  Pipe pipe;
  const int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
  REQUIRE(full >= 0);
  int target = pipe.write;
  if (disk) {
    target = full;
  } else {
    close(pipe.read);
  }
  const int descriptor = dup(target);
  {
    const auto writer = Started(descriptor);
    writer->Append(Line(0));
    REQUIRE(writer->Flush(kSoon));
    writer->Append(Line(1));
    REQUIRE(writer->Flush(kSoon));
    CHECK_FALSE(writer->waiting());
    // Writing works again.
    Pipe good;
    dup2(good.write, descriptor);
    writer->Append(Line(2));
    good.ReadUntil(Line(2));
    CHECK(good.text == "dropped 2\n" + Line(2));
  }
  close(descriptor);
  close(full);
  if (!disk) {
    pipe.read = -1;
  }
}

TEST_CASE("half a line is ended before another begins", "[log_writer]") {
  std::FILE* const file = std::tmpfile();
  REQUIRE(file != nullptr);
  signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit low = before;
  low.rlim_cur = 4;
  LogWriter writer({.descriptor = fileno(file), .bytes_max = kBytes, .dropped_line = DroppedLine});
  REQUIRE(setrlimit(RLIMIT_FSIZE, &low) == 0);
  writer.Append(Line(0));
  setrlimit(RLIMIT_FSIZE, &before);
  writer.Append(Line(1));
  std::array<char, 64> bytes{};
  const ssize_t count = pread(fileno(file), bytes.data(), bytes.size(), 0);
  std::fclose(file);
  REQUIRE(count > 0);
  CHECK(std::string(bytes.data(), static_cast<std::size_t>(count)) ==
        "line\ndropped 1\n" + Line(1));
}

TEST_CASE("without a thread the caller writes", "[log_writer]") {
  Pipe pipe;
  LogWriter writer({.descriptor = pipe.write, .bytes_max = kBytes, .dropped_line = DroppedLine});
  writer.Append(Line(0));
  CHECK_FALSE(writer.waiting());
  CHECK(writer.Flush(std::chrono::milliseconds(0)));
  pipe.ReadUntil(Line(0));
}

TEST_CASE("the text log is for people, and stays one line", "[log]") {
  const testing::LogCapture log;
  Log(LogLevel::kInfo, "probe of quotes",
      {{"plain", "x y"}, {"quoted", "say \"hi\", c:\\d"}, {"control", "a\nb\x1b["}, {"count", 3}});
  const std::vector<std::string> lines = log.Lines("probe of quotes");
  REQUIRE(lines.size() == 1);
  CHECK(lines[0].ends_with(
      "probe of quotes  plain=\"x y\"  quoted='say \"hi\", c:\\d'  control=\"a\\nb\\u001b[\"  "
      "count=3"));
}

}  // namespace
}  // namespace dsa
