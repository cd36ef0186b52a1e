#include "server/bench/load_generator.h"

#include "proto/admin.grpc.pb.h"
#include "proto/completion.grpc.pb.h"
#include "proto/model.grpc.pb.h"
#include "proto/token.grpc.pb.h"
#include "server/grpc/call_info.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <unordered_map>
#include <utility>

#include <fmt/core.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <sys/resource.h>

namespace dsa::bench {
namespace {

using SteadyTime = std::chrono::steady_clock;
using WallTime = std::chrono::system_clock;

constexpr auto kQueryTimeout = std::chrono::seconds(20);
constexpr auto kReportInterval = std::chrono::milliseconds(250);

std::int64_t Nanoseconds(SteadyTime::duration duration) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(duration).count();
}

double ProcessCpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

Error ErrorOf(const grpc::Status& status, const std::string& what) {
  using Code = grpc::StatusCode;
  const bool callers_fault = status.error_code() == Code::INVALID_ARGUMENT ||
                             status.error_code() == Code::NOT_FOUND ||
                             status.error_code() == Code::FAILED_PRECONDITION ||
                             status.error_code() == Code::UNIMPLEMENTED;
  return {callers_fault ? ErrorCode::kInvalidArgument : ErrorCode::kUnavailable,
          fmt::format("{}: {}: {}", what, CodeName(status.error_code()), status.error_message())};
}

void SetDeadline(grpc::ClientContext& call) {
  call.set_deadline(WallTime::now() + kQueryTimeout);
}

std::string ServedModels(v1::ModelService::Stub& stub) {
  grpc::ClientContext call;
  SetDeadline(call);
  v1::ListModelsResponse response;
  std::string names;
  if (stub.ListModels(&call, {}, &response).ok()) {
    for (const v1::ModelInfo& model : response.models()) {
      names += fmt::format("{}\"{}\"", names.empty() ? "" : ", ", model.id());
    }
  }
  return names;
}

// One request: its call, and what is known of it.  Its address is the tag of its events, of which
// it awaits exactly one.
struct Call {
  enum class State : std::uint8_t { kStarting, kReading, kFinishing };

  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientAsyncReader<v1::CompletionStreamResponse>> reader;
  v1::CompletionStreamResponse message;
  grpc::Status status;
  State state = State::kStarting;
  RequestRecord record;
};

class Generator final {
 public:
  Generator(const std::shared_ptr<grpc::Channel>& channel,
            const std::vector<WorkloadRequest>& requests, const LoadPoint& point,
            const LoadOptions& options)
      : stub_(v1::CompletionService::NewStub(channel)),
        requests_(requests),
        point_(point),
        options_(options) {}

  LoadRun Run(const std::vector<std::int64_t>& planned_ns, const std::atomic<bool>& interrupted,
              const std::function<void(const RunProgress&)>& report);

 private:
  std::int64_t NowNs() const { return Nanoseconds(SteadyTime::now() - start_); }
  bool MayStart(std::int64_t planned_ns) const;
  void Start(std::size_t index, std::int64_t planned_ns);
  void Handle(Call& call, bool ok);
  void KeepMessage(Call& call);
  void End(Call& call);
  void CancelAll();

  std::unique_ptr<v1::CompletionService::Stub> stub_;
  const std::vector<WorkloadRequest>& requests_;
  const LoadPoint& point_;
  const LoadOptions& options_;

  grpc::CompletionQueue events_;
  std::unordered_map<const Call*, std::unique_ptr<Call>> running_;
  SteadyTime::time_point start_;
  LoadRun run_;
  std::int64_t output_tokens_ = 0;
  std::int64_t failed_ = 0;
};

LoadRun Generator::Run(const std::vector<std::int64_t>& planned_ns,
                       const std::atomic<bool>& interrupted,
                       const std::function<void(const RunProgress&)>& report) {
  const double cpu_before_s = ProcessCpuSeconds();
  run_.start_unix_ns =
      std::chrono::duration_cast<std::chrono::nanoseconds>(WallTime::now().time_since_epoch())
          .count();
  start_ = SteadyTime::now();
  std::int64_t report_ns = 0;
  std::size_t next = 0;
  while (next < requests_.size() || !running_.empty()) {
    if (interrupted.load(std::memory_order_relaxed) && !run_.interrupted) {
      run_.interrupted = true;
      CancelAll();
    }
    if (run_.interrupted) {
      next = requests_.size();
    }
    while (next < requests_.size() && MayStart(planned_ns[next])) {
      Start(next, planned_ns[next]);
      ++next;
    }
    const std::int64_t now_ns = NowNs();
    if (now_ns >= report_ns) {
      report_ns = now_ns + Nanoseconds(kReportInterval);
      report({.done = static_cast<std::int64_t>(run_.records.size()),
              .failed = failed_,
              .running = static_cast<std::int64_t>(running_.size()),
              .total = static_cast<std::int64_t>(requests_.size()),
              .output_tokens = output_tokens_,
              .elapsed_ns = now_ns});
    }
    std::int64_t wait_ns = report_ns - now_ns;
    const bool waits_for_time = next < requests_.size() && planned_ns[next] > now_ns;
    if (waits_for_time) {
      wait_ns = std::min(wait_ns, planned_ns[next] - now_ns);
    }
    void* tag = nullptr;
    bool ok = false;
    const auto status =
        events_.AsyncNext(&tag, &ok, WallTime::now() + std::chrono::nanoseconds(wait_ns));
    if (status == grpc::CompletionQueue::GOT_EVENT) {
      Handle(*static_cast<Call*>(tag), ok);
    }
  }
  events_.Shutdown();
  run_.duration_ns = run_.records.empty() ? 0 : run_.records.back().end_ns;
  run_.client_cpu_s = ProcessCpuSeconds() - cpu_before_s;
  return std::move(run_);
}

bool Generator::MayStart(std::int64_t planned_ns) const {
  const auto running = static_cast<std::int64_t>(running_.size());
  const bool room = point_.concurrency == 0 || running < point_.concurrency;
  return room && (planned_ns == 0 || planned_ns <= NowNs());
}

void Generator::Start(std::size_t index, std::int64_t planned_ns) {
  const WorkloadRequest& wanted = requests_[index];
  v1::CompletionRequest request;
  request.set_model(options_.model);
  const std::vector<std::int32_t> prompt = MakePrompt(wanted, options_.vocabulary);
  request.mutable_token_ids()->mutable_ids()->Add(prompt.begin(), prompt.end());
  request.mutable_sampling()->set_temperature(options_.temperature);
  request.mutable_sampling()->set_seed(index);
  request.mutable_stop()->set_max_tokens(wanted.output_tokens);
  request.mutable_stop()->set_ignore_eos(!options_.stop_at_end);
  request.set_cache_salt(options_.cache_salt);

  auto call = std::make_unique<Call>();
  call->record.index = static_cast<std::int64_t>(index);
  call->record.request_id = fmt::format("{}-{}", options_.cache_salt, index);
  call->record.planned_ns = planned_ns;
  call->record.input_tokens = wanted.input_tokens();
  call->record.chunk_ns.reserve(static_cast<std::size_t>(wanted.output_tokens));
  request.set_request_id(call->record.request_id);
  if (options_.request_timeout_ms > 0) {
    call->context.set_deadline(WallTime::now() +
                               std::chrono::milliseconds(options_.request_timeout_ms));
  }
  Call* const tag = call.get();
  call->reader = stub_->PrepareAsyncCompleteStream(&call->context, request, &events_);
  running_.emplace(tag, std::move(call));
  tag->record.start_ns = NowNs();
  tag->reader->StartCall(tag);
}

void Generator::Handle(Call& call, bool ok) {
  if (call.state == Call::State::kFinishing) {
    End(call);
    return;
  }
  if (ok && call.state == Call::State::kReading) {
    KeepMessage(call);
  }
  if (ok) {
    call.state = Call::State::kReading;
    call.reader->Read(&call.message, &call);
  } else {
    call.state = Call::State::kFinishing;
    call.reader->Finish(&call.status, &call);
  }
}

void Generator::KeepMessage(Call& call) {
  ++run_.messages;
  const int tokens = call.message.token_ids_size();
  if (tokens > 0) {
    call.record.chunk_ns.push_back(NowNs());
    call.record.output_tokens += tokens;
    output_tokens_ += tokens;
  }
  call.record.cached_tokens = call.message.usage().cache_hit_tokens();
}

void Generator::End(Call& call) {
  RequestRecord& record = call.record;
  record.end_ns = NowNs();
  if (!call.status.ok()) {
    record.error_code = CodeName(call.status.error_code());
    record.error_message = call.status.error_message();
    record.cancelled = run_.interrupted && call.status.error_code() == grpc::StatusCode::CANCELLED;
  } else if (record.chunk_ns.empty()) {
    record.error_code = "NO_TOKENS";
    record.error_message = "the answer has no token";
  }
  failed_ += record.ok() ? 0 : 1;
  run_.records.push_back(std::move(record));
  running_.erase(&call);
}

void Generator::CancelAll() {
  for (const auto& [tag, call] : running_) {
    call->context.TryCancel();
  }
}

}  // namespace

Result<ServerDescription> DescribeServer(const std::shared_ptr<grpc::Channel>& channel,
                                         const std::string& address, const std::string& model) {
  const auto models = v1::ModelService::NewStub(channel);
  v1::GetModelRequest request;
  request.set_id(model);
  grpc::ClientContext call;
  SetDeadline(call);
  v1::ModelInfo info;
  const grpc::Status status = models->GetModel(&call, request, &info);
  if (status.error_code() == grpc::StatusCode::NOT_FOUND) {
    return InvalidArgument(fmt::format("model: \"{}\" is not served by {}: allowed is {}", model,
                                       address, ServedModels(*models)));
  }
  if (!status.ok()) {
    return ErrorOf(status, fmt::format("address: {}", address));
  }
  const auto admin = v1::AdminService::NewStub(channel);
  grpc::ClientContext admin_call;
  SetDeadline(admin_call);
  v1::ServerInfo server;
  const grpc::Status admin_status = admin->GetServerInfo(&admin_call, {}, &server);
  if (!admin_status.ok()) {
    return ErrorOf(admin_status, fmt::format("address: {}", address));
  }
  return ServerDescription{.model = info.id(),
                           .context_tokens = info.context_length(),
                           .vocabulary = info.vocabulary(),
                           .version = server.version(),
                           .device = server.device(),
                           .configuration_json = server.configuration_json()};
}

Result<std::vector<std::int32_t>> EncodeOnServer(const std::shared_ptr<grpc::Channel>& channel,
                                                 const std::string& model,
                                                 const std::string& text) {
  const auto tokens = v1::TokenService::NewStub(channel);
  v1::TokenizeRequest request;
  request.set_model(model);
  request.set_text(text);
  grpc::ClientContext call;
  SetDeadline(call);
  v1::TokenizeResponse response;
  const grpc::Status status = tokens->Tokenize(&call, request, &response);
  if (!status.ok()) {
    return ErrorOf(status, "the server's tokenizer");
  }
  return std::vector<std::int32_t>(response.ids().begin(), response.ids().end());
}

Result<LoadRun> GenerateLoad(const std::shared_ptr<grpc::Channel>& channel,
                             const std::vector<WorkloadRequest>& requests, const LoadPoint& point,
                             const LoadOptions& options, const std::atomic<bool>& interrupted,
                             const std::function<void(const RunProgress&)>& report) {
  DSA_ASSIGN_OR_RETURN(std::vector<std::int64_t> planned,
                       ArrivalTimesUs(point, requests, options.seed));
  for (std::int64_t& time : planned) {
    time *= 1000;  // us to ns
  }
  return Generator(channel, requests, point, options).Run(planned, interrupted, report);
}

}  // namespace dsa::bench
