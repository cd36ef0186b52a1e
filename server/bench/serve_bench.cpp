#include "server/bench/serve_bench.h"

#include "common/prng.h"
#include "server/bench/output_folder.h"
#include "server/bench/progress_line.h"
#include "server/bench/units.h"
#include "server/bench/workload.h"
#include "server/version.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr std::array<std::string_view, 3> kFiles = {"profile_export.jsonl", "summary.json",
                                                    "summary.csv"};

Result<std::vector<WorkloadRequest>> MakeWorkload(const std::shared_ptr<grpc::Channel>& channel,
                                                  const ServeBenchOptions& options,
                                                  const std::string& model) {
  if (options.dataset == "random") {
    return MakeRandomWorkload({.requests = options.requests,
                               .input_tokens = options.input_tokens,
                               .output_tokens = options.output_tokens,
                               .range_ratio = options.range_ratio,
                               .prefix_tokens = options.prefix_tokens,
                               .seed = options.seed});
  }
  const FileWorkloadOptions file = {.path = options.dataset_path,
                                    .requests = options.requests,
                                    .block_tokens = options.block_tokens,
                                    .seed = options.seed};
  if (options.dataset == "mooncake") {
    return ReadMooncakeTrace(file);
  }
  const Encode encode = [&](const std::string& text) {
    return EncodeOnServer(channel, model, text);
  };
  return options.dataset == "sharegpt" ? ReadShareGpt(file, encode) : ReadJsonLines(file, encode);
}

// Runs must not find each other's prompts in the server's cache, nor those of another invocation
// with the same seed.
std::string MakeCacheSalt(std::uint64_t seed, std::size_t run) {
  const auto now = std::chrono::system_clock::now().time_since_epoch().count();
  return fmt::format("bench-{:016x}-{}", CounterBits(seed, static_cast<std::uint64_t>(now)), run);
}

std::function<void(const RunProgress&)> ShowProgress(ProgressLine& line, const std::string& what) {
  return [&line, what](const RunProgress& progress) {
    const double seconds = static_cast<double>(progress.elapsed_ns) / kNsPerSecond;
    const auto done = static_cast<double>(progress.done);
    const double left = static_cast<double>(progress.total - progress.done);
    const std::string remaining =
        progress.done > 0 ? fmt::format(", about {:.0f} s left", seconds / done * left) : "";
    line.Show(fmt::format("{}: {} of {} requests, {} running, {} failed, {:.0f} tokens/s{}", what,
                          progress.done, progress.total, progress.running, progress.failed,
                          seconds > 0 ? static_cast<double>(progress.output_tokens) / seconds : 0,
                          remaining));
  };
}

void Note(const LoadRun& run, ServeBenchOutcome& outcome) {
  outcome.interrupted = outcome.interrupted || run.interrupted;
  for (const RequestRecord& record : run.records) {
    if (!record.ok() && !record.cancelled) {
      outcome.first_failure = outcome.failed == 0
                                  ? fmt::format("{}: {}", record.error_code, record.error_message)
                                  : outcome.first_failure;
      ++outcome.failed;
    }
  }
}

std::int64_t MeanLength(const std::vector<WorkloadRequest>& requests, bool of_input) {
  std::int64_t sum = 0;
  for (const WorkloadRequest& request : requests) {
    sum += of_input ? request.input_tokens() : request.output_tokens;
  }
  return sum / static_cast<std::int64_t>(requests.size());
}

Status WriteFiles(const ServeBenchOptions& options, const ServeContext& context,
                  const std::vector<ServeResult>& results) {
  if (options.points.size() == 1) {
    DSA_RETURN_IF_ERROR(WriteSummary(options.output, context, results.front()));
  } else {
    DSA_RETURN_IF_ERROR(WriteSweepSummary(options.output, context, results));
  }
  return WriteSummaryCsv(options.output, results);
}

}  // namespace

Result<ServeBenchOutcome> RunServeBench(const std::shared_ptr<grpc::Channel>& channel,
                                        const ServeBenchOptions& options,
                                        const std::atomic<bool>& interrupted) {
  DSA_RETURN_IF_ERROR(PrepareFolder(options.output, kFiles));
  DSA_ASSIGN_OR_RETURN(ServerDescription server,
                       DescribeServer(channel, options.address, options.model));
  DSA_ASSIGN_OR_RETURN(std::vector<WorkloadRequest> requests,
                       MakeWorkload(channel, options, server.model));
  DSA_ASSIGN_OR_RETURN(const std::int64_t skipped,
                       RemoveTooLong(requests, server.context_tokens, options.too_long));
  if (skipped > 0) {
    fmt::print(stderr, "{} requests skipped: they do not fit into the context of {} tokens\n",
               skipped, server.context_tokens);
  }
  LoadOptions load = {.model = server.model,
                      .cache_salt = "",
                      .temperature = options.temperature,
                      .stop_at_end = options.stop_at_end,
                      .vocabulary = server.vocabulary,
                      .request_timeout_ms = options.request_timeout_ms,
                      .seed = options.seed};
  const ServeContext context = {.server = std::move(server),
                                .address = options.address,
                                .client_version = std::string(kVersion),
                                .options = options.as_text,
                                .input_tokens = MeanLength(requests, true),
                                .output_tokens = MeanLength(requests, false),
                                .skipped = skipped,
                                .gpus = options.gpus,
                                .hardware = options.hardware,
                                .precision = options.precision,
                                .limits = options.limits};
  ServeBenchOutcome outcome;
  std::vector<ServeResult> results;
  for (std::size_t i = 0; i < options.points.size() && !outcome.interrupted; ++i) {
    const LoadPoint& point = options.points[i];
    load.cache_salt = MakeCacheSalt(options.seed, i);
    ProgressLine line;
    const LoadPoint warm_up = {.arrival = Arrival::kWhenOneEnds,
                               .concurrency = std::max<std::int64_t>(point.concurrency, 1)};
    DSA_ASSIGN_OR_RETURN(
        const LoadRun warmed,
        GenerateLoad(channel, MakeWarmUp(requests, options.warm_up_requests, options.seed), warm_up,
                     load, interrupted, ShowProgress(line, "warm-up")));
    Note(warmed, outcome);
    if (outcome.failed > 0 || outcome.interrupted) {
      break;
    }
    DSA_ASSIGN_OR_RETURN(LoadRun run, GenerateLoad(channel, requests, point, load, interrupted,
                                                   ShowProgress(line, point.Name())));
    Note(run, outcome);
    ServeSummary summary = Summarize(run, options.limits);
    results.push_back({.point = point, .run = std::move(run), .summary = std::move(summary)});
    const std::string folder =
        options.points.size() == 1 ? options.output : options.output + "/" + point.Name();
    DSA_RETURN_IF_ERROR(PrepareFolder(folder, std::span(kFiles).first(1)));
    DSA_RETURN_IF_ERROR(WriteProfile(folder, context, results.back()));
    DSA_RETURN_IF_ERROR(WriteFiles(options, context, results));
    line.Clear();
    fmt::print("{}", ToTable(results.back()));
  }
  return outcome;
}

}  // namespace dsa::bench
