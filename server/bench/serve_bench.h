// `dsa bench serve` from its options to its files: asks the server what it is, makes the workload,
// warms up, runs each point of the sweep, writes and shows what came out.  Main thread.
#pragma once

#include "common/status.h"
#include "server/bench/arrivals.h"
#include "server/bench/serve_report.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace grpc {
class Channel;
}

namespace dsa::bench {

struct ServeBenchOptions {
  std::string address;
  std::string model;               // empty: the one served
  std::vector<LoadPoint> points;   // at least one
  std::string dataset = "random";  // random, sharegpt, mooncake, jsonl
  std::string dataset_path;        // of all but random
  std::int64_t requests = 0;       // 0: all of a file; > 0 with random
  std::int64_t input_tokens = 0;   // with random
  std::int64_t output_tokens = 0;
  double range_ratio = 0;
  std::int64_t prefix_tokens = 0;
  std::int64_t block_tokens = 512;
  TooLong too_long = TooLong::kRefuse;
  std::int64_t warm_up_requests = 1;
  std::uint64_t seed = 0;
  float temperature = 0;
  bool stop_at_end = false;
  std::int64_t request_timeout_ms = 0;
  std::vector<GoodputLimit> limits;
  std::int64_t gpus = 1;
  std::string hardware;
  std::string precision;
  std::string output;
  // Every option as text, for the files.
  std::vector<std::pair<std::string, std::string>> as_text;
};

// What the command's exit code tells.
struct ServeBenchOutcome {
  std::int64_t failed = 0;    // requests, of all runs
  std::string first_failure;  // "UNAVAILABLE: ..."
  bool interrupted = false;
};

// Errors are one line; what was measured before one is written.
Result<ServeBenchOutcome> RunServeBench(const std::shared_ptr<grpc::Channel>& channel,
                                        const ServeBenchOptions& options,
                                        const std::atomic<bool>& interrupted);

}  // namespace dsa::bench
