// The requests of a load test: their prompts, lengths and times, drawn from a seed or read from a
// file.  Prompts are recipes where they can be, so that a trace of long prompts needs no memory
// before it runs.  Main thread, before a run; nothing here knows gRPC.
#pragma once

#include "common/status.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dsa::bench {

// Tokens that follow from a key alone: two prompts that begin with equal parts share a prefix.
struct PromptPart {
  std::uint64_t key;
  std::int64_t tokens;  // > 0
};

struct WorkloadRequest {
  std::vector<PromptPart> parts;  // one of these two is empty
  std::vector<std::int32_t> token_ids;
  std::int64_t output_tokens = 0;          // > 0
  std::optional<std::int64_t> arrival_us;  // where the file has times: since its first request
  std::string source;                      // for messages: "trace.jsonl: line 12", "request 12"

  std::int64_t input_tokens() const;
};

// The prompt's ids, each below `vocabulary`.
std::vector<std::int32_t> MakePrompt(const WorkloadRequest& request, std::int64_t vocabulary);

struct RandomWorkloadOptions {
  std::int64_t requests;       // > 0
  std::int64_t input_tokens;   // > prefix_tokens
  std::int64_t output_tokens;  // > 0
  double range_ratio;          // in [0, 1): lengths are uniform in length * [1 - r, 1 + r]
  std::int64_t prefix_tokens;  // that all prompts begin with; >= 0
  std::uint64_t seed;
};
std::vector<WorkloadRequest> MakeRandomWorkload(const RandomWorkloadOptions& options);

// Text to ids, as the server does it.
using Encode = std::function<Result<std::vector<std::int32_t>>(const std::string& text)>;

struct FileWorkloadOptions {
  std::string path;
  std::int64_t requests;      // at most; 0: all
  std::int64_t block_tokens;  // that a hash id of a trace stands for; > 0
  std::uint64_t seed;
};

// Mooncake's trace, one JSON object a line: timestamp (ms), input_length, output_length, hash_ids.
// Each hash id becomes the same tokens wherever it occurs; the last one of a line may be cut.
Result<std::vector<WorkloadRequest>> ReadMooncakeTrace(const FileWorkloadOptions& options);

// Our own lines: "prompt" (text) or "token_ids", "output_length", and where wanted "timestamp"
// (ms).
Result<std::vector<WorkloadRequest>> ReadJsonLines(const FileWorkloadOptions& options,
                                                   const Encode& encode);

// A JSON array of conversations.  The first turn is the prompt and the second one's length is the
// output's; which conversations, and in which order, follows from the seed.  Conversations with
// fewer than two turns, or with an empty one, are left out.
Result<std::vector<WorkloadRequest>> ReadShareGpt(const FileWorkloadOptions& options,
                                                  const Encode& encode);

enum class TooLong : std::uint8_t { kRefuse, kSkip };

// Requests that a context of `context_tokens` cannot hold: the first is an error that names it, or
// all are taken out.  The number taken out.
Result<std::int64_t> RemoveTooLong(std::vector<WorkloadRequest>& requests,
                                   std::int64_t context_tokens, TooLong policy);

// As many requests with the lengths of the first ones and prompts that none of them has.
std::vector<WorkloadRequest> MakeWarmUp(const std::vector<WorkloadRequest>& requests,
                                        std::int64_t count, std::uint64_t seed);

}  // namespace dsa::bench
