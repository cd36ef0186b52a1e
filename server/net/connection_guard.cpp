#include "server/net/connection_guard.h"

#include <algorithm>

namespace dsa {
namespace {

constexpr char kWaits[] = "";
constexpr char kBlockTooLarge[] = "a header block is too large";
constexpr char kBlockInterrupted[] = "a header block is interrupted";
constexpr char kBlockShape[] = "a header block holds an integer or a string of senseless size";
constexpr char kCancels[] = "streams are cancelled too fast";
constexpr char kControl[] = "too many frames that carry nothing";

constexpr double kCancelBurstSeconds = 10;
constexpr double kEarnedPerStream = 8;
constexpr double kEarnedPerServerFrame = 4;  // two window updates, a ping, and one to spare
// Kept of these beside what may be sent at once: a client that stood still for half a second
// answers all that came meanwhile, on all of its streams.
constexpr double kEarnedMaxPerStream = 64 * kEarnedPerServerFrame;
constexpr std::uint32_t kTinyDataBytes = 64;

}  // namespace

ConnectionGuard::ConnectionGuard(const GuardLimits& limits, StreamBudget& budget,
                                 MonotonicUs now_us)
    : limits_(limits),
      share_(budget),
      cancels_(kCancelBurstSeconds * static_cast<double>(limits.cancels_per_s),
               static_cast<double>(limits.cancels_per_s), now_us),
      control_(static_cast<double>(limits.control_frames_burst),
               static_cast<double>(limits.control_frames_per_s), now_us) {}

ConnectionGuard::Verdict ConnectionGuard::Inspect(std::string_view bytes, MonotonicUs now_us) {
  const std::size_t preface = std::min(preface_left_, bytes.size());
  const std::string_view expected =
      kHttp2Preface.substr(kHttp2Preface.size() - preface_left_, preface);
  if (bytes.substr(0, preface) != expected) {
    return {.pass = 0, .next = Next::kRefuse, .reason = {}};
  }
  preface_left_ -= preface;
  Verdict verdict = InspectFrames(bytes.substr(preface), now_us);
  verdict.pass += preface;
  return verdict;
}

ConnectionGuard::Verdict ConnectionGuard::InspectFrames(std::string_view bytes,
                                                        MonotonicUs now_us) {
  std::size_t pass = 0;
  while (true) {
    const std::string_view rest = bytes.substr(pass);
    if (payload_left_ > 0 && !rest.empty()) {
      const std::size_t now = std::min<std::size_t>(payload_left_, rest.size());
      if (!PassPayload(rest.substr(0, now))) {
        return {.pass = pass, .next = Next::kRefuse, .reason = kBlockShape};
      }
      payload_left_ -= static_cast<std::uint32_t>(now);
      pass += now;
      continue;
    }
    if (rest.size() < kFrameHeaderBytes) {
      return {.pass = pass, .next = Next::kBytes, .reason = {}};
    }
    const FrameHeader frame = ReadFrameHeader(rest);
    const char* const reason = limits_.enabled ? Judge(frame, now_us) : nullptr;
    if (reason != nullptr) {
      const bool waits = reason == kWaits;
      return {.pass = pass, .next = waits ? Next::kWait : Next::kRefuse, .reason = reason};
    }
    begun_ = true;
    BeginPayload(frame);
    pass += kFrameHeaderBytes;
  }
}

const char* ConnectionGuard::Judge(const FrameHeader& frame, MonotonicUs now_us) {
  const bool continues = frame.type == FrameType::kContinuation && frame.stream == block_stream_;
  if (in_block_ && !continues) {
    return kBlockInterrupted;
  }
  switch (frame.type) {
    case FrameType::kHeaders: return JudgeHeaders(frame, now_us);
    case FrameType::kContinuation:
      return in_block_ ? JudgeBlock(frame) : JudgeControl(frame, now_us);
    case FrameType::kRstStream: return JudgeReset(frame, now_us);
    case FrameType::kData: {
      const bool carries = frame.end_stream() || frame.payload_bytes >= kTinyDataBytes;
      return carries ? nullptr : JudgeControl(frame, now_us);
    }
    default: return IsAnswer(frame) ? nullptr : JudgeControl(frame, now_us);
  }
}

const char* ConnectionGuard::JudgeHeaders(const FrameHeader& frame, MonotonicUs now_us) {
  const bool opens = frame.stream > last_stream_ && frame.stream % 2 == 1;
  if (opens && !share_.MayOpen(limits_.streams_max, now_us)) {
    return kWaits;
  }
  if (!opens && !TakeControl(1, now_us)) {
    return kControl;
  }
  block_bytes_ = 0;
  if (const char* const reason = JudgeBlock(frame); reason != nullptr) {
    return reason;
  }
  if (opens) {
    last_stream_ = frame.stream;
    open_.push_back(frame.stream);
    share_.Open();
    control_.Give(kEarnedPerStream);
  }
  return nullptr;
}

// Frame headers count, so that frames without a payload end, too.
const char* ConnectionGuard::JudgeBlock(const FrameHeader& frame) {
  block_bytes_ += static_cast<std::int64_t>(kFrameHeaderBytes) + frame.payload_bytes;
  return block_bytes_ > limits_.header_bytes_max ? kBlockTooLarge : nullptr;
}

const char* ConnectionGuard::JudgeReset(const FrameHeader& frame, MonotonicUs now_us) {
  if (!std::binary_search(open_.begin(), open_.end(), frame.stream)) {
    return JudgeControl(frame, now_us);
  }
  if (!cancels_.Take(1, now_us)) {
    return kCancels;
  }
  Remove(frame.stream);
  share_.GiveUp(1, now_us);
  return nullptr;
}

const char* ConnectionGuard::JudgeControl(const FrameHeader& frame, MonotonicUs now_us) {
  constexpr std::uint32_t kBytesPerToken = 64;
  const std::uint32_t cost = 1 + frame.payload_bytes / kBytesPerToken;
  return TakeControl(cost, now_us) ? nullptr : kControl;
}

bool ConnectionGuard::TakeControl(double cost, MonotonicUs now_us) {
  if (earned_ >= cost) {
    earned_ -= cost;
    return true;
  }
  return control_.Take(cost, now_us);
}

void ConnectionGuard::EarnControl() {
  if (earned_ < kEarnedMaxPerStream * static_cast<double>(open_.size())) {
    earned_ += kEarnedPerServerFrame;
  } else {
    control_.Give(kEarnedPerServerFrame);
  }
}

// Of something that the server has sent.
bool ConnectionGuard::IsAnswer(const FrameHeader& frame) {
  std::int64_t* unanswered = nullptr;
  if (frame.type == FrameType::kSettings && frame.ack()) {
    unanswered = &settings_unanswered_;
  } else if (frame.type == FrameType::kPing && frame.ack()) {
    unanswered = &pings_unanswered_;
  }
  if (unanswered == nullptr || *unanswered == 0) {
    return false;
  }
  --*unanswered;
  settings_acknowledged_ = settings_acknowledged_ || frame.type == FrameType::kSettings;
  return true;
}

void ConnectionGuard::BeginPayload(const FrameHeader& frame) {
  constexpr std::uint32_t kPriorityBytes = 5;
  payload_left_ = frame.payload_bytes;
  prefix_left_ = 0;
  fragment_left_ = 0;
  pad_length_next_ = false;
  if (frame.type == FrameType::kHeaders) {
    in_block_ = !frame.end_headers();
    block_stream_ = frame.stream;
    shape_.Begin(static_cast<std::uint32_t>(limits_.header_bytes_max));
    pad_length_next_ = frame.padded();
    prefix_left_ = (frame.padded() ? 1 : 0) + (frame.has_priority() ? kPriorityBytes : 0);
    fragment_left_ = frame.payload_bytes - std::min(prefix_left_, frame.payload_bytes);
  } else if (in_block_) {
    in_block_ = !frame.end_headers();
    fragment_left_ = frame.payload_bytes;
  }
}

// Part of the payload of the frame that passes.  False where its header block has no sense.
bool ConnectionGuard::PassPayload(std::string_view bytes) {
  if (pad_length_next_) {
    const auto padding = std::uint32_t{static_cast<std::uint8_t>(bytes.front())};
    fragment_left_ -= std::min(padding, fragment_left_);
    pad_length_next_ = false;
  }
  const auto prefix = std::min<std::size_t>(prefix_left_, bytes.size());
  prefix_left_ -= static_cast<std::uint32_t>(prefix);
  const std::string_view fragment = bytes.substr(prefix, fragment_left_);
  fragment_left_ -= static_cast<std::uint32_t>(fragment.size());
  return shape_.Feed(fragment) || !limits_.enabled;
}

void ConnectionGuard::Observe(std::string_view bytes, MonotonicUs now_us) {
  while (!bytes.empty()) {
    if (server_payload_left_ > 0) {
      const std::size_t now = std::min<std::size_t>(server_payload_left_, bytes.size());
      server_payload_left_ -= static_cast<std::uint32_t>(now);
      bytes.remove_prefix(now);
      continue;
    }
    const std::size_t now = std::min(kFrameHeaderBytes - server_header_bytes_, bytes.size());
    std::copy_n(bytes.begin(), now, server_header_.begin() + server_header_bytes_);
    server_header_bytes_ += now;
    bytes.remove_prefix(now);
    if (server_header_bytes_ == kFrameHeaderBytes) {
      const FrameHeader frame = ReadFrameHeader({server_header_.data(), kFrameHeaderBytes});
      server_header_bytes_ = 0;
      server_payload_left_ = frame.payload_bytes;
      ObserveFrame(frame, now_us);
    }
  }
}

void ConnectionGuard::ObserveFrame(const FrameHeader& frame, MonotonicUs now_us) {
  const bool carries = frame.type == FrameType::kData || frame.type == FrameType::kHeaders;
  if (carries) {
    EarnControl();
  }
  if (carries && frame.end_stream()) {
    if (Remove(frame.stream)) {
      share_.Close();
    }
  } else if (frame.type == FrameType::kRstStream) {
    if (Remove(frame.stream)) {  // a client can make a server do so by breaking a rule
      share_.GiveUp(1, now_us);
      cancels_.Take(1, now_us);
    }
  } else if (frame.type == FrameType::kSettings && !frame.ack()) {
    ++settings_unanswered_;
  } else if (frame.type == FrameType::kPing && !frame.ack()) {
    ++pings_unanswered_;
  }
}

std::size_t ConnectionGuard::ServerBytesToBoundary() const {
  return server_header_bytes_ > 0 ? kFrameHeaderBytes - server_header_bytes_ : server_payload_left_;
}

void ConnectionGuard::End(MonotonicUs now_us) {
  share_.GiveUp(share_.open(), now_us);
  open_.clear();
}

bool ConnectionGuard::Remove(std::uint32_t stream) {
  const auto found = std::lower_bound(open_.begin(), open_.end(), stream);
  if (found == open_.end() || *found != stream) {
    return false;
  }
  open_.erase(found);
  return true;
}

}  // namespace dsa
