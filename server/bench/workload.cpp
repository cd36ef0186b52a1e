#include "server/bench/workload.h"

#include "common/prng.h"

#include <algorithm>
#include <cmath>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

// Keys of different uses of one seed.
enum class Use : std::uint64_t { kInputLength = 1, kOutputLength, kPrefix, kPrompt, kWarmUp };

std::uint64_t Key(std::uint64_t seed, Use use, std::int64_t index) {
  return CounterBits(CounterBits(seed, static_cast<std::uint64_t>(use)),
                     static_cast<std::uint64_t>(index));
}

// Uniform in mean * [1 - ratio, 1 + ratio], both ends included.
std::int64_t DrawLength(std::int64_t mean, double ratio, std::uint64_t bits) {
  const auto reach = static_cast<std::int64_t>(std::floor(static_cast<double>(mean) * ratio));
  const auto choices = static_cast<std::uint64_t>(2 * reach + 1);
  return mean - reach + static_cast<std::int64_t>(bits % choices);
}

}  // namespace

std::int64_t WorkloadRequest::input_tokens() const {
  auto tokens = static_cast<std::int64_t>(token_ids.size());
  for (const PromptPart& part : parts) {
    tokens += part.tokens;
  }
  return tokens;
}

std::vector<std::int32_t> MakePrompt(const WorkloadRequest& request, std::int64_t vocabulary) {
  if (request.parts.empty()) {
    return request.token_ids;
  }
  std::vector<std::int32_t> ids;
  ids.reserve(static_cast<std::size_t>(request.input_tokens()));
  for (const PromptPart& part : request.parts) {
    for (std::int64_t i = 0; i < part.tokens; ++i) {
      ids.push_back(static_cast<std::int32_t>(CounterBits(part.key, static_cast<std::uint64_t>(i)) %
                                              static_cast<std::uint64_t>(vocabulary)));
    }
  }
  return ids;
}

std::vector<WorkloadRequest> MakeRandomWorkload(const RandomWorkloadOptions& options) {
  const std::uint64_t prefix_key = Key(options.seed, Use::kPrefix, 0);
  std::vector<WorkloadRequest> requests;
  for (std::int64_t i = 0; i < options.requests; ++i) {
    const std::int64_t own = options.input_tokens - options.prefix_tokens;
    WorkloadRequest request;
    if (options.prefix_tokens > 0) {
      request.parts.push_back({.key = prefix_key, .tokens = options.prefix_tokens});
    }
    const std::int64_t drawn =
        DrawLength(own, options.range_ratio, Key(options.seed, Use::kInputLength, i));
    request.parts.push_back(
        {.key = Key(options.seed, Use::kPrompt, i), .tokens = std::max<std::int64_t>(drawn, 1)});
    const std::int64_t output = DrawLength(options.output_tokens, options.range_ratio,
                                           Key(options.seed, Use::kOutputLength, i));
    request.output_tokens = std::max<std::int64_t>(output, 1);
    request.source = fmt::format("request {}", i);
    requests.push_back(std::move(request));
  }
  return requests;
}

Result<std::int64_t> RemoveTooLong(std::vector<WorkloadRequest>& requests,
                                   std::int64_t context_tokens, TooLong policy) {
  const auto is_too_long = [context_tokens](const WorkloadRequest& request) {
    return request.input_tokens() + request.output_tokens > context_tokens;
  };
  const auto first = std::find_if(requests.begin(), requests.end(), is_too_long);
  if (policy == TooLong::kRefuse && first != requests.end()) {
    return InvalidArgument(fmt::format(
        "{}: {} tokens and {} to generate, the server's context is {}; --skip-too-long leaves such "
        "requests out",
        first->source, first->input_tokens(), first->output_tokens, context_tokens));
  }
  const auto removed = static_cast<std::int64_t>(std::erase_if(requests, is_too_long));
  if (requests.empty()) {
    return InvalidArgument(
        fmt::format("no request fits into the server's context of {} tokens: {} "
                    "are too long",
                    context_tokens, removed));
  }
  return removed;
}

std::vector<WorkloadRequest> MakeWarmUp(const std::vector<WorkloadRequest>& requests,
                                        std::int64_t count, std::uint64_t seed) {
  std::vector<WorkloadRequest> result;
  for (std::int64_t i = 0; i < count; ++i) {
    const WorkloadRequest& like = requests[static_cast<std::size_t>(i) % requests.size()];
    WorkloadRequest request;
    request.parts.push_back({.key = Key(seed, Use::kWarmUp, i), .tokens = like.input_tokens()});
    request.output_tokens = like.output_tokens;
    request.source = fmt::format("warm-up request {}", i);
    result.push_back(std::move(request));
  }
  return result;
}

}  // namespace dsa::bench
