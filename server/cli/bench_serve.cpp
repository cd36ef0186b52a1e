// `dsa bench serve`: loads a server over gRPC.
#include "server/bench/serve_bench.h"
#include "server/cli/address.h"
#include "server/cli/client.h"
#include "server/cli/commands.h"
#include "server/cli/interrupt_flag.h"
#include "server/cli/report.h"

#include <algorithm>

#include <CLI/CLI.hpp>
#include <fmt/core.h>
#include <fmt/ranges.h>

namespace dsa {
namespace {

constexpr std::int64_t kCountMax = 1'000'000'000;
constexpr double kRateMax = 1e6;
constexpr double kMsPerSecond = 1e3;

struct ServeFlags {
  bench::ServeBenchOptions options;
  std::vector<std::int64_t> concurrency;
  std::vector<double> request_rates;
  double trace_speed = 0;
  std::string arrival = "poisson";
  std::string goodput;
  double request_timeout_s = 0;
  bool skip_too_long = false;
};

void AddLoadOptions(CLI::App& command, ServeFlags& flags) {
  command
      .add_option("--concurrency", flags.concurrency,
                  "Requests running at once; a list is a sweep: 1,8,64")
      ->delimiter(',')
      ->check(CLI::Range(std::int64_t{1}, kCountMax));
  command
      .add_option("--request-rate", flags.request_rates,
                  "Requests started per second, whatever runs; a list is a sweep")
      ->delimiter(',')
      ->check(FiniteIn(1e-3, kRateMax));
  command.add_option("--arrival", flags.arrival, "Gaps under --request-rate")
      ->check(CLI::IsMember({"poisson", "constant"}))
      ->capture_default_str();
  command
      .add_option("--trace-speed", flags.trace_speed,
                  "Start requests at the file's timestamps; 2 is twice as fast")
      ->check(FiniteIn(1e-3, kRateMax));
  command.add_option("--requests", flags.options.requests, "Requests of each run; of a file: all")
      ->check(CLI::Range(std::int64_t{1}, kCountMax));
  command
      .add_option("--warmup-requests", flags.options.warm_up_requests,
                  "Requests before each run that count nowhere")
      ->check(CLI::Range(std::int64_t{0}, kCountMax))
      ->capture_default_str();
  command.add_option("--seed", flags.options.seed, "Of prompts, lengths and gaps")
      ->check(Unsigned())
      ->capture_default_str();
  command
      .add_option("--request-timeout", flags.request_timeout_s,
                  "Seconds that a request may take; 0: no limit")
      ->check(FiniteIn(0.0, kRateMax))
      ->capture_default_str();
}

void AddPromptOptions(CLI::App& command, bench::ServeBenchOptions& options, bool& skip_too_long) {
  command.add_option("--dataset", options.dataset, "Where prompts and lengths come from")
      ->check(CLI::IsMember({"random", "sharegpt", "mooncake", "jsonl"}))
      ->capture_default_str();
  command.add_option("--dataset-path", options.dataset_path, "File of the data set");
  command.add_option("--input-len", options.input_tokens, "Tokens of a random prompt")
      ->check(CLI::Range(std::int64_t{1}, kCountMax));
  command.add_option("--output-len", options.output_tokens, "Tokens of its answer")
      ->check(CLI::Range(std::int64_t{1}, kCountMax));
  command
      .add_option("--range-ratio", options.range_ratio,
                  "Random lengths are uniform in length * [1 - r, 1 + r]")
      ->check(FiniteIn(0.0, 0.999))
      ->capture_default_str();
  command
      .add_option("--prefix-len", options.prefix_tokens,
                  "Tokens that all random prompts begin with, part of --input-len")
      ->check(CLI::Range(std::int64_t{0}, kCountMax))
      ->capture_default_str();
  command
      .add_option("--block-tokens", options.block_tokens,
                  "Tokens that a hash id of a mooncake trace stands for")
      ->check(CLI::Range(std::int64_t{1}, kCountMax))
      ->capture_default_str();
  command.add_flag("--skip-too-long", skip_too_long,
                   "Leave out requests that the server's context cannot hold");
  command.add_option("--temperature", options.temperature, "[0, 2]; 0 is greedy")
      ->check(FiniteIn(0.0, 2.0))
      ->capture_default_str();
  command.add_flag("--stop-at-end", options.stop_at_end,
                   "The model's end ids end an answer; without it all have their full length");
}

void AddReportOptions(CLI::App& command, ServeFlags& flags) {
  command.add_option("--output", flags.options.output, "Folder for the files")
      ->required()
      ->check(NotEmpty());
  command.add_option("--goodput", flags.goodput,
                     "Limits in milliseconds of a good request: "
                     "time_to_first_token:500,inter_token_latency:50,request_latency:5000");
  command.add_option("--gpus", flags.options.gpus, "GPUs that the server has, for rates per GPU")
      ->check(CLI::Range(std::int64_t{1}, kCountMax))
      ->capture_default_str();
  command.add_option("--hardware", flags.options.hardware, "Name of the hardware, for the files");
  command.add_option("--precision", flags.options.precision, "Such as fp8, for the files");
}

// A sweep's points have folders of their own.
template <typename Number>
Status CheckDistinct(const char* option, const std::vector<Number>& values) {
  for (auto value = values.begin(); value != values.end(); ++value) {
    if (std::find(values.begin(), value, *value) != value) {
      return InvalidArgument(fmt::format("{}: {} stands there twice", option, *value));
    }
  }
  return {};
}

Result<std::vector<bench::LoadPoint>> MakePoints(const ServeFlags& flags) {
  DSA_RETURN_IF_ERROR(CheckDistinct("--concurrency", flags.concurrency));
  DSA_RETURN_IF_ERROR(CheckDistinct("--request-rate", flags.request_rates));
  std::vector<bench::LoadPoint> points;
  const bool has_rates = !flags.request_rates.empty();
  const bool replays = flags.trace_speed > 0;
  if (has_rates && replays) {
    return InvalidArgument("--request-rate and --trace-speed: give one of them");
  }
  if (!has_rates && !replays) {
    for (const std::int64_t concurrency : flags.concurrency) {
      points.push_back({.concurrency = concurrency});
    }
    if (points.empty()) {
      return InvalidArgument("--concurrency, --request-rate or --trace-speed is required");
    }
    return points;
  }
  if (flags.concurrency.size() > 1) {
    return InvalidArgument(
        "--concurrency: beside --request-rate or --trace-speed it is one limit, not a list");
  }
  bench::LoadPoint point = {
      .arrival = replays ? bench::Arrival::kTrace
                         : (flags.arrival == "constant" ? bench::Arrival::kConstant
                                                        : bench::Arrival::kPoisson),
      .concurrency = flags.concurrency.empty() ? 0 : flags.concurrency.front(),
      .requests_per_s = 0,
      .trace_speed = flags.trace_speed};
  for (const double rate : flags.request_rates) {
    point.requests_per_s = rate;
    points.push_back(point);
  }
  if (replays) {
    points.push_back(point);
  }
  return points;
}

Status CheckTogether(const bench::ServeBenchOptions& options) {
  const bool random = options.dataset == "random";
  const bool lengths = options.input_tokens > 0 && options.output_tokens > 0;
  if (random && (!lengths || options.requests == 0)) {
    return InvalidArgument(
        "--requests, --input-len and --output-len are required with --dataset random");
  }
  if (!random && (options.input_tokens > 0 || options.output_tokens > 0)) {
    return InvalidArgument(
        fmt::format("--input-len, --output-len: lengths come from the file with --dataset {}",
                    options.dataset));
  }
  if (random != options.dataset_path.empty()) {
    return InvalidArgument(random ? "--dataset-path: --dataset random reads no file"
                                  : "--dataset-path is required: the data set's file");
  }
  if (random && options.prefix_tokens >= options.input_tokens) {
    return InvalidArgument(fmt::format("--prefix-len: {} is not less than --input-len {}",
                                       options.prefix_tokens, options.input_tokens));
  }
  return {};
}

std::vector<std::pair<std::string, std::string>> OptionsAsText(const CLI::App& command) {
  std::vector<std::pair<std::string, std::string>> texts;
  for (const CLI::Option* option : command.get_options()) {
    const std::string name = option->get_name();
    if (name != "--help") {
      texts.emplace_back(name.substr(name.find_first_not_of('-')),
                         option->count() > 0 ? fmt::format("{}", fmt::join(option->results(), ","))
                                             : option->get_default_str());
    }
  }
  return texts;
}

int RunServe(ServeFlags& flags) {
  bench::ServeBenchOptions& options = flags.options;
  auto points = MakePoints(flags);
  if (!points.ok()) {
    return ReportError(points.error());
  }
  options.points = std::move(points).value();
  auto limits = bench::ParseGoodput(flags.goodput);
  if (!limits.ok()) {
    return ReportError(limits.error());
  }
  options.limits = std::move(limits).value();
  options.too_long = flags.skip_too_long ? bench::TooLong::kSkip : bench::TooLong::kRefuse;
  options.request_timeout_ms = static_cast<std::int64_t>(flags.request_timeout_s * kMsPerSecond);
  const Status together = CheckTogether(options);
  if (!together.ok()) {
    return ReportError(together.error());
  }
  const auto outcome = bench::RunServeBench(Connect(options.address), options, InterruptFlag());
  if (!outcome.ok()) {
    return ReportError(outcome.error());
  }
  if (outcome.value().interrupted) {
    fmt::print(stderr, "interrupted: what was measured is in {}\n", options.output);
    return kInterruptedExitCode;
  }
  if (outcome.value().failed > 0) {
    fmt::print(stderr, "error: {} requests failed, the first with {}\n", outcome.value().failed,
               outcome.value().first_failure);
    return 1;
  }
  return 0;
}

}  // namespace

void AddBenchServeCommand(CLI::App& bench, int& exit_code) {
  CLI::App* command =
      bench.add_subcommand("serve", "Load a server with requests and measure its answers");
  auto flags = std::make_shared<ServeFlags>();
  flags->options.address = kDefaultAddress;
  command->add_option("--address", flags->options.address, "Server")
      ->check(ServerAddress())
      ->capture_default_str();
  command->add_option("--model", flags->options.model, "Id of the model; empty: the one served");
  AddLoadOptions(*command, *flags);
  AddPromptOptions(*command, flags->options, flags->skip_too_long);
  AddReportOptions(*command, *flags);
  command->callback([command, flags, &exit_code] {
    flags->options.as_text = OptionsAsText(*command);
    exit_code = RunServe(*flags);
  });
}

}  // namespace dsa
