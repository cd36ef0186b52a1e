// Sends a workload to a server and keeps when every message of every answer came.
//
// One thread does everything: it starts calls, waits for their events on one completion queue and
// stamps them.  Nothing is computed from the stamps while requests run.
#pragma once

#include "common/status.h"
#include "server/bench/arrivals.h"
#include "server/bench/workload.h"

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace grpc {
class Channel;
}

namespace dsa::bench {

// What the server says about itself.
struct ServerDescription {
  std::string model;
  std::int64_t context_tokens = 0;
  std::int64_t vocabulary = 0;
  std::string version;
  std::string device;
  std::string configuration_json;
};

// Asks for `model`; empty: the one served.  UNAVAILABLE where no server answers, NOT_FOUND with
// the name of the model that is served where that is another one.
Result<ServerDescription> DescribeServer(const std::shared_ptr<grpc::Channel>& channel,
                                         const std::string& address, const std::string& model);

// The ids of a text, from the server's TokenService.
Result<std::vector<std::int32_t>> EncodeOnServer(const std::shared_ptr<grpc::Channel>& channel,
                                                 const std::string& model, const std::string& text);

// One request as the client saw it.  Times are nanoseconds since the run's start.
struct RequestRecord {
  std::int64_t index = 0;  // in the workload
  std::string request_id;
  std::int64_t planned_ns = 0;         // when it should have started; an open loop's
  std::int64_t start_ns = 0;           // the call was started
  std::int64_t end_ns = 0;             // its status came
  std::vector<std::int64_t> chunk_ns;  // each message that brought tokens
  std::int64_t input_tokens = 0;
  std::int64_t output_tokens = 0;
  std::int64_t cached_tokens = 0;  // of the prompt
  bool cancelled = false;          // by us
  std::string error_code;          // empty: it succeeded
  std::string error_message;

  bool ok() const { return error_code.empty(); }
};

struct LoadRun {
  std::vector<RequestRecord> records;  // in the order of their ends
  std::int64_t start_unix_ns = 0;      // wall-clock time of the run's start
  std::int64_t duration_ns = 0;        // until the last end
  double client_cpu_s = 0;             // processor time of this whole process
  std::int64_t messages = 0;           // received
  bool interrupted = false;
};

struct LoadOptions {
  std::string model;
  std::string cache_salt;  // requests share cached prefixes only under an equal one
  float temperature;
  bool stop_at_end;  // the model's end ids end an answer
  std::int64_t vocabulary;
  std::int64_t request_timeout_ms;  // 0: none
  std::uint64_t seed;               // of the arrival times
};

struct RunProgress {
  std::int64_t done;
  std::int64_t failed;
  std::int64_t running;
  std::int64_t total;
  std::int64_t output_tokens;
  std::int64_t elapsed_ns;
};

// Runs `requests` under `point`; returns when all have ended.  `interrupted` ends it early: running
// calls are cancelled and recorded so.  `report` is called a few times a second.  INVALID_ARGUMENT
// as ArrivalTimesUs.
Result<LoadRun> GenerateLoad(const std::shared_ptr<grpc::Channel>& channel,
                             const std::vector<WorkloadRequest>& requests, const LoadPoint& point,
                             const LoadOptions& options, const std::atomic<bool>& interrupted,
                             const std::function<void(const RunProgress&)>& report);

}  // namespace dsa::bench
