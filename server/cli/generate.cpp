// `dsa generate`: continues a list of ids; one JSON line on standard output.
#include "common/json.h"
#include "server/cli/commands.h"
#include "server/cli/offline_command.h"
#include "server/cli/report.h"

#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/core.h>

namespace dsa {
namespace {

struct GenerateArguments {
  OfflineArguments offline;
  std::int64_t max_tokens = 16;
  std::int64_t min_tokens = 0;
  bool ignore_eos = false;
  // Absent: what the model's generation_config.json says.
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<std::int32_t> top_k;
  std::optional<float> repetition_penalty;
  float frequency_penalty = 0.0F;
  float presence_penalty = 0.0F;
  std::optional<std::uint64_t> seed;
};

std::uint64_t DrawSeed() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

Request GenerateRequest(const GenerateArguments& arguments, std::uint64_t seed,
                        const ModelConfig& config) {
  Request request;
  request.external_id = "generate";
  request.sampling = {.temperature = arguments.temperature.value_or(config.sampling.temperature),
                      .top_p = arguments.top_p.value_or(config.sampling.top_p),
                      .min_p = arguments.min_p.value_or(config.sampling.min_p),
                      .top_k = arguments.top_k.value_or(config.sampling.top_k),
                      .seed = seed,
                      .frequency_penalty = arguments.frequency_penalty,
                      .presence_penalty = arguments.presence_penalty,
                      .repetition_penalty = arguments.repetition_penalty.value_or(
                          config.sampling.repetition_penalty)};
  request.stop.max_tokens = arguments.max_tokens;
  request.stop.min_tokens = arguments.min_tokens;
  request.stop.ignore_end = arguments.ignore_eos;
  return request;
}

int RunGenerate(const GenerateArguments& arguments) {
  const std::uint64_t seed = arguments.seed ? *arguments.seed : DrawSeed();
  std::int64_t vocabulary = 0;
  const Result<OfflineResult> result = RunOfflineCommand(
      arguments.offline,
      [&](const ModelConfig& config) { return GenerateRequest(arguments, seed, config); },
      vocabulary);
  if (!result.ok()) {
    return ReportError(result.error());
  }
  const Json line = {
      {"ids", result.value().ids},
      {"finish_reason", result.value().finish == FinishReason::kStop ? "stop" : "length"},
      {"seed", seed}};
  fmt::print("{}\n", line.dump());
  return 0;
}

}  // namespace

void AddGenerateCommand(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand(
      "generate", "Continue a list of ids; prints one JSON line with the generated ids");
  auto arguments = std::make_shared<GenerateArguments>();
  AddOfflineOptions(*command, arguments->offline);
  command->add_option("--max-tokens", arguments->max_tokens, "Tokens to generate at most")
      ->check(WholeNumber())
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 31))
      ->capture_default_str();
  command->add_option("--min-tokens", arguments->min_tokens, "Tokens before an end id may come")
      ->check(WholeNumber())
      ->capture_default_str();
  command->add_flag("--ignore-eos", arguments->ignore_eos, "Go on behind the model's end ids");
  command->add_option("--temperature", arguments->temperature, "[0, 2]; 0 is greedy");
  command->add_option("--top-p", arguments->top_p, "(0, 1]; 1 keeps all");
  command->add_option("--min-p", arguments->min_p, "[0, 1]; 0 keeps all");
  command->add_option("--top-k", arguments->top_k, "The k most likely; 0 keeps all")
      ->check(WholeNumber());
  command->add_option("--frequency-penalty", arguments->frequency_penalty,
                      "[-2, 2]; taken from a logit each time its id was generated");
  command->add_option("--presence-penalty", arguments->presence_penalty,
                      "[-2, 2]; taken from the logits of generated ids");
  command->add_option("--repetition-penalty", arguments->repetition_penalty,
                      "(0, 10]; of ids in the prompt or generated; 1 changes nothing");
  command->add_option("--seed", arguments->seed, "Of the random numbers; drawn when absent")
      ->check(Unsigned());
  command->callback([arguments, &exit_code] { exit_code = RunGenerate(*arguments); });
}

}  // namespace dsa
