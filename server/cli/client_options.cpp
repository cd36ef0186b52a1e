#include "server/cli/client_options.h"

#include "server/cli/address.h"
#include "server/cli/client.h"
#include "server/cli/report.h"
#include "tokenizer/utf8.h"

#include <iostream>
#include <iterator>
#include <string_view>

#include <CLI/CLI.hpp>
#include <fmt/core.h>
#include <fmt/ranges.h>

namespace dsa {

void AddClientOptions(CLI::App& command, ClientOptions& options) {
  options.address = kDefaultAddress;
  command.add_option("--address", options.address, "Server")
      ->check(ServerAddress())
      ->capture_default_str();
  command.add_option("--model", options.model, "Id of the model; empty: the one served");
  command.add_flag("--raw", options.raw,
                   "Control characters of the answer go to a terminal as they are");
  command.add_flag("--report-cost", options.report_cost, "Show what the answer took of the device");
  command.add_option("--max-tokens", options.max_tokens, "Tokens of an answer at most")
      ->check(WholeNumber());
  command.add_option("--min-tokens", options.min_tokens, "Tokens before an end id may come")
      ->check(WholeNumber());
  command.add_option("--temperature", options.temperature, "[0, 2]; 0 is greedy");
  command.add_option("--top-p", options.top_p, "(0, 1]; 1 keeps all");
  command.add_option("--min-p", options.min_p, "[0, 1]; 0 keeps all");
  command.add_option("--top-k", options.top_k, "The k most likely; 0 keeps all")
      ->check(WholeNumber());
  command.add_option("--frequency-penalty", options.frequency_penalty,
                     "[-2, 2]; taken from a logit each time its id was generated");
  command.add_option("--presence-penalty", options.presence_penalty,
                     "[-2, 2]; taken from the logits of generated ids");
  command.add_option("--repetition-penalty", options.repetition_penalty,
                     "(0, 10]; of ids in the prompt or generated; 1 changes nothing");
  command.add_option("--seed", options.seed, "Of the random numbers; absent: drawn")
      ->check(Unsigned());
  command.add_option("--stop", options.stop, "Text that ends the answer; may be given repeatedly")
      ->allow_extra_args(false);
}

void FillRequest(const ClientOptions& options, v1::SamplingParams& sampling,
                 v1::StopConditions& stop) {
  if (options.max_tokens) {
    stop.set_max_tokens(*options.max_tokens);
  }
  if (options.min_tokens) {
    stop.set_min_tokens(*options.min_tokens);
  }
  for (const std::string& text : options.stop) {
    stop.add_stop(text);
  }
  if (options.temperature) {
    sampling.set_temperature(*options.temperature);
  }
  if (options.top_p) {
    sampling.set_top_p(*options.top_p);
  }
  if (options.min_p) {
    sampling.set_min_p(*options.min_p);
  }
  if (options.top_k) {
    sampling.set_top_k(*options.top_k);
  }
  if (options.frequency_penalty) {
    sampling.set_frequency_penalty(*options.frequency_penalty);
  }
  if (options.presence_penalty) {
    sampling.set_presence_penalty(*options.presence_penalty);
  }
  if (options.repetition_penalty) {
    sampling.set_repetition_penalty(*options.repetition_penalty);
  }
  if (options.seed) {
    sampling.set_seed(*options.seed);
  }
}

Result<std::string> ReadPrompt(const std::vector<std::string>& words, const std::string& name) {
  std::string text = fmt::format("{}", fmt::join(words, " "));
  if (words.empty()) {
    text.assign(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
  }
  if (text.empty()) {
    return InvalidArgument(fmt::format("{}: empty", name));
  }
  DSA_RETURN_IF_ERROR(CheckUtf8(text, name));
  return text;
}

Status CheckUtf8(const std::string& text, const std::string& name) {
  return IsValidUtf8(text) ? Status() : InvalidArgument(fmt::format("{}: not UTF-8", name));
}

void PrintUsage(const v1::Usage& usage, v1::FinishReason reason, std::uint64_t seed) {
  std::string finish = v1::FinishReason_Name(reason);
  finish = finish.substr(std::string_view("FINISH_REASON_").size());
  const double per_second =
      usage.decode_ms() > 0
          ? 1000.0 * static_cast<double>(usage.completion_tokens() - 1) / usage.decode_ms()
          : 0.0;
  fmt::print(stderr,
             "[{} prompt tokens ({} cached), {} answered ({} reasoning); queue {:.0f} ms, prefill "
             "{:.0f} ms, decode {:.0f} ms, {:.1f} tokens/s; {}; seed {}]\n",
             usage.prompt_tokens(), usage.cache_hit_tokens(), usage.completion_tokens(),
             usage.reasoning_tokens(), usage.queue_ms(), usage.prefill_ms(), usage.decode_ms(),
             per_second, finish, seed);
  if (usage.has_cost()) {
    const v1::RequestCost& cost = usage.cost();
    fmt::print(stderr,
               "[cost: prefill {:.0f} us of the device, decode {:.0f} us, {} tokens cached{}]\n",
               cost.prefill_device_us(), cost.decode_device_us(), cost.cached_tokens(),
               cost.has_dollars() ? fmt::format("; ${:.8f}", cost.dollars()) : "");
  }
}

}  // namespace dsa
