// What the commands that ask a server for text share: the options of a generation, its prompt from
// the command line or standard input, and the line about what it cost.
#pragma once

#include "common/status.h"
#include "proto/common.pb.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace CLI {  // NOLINT(readability-identifier-naming): the library's name
class App;
}

namespace dsa {

struct ClientOptions {
  std::string address;
  std::string model;
  bool raw = false;
  bool report_cost = false;
  std::optional<std::int64_t> max_tokens;
  std::optional<std::int64_t> min_tokens;
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<std::int64_t> top_k;
  std::optional<float> frequency_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> repetition_penalty;
  std::optional<std::uint64_t> seed;
  std::vector<std::string> stop;
};

void AddClientOptions(CLI::App& command, ClientOptions& options);

// Puts what was given into a request's fields.
void FillRequest(const ClientOptions& options, v1::SamplingParams& sampling,
                 v1::StopConditions& stop);

// The words, one blank between them, or all of standard input where there are none.
// INVALID_ARGUMENT naming `name` where that is empty or not UTF-8.
Result<std::string> ReadPrompt(const std::vector<std::string>& words, const std::string& name);

// INVALID_ARGUMENT naming `name` where `text` is not UTF-8.
Status CheckUtf8(const std::string& text, const std::string& name);

// Counts, times, the reason of the end and the seed, on standard error; the cost where it is told.
void PrintUsage(const v1::Usage& usage, v1::FinishReason reason, std::uint64_t seed);

}  // namespace dsa
