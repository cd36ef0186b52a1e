// Writes a load run's files: profile_export.jsonl, one line a request as aiperf writes it, and
// summary.json and summary.csv.  Main thread.
#pragma once

#include "common/status.h"
#include "server/bench/load_generator.h"
#include "server/bench/serve_metrics.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace dsa::bench {

// One point of a sweep, measured.
struct ServeResult {
  LoadPoint point;
  LoadRun run;
  ServeSummary summary;
};

// What every file says about how it came about.
struct ServeContext {
  ServerDescription server;
  std::string address;
  std::string client_version;
  std::vector<std::pair<std::string, std::string>> options;  // the command's, as text
  std::int64_t input_tokens;                                 // as asked for; of a file: the mean
  std::int64_t output_tokens;
  std::int64_t skipped;  // requests of the file that do not fit the context
  std::int64_t gpus;     // > 0; what "per GPU" divides by
  std::string hardware;  // "h100", "" where unsaid
  std::string precision;
  std::vector<GoodputLimit> limits;
};

// FOLDER/profile_export.jsonl.
Status WriteProfile(const std::string& folder, const ServeContext& context,
                    const ServeResult& result);

// FOLDER/summary.json of one run: aiperf's layout, a row with InferenceX's keys in "inferencex".
Status WriteSummary(const std::string& folder, const ServeContext& context,
                    const ServeResult& result);
// FOLDER/summary.json of a sweep: the same of each run in "sweep".
Status WriteSweepSummary(const std::string& folder, const ServeContext& context,
                         const std::vector<ServeResult>& results);

// FOLDER/summary.csv: a line a run and metric.
Status WriteSummaryCsv(const std::string& folder, const std::vector<ServeResult>& results);

// What standard output shows of one run.
std::string ToTable(const ServeResult& result);

}  // namespace dsa::bench
