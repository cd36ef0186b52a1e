// Workloads that come from files.
#include "common/file.h"
#include "common/json.h"
#include "common/prng.h"
#include "server/bench/units.h"
#include "server/bench/workload.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <numeric>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr std::int64_t kFileBytesMax = std::int64_t{4} << 30;
constexpr std::int64_t kTokensMax = std::int64_t{1} << 24;  // of one prompt or answer
constexpr double kTimestampMsMax = 1e12;

std::string FileName(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

// Calls `read` for each line that is not blank, with an object that names the line, until `most`
// requests came of it (0: no limit) or one is wrong.
Result<std::vector<WorkloadRequest>> ReadLines(
    const FileWorkloadOptions& options,
    const std::function<Result<WorkloadRequest>(JsonObject& line)>& read) {
  DSA_ASSIGN_OR_RETURN(const std::string text, ReadFile(options.path, kFileBytesMax));
  std::vector<WorkloadRequest> requests;
  std::int64_t number = 0;
  for (std::size_t start = 0; start < text.size();) {
    const std::size_t end = std::min(text.find('\n', start), text.size());
    const std::string_view line = std::string_view(text).substr(start, end - start);
    start = end + 1;
    ++number;
    const bool blank = line.find_first_not_of(" \t\r") == std::string_view::npos;
    if (blank) {
      continue;
    }
    const std::string source = fmt::format("{}: line {}", FileName(options.path), number);
    DSA_ASSIGN_OR_RETURN(const Json json, ParseJson(line, source));
    DSA_ASSIGN_OR_RETURN(JsonObject object, JsonObject::From(json, source, ""));
    DSA_ASSIGN_OR_RETURN(WorkloadRequest request, read(object));
    DSA_RETURN_IF_ERROR(object.CheckAllRead());
    request.source = source;
    requests.push_back(std::move(request));
    if (static_cast<std::int64_t>(requests.size()) == options.requests) {
      break;
    }
  }
  if (requests.empty()) {
    return InvalidArgument(fmt::format("{}: no request in it", options.path));
  }
  const std::int64_t first_us = requests.front().arrival_us.value_or(0);
  for (WorkloadRequest& request : requests) {
    if (request.arrival_us) {
      *request.arrival_us -= first_us;
    }
    if (request.arrival_us.value_or(0) < 0) {
      return InvalidArgument(fmt::format("{}: timestamp: before the first line's", request.source));
    }
  }
  return requests;
}

Result<std::optional<std::int64_t>> ReadTimestampUs(JsonObject& line) {
  if (!line.Has("timestamp")) {
    return std::optional<std::int64_t>();
  }
  DSA_ASSIGN_OR_RETURN(const double ms, line.ReadDouble("timestamp", 0, kTimestampMsMax));
  return std::optional(static_cast<std::int64_t>(ms * kUsPerMs));
}

Result<std::vector<std::int64_t>> ReadInts(JsonObject& line, std::string_view key,
                                           std::int64_t maximum) {
  DSA_ASSIGN_OR_RETURN(const Json* array, line.ReadArray(key));
  std::vector<std::int64_t> values;
  for (const Json& element : *array) {
    const bool fits = element.is_number_integer() && element >= 0 && element <= maximum;
    if (!fits) {
      return line.MakeError(key, fmt::format("[{}]: {} is not a whole number in [0, {}]",
                                             values.size(), Brief(element), maximum));
    }
    values.push_back(element.get<std::int64_t>());
  }
  return values;
}

Result<WorkloadRequest> ReadTraceLine(JsonObject& line, const FileWorkloadOptions& options) {
  WorkloadRequest request;
  DSA_ASSIGN_OR_RETURN(request.arrival_us, ReadTimestampUs(line));
  DSA_ASSIGN_OR_RETURN(const std::int64_t input, line.ReadInt("input_length", 1, kTokensMax));
  DSA_ASSIGN_OR_RETURN(request.output_tokens, line.ReadInt("output_length", 1, kTokensMax));
  DSA_ASSIGN_OR_RETURN(const std::vector<std::int64_t> hashes,
                       ReadInts(line, "hash_ids", std::numeric_limits<std::int64_t>::max()));
  const std::int64_t blocks = (input + options.block_tokens - 1) / options.block_tokens;
  if (static_cast<std::int64_t>(hashes.size()) != blocks) {
    return line.MakeError(
        "hash_ids", fmt::format("{} ids, but {} tokens are {} blocks of {} tokens", hashes.size(),
                                input, blocks, options.block_tokens));
  }
  std::int64_t left = input;
  for (const std::int64_t hash : hashes) {
    const std::int64_t tokens = std::min(left, options.block_tokens);
    request.parts.push_back(
        {.key = CounterBits(options.seed, static_cast<std::uint64_t>(hash)), .tokens = tokens});
    left -= tokens;
  }
  return request;
}

Result<WorkloadRequest> ReadOwnLine(JsonObject& line, const Encode& encode) {
  WorkloadRequest request;
  DSA_ASSIGN_OR_RETURN(request.arrival_us, ReadTimestampUs(line));
  DSA_ASSIGN_OR_RETURN(request.output_tokens, line.ReadInt("output_length", 1, kTokensMax));
  if (line.Has("prompt") == line.Has("token_ids")) {
    return line.MakeError("prompt", "give one of prompt and token_ids");
  }
  if (line.Has("prompt")) {
    DSA_ASSIGN_OR_RETURN(const std::string text, line.ReadString("prompt"));
    DSA_ASSIGN_OR_RETURN(request.token_ids, encode(text));
  } else {
    DSA_ASSIGN_OR_RETURN(const std::vector<std::int64_t> ids,
                         ReadInts(line, "token_ids", std::numeric_limits<std::int32_t>::max()));
    request.token_ids.assign(ids.begin(), ids.end());
  }
  if (request.token_ids.empty()) {
    return line.MakeError(line.Has("prompt") ? "prompt" : "token_ids", "empty");
  }
  return request;
}

// The text of a turn; null where there is none.
const std::string* TurnText(const Json& conversation, std::size_t turn) {
  const auto turns = conversation.find("conversations");
  if (turns == conversation.end() || !turns->is_array() || turns->size() <= turn ||
      !(*turns)[turn].is_object()) {
    return nullptr;
  }
  const auto text = (*turns)[turn].find("value");
  return text == (*turns)[turn].end() ? nullptr : text->get_ptr<const std::string*>();
}

}  // namespace

Result<std::vector<WorkloadRequest>> ReadMooncakeTrace(const FileWorkloadOptions& options) {
  return ReadLines(options, [&](JsonObject& line) { return ReadTraceLine(line, options); });
}

Result<std::vector<WorkloadRequest>> ReadJsonLines(const FileWorkloadOptions& options,
                                                   const Encode& encode) {
  return ReadLines(options, [&](JsonObject& line) { return ReadOwnLine(line, encode); });
}

Result<std::vector<WorkloadRequest>> ReadShareGpt(const FileWorkloadOptions& options,
                                                  const Encode& encode) {
  const std::string name = FileName(options.path);
  DSA_ASSIGN_OR_RETURN(const std::string text, ReadFile(options.path, kFileBytesMax));
  DSA_ASSIGN_OR_RETURN(const Json conversations, ParseJson(text, name));
  if (!conversations.is_array()) {
    return InvalidArgument(fmt::format("{}: not an array of conversations", name));
  }
  std::vector<std::size_t> order(conversations.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return CounterBits(options.seed, a) < CounterBits(options.seed, b);
  });
  std::vector<WorkloadRequest> requests;
  for (const std::size_t index : order) {
    const Json& conversation = conversations[index];
    if (!conversation.is_object()) {
      return InvalidArgument(fmt::format("{}: conversation {} is not an object", name, index));
    }
    const std::string* prompt = TurnText(conversation, 0);
    const std::string* answer = TurnText(conversation, 1);
    if (prompt == nullptr || answer == nullptr || prompt->empty() || answer->empty()) {
      continue;
    }
    WorkloadRequest request;
    DSA_ASSIGN_OR_RETURN(request.token_ids, encode(*prompt));
    DSA_ASSIGN_OR_RETURN(const std::vector<std::int32_t> answer_ids, encode(*answer));
    request.output_tokens = static_cast<std::int64_t>(answer_ids.size());
    request.source = fmt::format("{}: conversation {}", name, index);
    if (request.token_ids.empty() || answer_ids.empty()) {
      continue;
    }
    requests.push_back(std::move(request));
    if (static_cast<std::int64_t>(requests.size()) == options.requests) {
      break;
    }
  }
  if (requests.empty()) {
    return InvalidArgument(fmt::format("{}: no conversation of two turns in it", name));
  }
  return requests;
}

}  // namespace dsa::bench
