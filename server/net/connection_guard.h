// What one HTTP/2 connection may do before it costs gRPC more than it costs the client.  It reads
// frame headers and the shape of header blocks as the bytes pass; it changes none of them.
//
// A client is refused for: header blocks that are too large, are interrupted or do not end;
// integers and strings in them that no encoder writes; cancelling streams, or sending frames that
// carry nothing, faster than its allowance.  Streams over the limits are not refused but wait, with
// what comes behind them, until others have ended.
//
// Not thread-safe; the relay's thread.
#pragma once

#include "common/clock.h"
#include "server/net/header_shape.h"
#include "server/net/http2_frame.h"
#include "server/net/stream_budget.h"
#include "server/net/token_bucket.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

struct GuardLimits {
  bool enabled = true;                                     // otherwise everything passes
  std::int64_t streams_max = 1024;                         // open, of one connection
  std::int64_t header_bytes_max = std::int64_t{32} << 10;  // of a block as it is sent
  std::int64_t cancels_per_s = 100;                        // and ten times as many at once
  // Frames that carry no call: settings, pings, priorities, window updates, empty or tiny data,
  // unknown ones.  What the server sends and the streams that are opened earn more, which is kept
  // beside the burst where the server has sent much at once.
  std::int64_t control_frames_per_s = 200;
  std::int64_t control_frames_burst = 1000;
};

class ConnectionGuard final {
 public:
  ConnectionGuard(const GuardLimits& limits, StreamBudget& budget, MonotonicUs now_us);
  ~ConnectionGuard() = default;
  ConnectionGuard(const ConnectionGuard&) = delete;
  ConnectionGuard& operator=(const ConnectionGuard&) = delete;

  enum class Next {
    kBytes,   // needs what comes behind the rest
    kWait,    // ask again when streams have ended, or later
    kRefuse,  // nothing more passes, ever
  };
  struct Verdict {
    std::size_t pass;  // bytes, from the front
    Next next;
    std::string_view reason;  // of kRefuse, a constant; empty: it is no HTTP/2
  };

  // The client's bytes behind those that have passed.  What does not pass must be given again.
  Verdict Inspect(std::string_view bytes, MonotonicUs now_us);

  // The server's bytes, which all pass.
  void Observe(std::string_view bytes, MonotonicUs now_us);

  // The connection is over: what is open was given up.
  void End(MonotonicUs now_us);

  // The client has sent the preface and the header of its first frame.
  bool begun() const { return begun_; }
  bool settings_acknowledged() const { return settings_acknowledged_; }
  // Bytes until the server's side stands between two frames, as far as is known now.
  std::size_t ServerBytesToBoundary() const;
  std::uint32_t last_stream() const { return last_stream_; }

 private:
  Verdict InspectFrames(std::string_view bytes, MonotonicUs now_us);
  // nullptr: it may pass; "": it must wait; otherwise why not.
  const char* Judge(const FrameHeader& frame, MonotonicUs now_us);
  const char* JudgeHeaders(const FrameHeader& frame, MonotonicUs now_us);
  const char* JudgeBlock(const FrameHeader& frame);
  const char* JudgeReset(const FrameHeader& frame, MonotonicUs now_us);
  const char* JudgeControl(const FrameHeader& frame, MonotonicUs now_us);
  bool TakeControl(double cost, MonotonicUs now_us);
  void EarnControl();
  bool IsAnswer(const FrameHeader& frame);
  void BeginPayload(const FrameHeader& frame);
  bool PassPayload(std::string_view bytes);
  void ObserveFrame(const FrameHeader& frame, MonotonicUs now_us);
  bool Remove(std::uint32_t stream);

  const GuardLimits limits_;
  StreamBudget::Share share_;
  TokenBucket cancels_;
  TokenBucket control_;
  double earned_ = 0;                // by the server's frames, beside control_
  std::vector<std::uint32_t> open_;  // ascending

  // The client's side.
  std::size_t preface_left_ = kHttp2Preface.size();
  bool begun_ = false;
  std::uint32_t last_stream_ = 0;
  std::uint32_t payload_left_ = 0;
  bool in_block_ = false;  // a header block has begun and not ended
  std::uint32_t block_stream_ = 0;
  std::int64_t block_bytes_ = 0;
  HeaderShape shape_;
  std::uint32_t prefix_left_ = 0;    // of this frame's payload, before its part of the block
  std::uint32_t fragment_left_ = 0;  // of the block
  bool pad_length_next_ = false;

  // The server's side.
  std::array<char, kFrameHeaderBytes> server_header_{};
  std::size_t server_header_bytes_ = 0;
  std::uint32_t server_payload_left_ = 0;
  bool settings_acknowledged_ = false;  // the first that the server has sent
  std::int64_t settings_unanswered_ = 0;
  std::int64_t pings_unanswered_ = 0;
};

}  // namespace dsa
