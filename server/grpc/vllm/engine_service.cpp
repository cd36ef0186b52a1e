#include "proto/vllm/engine.grpc.pb.h"
#include "server/api/errors.h"
#include "server/api/uptime.h"
#include "server/grpc/call_info.h"
#include "server/grpc/reactors.h"
#include "server/grpc/unary_call.h"
#include "server/grpc/vllm/generate.h"
#include "server/grpc/vllm/services.h"
#include "server/grpc/vllm/tokenizer_archive.h"
#include "server/grpc/wire.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <ctime>
#include <memory>
#include <string>
#include <utility>

#include <fmt/core.h>

namespace dsa {
namespace {

namespace engine = vllm::grpc::engine;

constexpr GenerationMethod kGenerate = {
    .name = "VllmEngine/Generate", .fields = &kVllmFieldNames, .codec = MakeVllmCodec};

Result<engine::HealthCheckResponse> TellHealth(const engine::HealthCheckRequest& /*request*/,
                                               const ServiceContext& context) {
  const bool draining = context.draining.load(std::memory_order_relaxed);
  engine::HealthCheckResponse response;
  response.set_healthy(!draining);
  response.set_message(draining ? "draining" : "ok");
  return response;
}

Result<engine::AbortResponse> AbortAll(const engine::AbortRequest& request,
                                       const ServiceContext& context) {
  for (const std::string& id : request.request_ids()) {
    context.engine.Abort(id);
  }
  return engine::AbortResponse();
}

Result<engine::GetModelInfoResponse> TellModel(const engine::GetModelInfoRequest& /*request*/,
                                               const ServiceContext& context) {
  const ServedModel& model = context.model;
  engine::GetModelInfoResponse response;
  response.set_model_path(model.id);
  response.set_is_generation(true);
  response.set_max_context_length(static_cast<std::uint32_t>(model.context_length));
  response.set_vocab_size(static_cast<std::uint32_t>(model.vocabulary));
  response.set_served_model_name(model.id);
  response.set_model_type(model.model_type);
  for (const TokenId id : model.end_ids) {
    response.add_eos_token_ids(Value(id));
  }
  if (model.bos) {
    response.set_bos_token_id(Value(*model.bos));
  }
  response.set_max_req_input_len(static_cast<std::int32_t>(model.context_length - 1));
  response.set_default_sampling_params_json(fmt::format(
      R"({{"temperature": {}, "top_p": {}, "top_k": {}, "min_p": {}, "repetition_penalty": {}}})",
      model.temperature, model.top_p, model.top_k, model.min_p, model.repetition_penalty));
  return response;
}

Result<engine::GetServerInfoResponse> TellServer(const engine::GetServerInfoRequest& /*request*/,
                                                 const ServiceContext& context) {
  constexpr double kUsPerSecond = 1e6;
  const EngineLoad load = context.engine.Load();
  engine::GetServerInfoResponse response;
  response.set_active_requests(static_cast<std::uint32_t>(load.waiting + load.running));
  response.set_is_paused(load.draining);
  response.set_uptime_seconds(static_cast<double>(UptimeUs(context)) / kUsPerSecond);
  response.set_server_type("vllm");
  response.set_kv_engine_id(context.server.instance);
  response.set_data_parallel_size(1);
  return response;
}

// In UTC, as ISO 8601 has it.
std::string Now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::array<char, 32> text{};
  return {text.data(), std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &utc)};
}

Result<engine::GetLoadsResponse> TellLoads(const engine::GetLoadsRequest& request,
                                           const ServiceContext& context) {
  if (request.dp_rank() != 0) {
    return InvalidArgument(
        fmt::format("dp_rank: {} is not in [0, 0]: there is one rank", request.dp_rank()));
  }
  const EngineLoad load = context.engine.Load();
  engine::GetLoadsResponse response;
  response.set_timestamp(Now());
  response.set_version(context.server.version);
  response.set_dp_rank_count(1);
  engine::SchedulerLoad& rank = *response.add_loads();
  rank.set_num_running_reqs(static_cast<std::int32_t>(load.running));
  rank.set_num_waiting_reqs(static_cast<std::int32_t>(load.waiting));
  rank.set_num_total_reqs(static_cast<std::int32_t>(load.running + load.waiting));
  rank.set_token_usage(load.blocks_total == 0 ? 0.0
                                              : static_cast<double>(load.blocks_referenced) /
                                                    static_cast<double>(load.blocks_total));
  return response;
}

// GetTokenizer: the archive, made by the text workers, in pieces.  Deletes itself in OnDone.
class TokenizerCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>, private OpenCall {
 public:
  TokenizerCall(ServiceContext& context, grpc::CallbackServerContext& rpc)
      : context_(context), rpc_(rpc) {}

  void Start() {
    context_.open_calls.Add(this);
    // As a large text: no other call waits for it.
    const Status taken = context_.workers.Do(TextWorkers::kMediumBytesMax + 1, [this] {
      Result<std::string> archive = ReadTokenizerArchive(context_.model.tokenizer_files);
      if (!archive.ok()) {
        Finish(ToGrpc(archive.error()));
        return;
      }
      archive_ = std::move(archive).value();
      sha256_ = Sha256Hex(archive_);
      WriteNext();
    });
    if (!taken.ok()) {
      Finish(ToGrpc(taken));
    }
  }

  void OnWriteDone(bool ok) override {
    if (!ok) {
      Finish(ToGrpc(CancelledError()));
      return;
    }
    WriteNext();
  }
  void OnDone() override {
    context_.open_calls.Remove(this);
    delete this;
  }

 private:
  void WriteNext() {
    constexpr std::size_t kPieceBytes = std::size_t{64} << 10;
    smg::grpc::common::GetTokenizerChunk chunk;
    chunk.set_data(archive_.substr(offset_, kPieceBytes));
    offset_ = std::min(offset_ + kPieceBytes, archive_.size());
    const bool last = offset_ == archive_.size();
    if (last) {
      chunk.set_sha256(sha256_);
    }
    buffer_ = Serialize(chunk);
    write_started_us_.store(context_.clock.NowUs(), std::memory_order_relaxed);
    if (last) {
      StartWriteAndFinish(&buffer_, grpc::WriteOptions(), grpc::Status::OK);
    } else {
      StartWrite(&buffer_);
    }
  }

  // Thread of the open calls.
  void Look() override {
    const MonotonicUs started_us = write_started_us_.load(std::memory_order_relaxed);
    if (started_us != 0 &&
        context_.clock.NowUs() - started_us >= context_.slow_client.stalled_us_max) {
      rpc_.TryCancel();
    }
  }

  ServiceContext& context_;
  grpc::CallbackServerContext& rpc_;
  std::string archive_;
  std::string sha256_;
  std::size_t offset_ = 0;                        // of the piece that is next
  grpc::ByteBuffer buffer_;                       // of the write in flight
  std::atomic<MonotonicUs> write_started_us_{0};  // 0: none yet; orders nothing
};

using engine::VllmEngine;
using RawEngine = VllmEngine::WithRawCallbackMethod_Generate<
    VllmEngine::WithRawCallbackMethod_Embed<VllmEngine::WithRawCallbackMethod_HealthCheck<
        VllmEngine::WithRawCallbackMethod_Abort<VllmEngine::WithRawCallbackMethod_GetModelInfo<
            VllmEngine::WithRawCallbackMethod_GetServerInfo<
                VllmEngine::WithRawCallbackMethod_GetLoads<
                    VllmEngine::WithRawCallbackMethod_GetTokenizer<
                        VllmEngine::WithRawCallbackMethod_SubscribeKvEvents<
                            VllmEngine::Service>>>>>>>>>;

class VllmService final : public RawEngine {
 public:
  explicit VllmService(ServiceContext& context) : context_(context) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* rpc,
                                                       const grpc::ByteBuffer* request) override {
    return StartStream(kGenerate, context_, *rpc, *request);
  }
  grpc::ServerUnaryReactor* Embed(grpc::CallbackServerContext* rpc, const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override {
    return AnswerUnary({"VllmEngine/Embed", context_, *rpc, *request, *response},
                       [](const grpc::ByteBuffer&) -> Result<grpc::ByteBuffer> {
                         return Error{ErrorCode::kUnimplemented, "this model has no embeddings"};
                       });
  }
  grpc::ServerUnaryReactor* HealthCheck(grpc::CallbackServerContext* rpc,
                                        const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override {
    return Answer(LenientCall("VllmEngine/HealthCheck", context_, rpc, request, response),
                  TellHealth);
  }
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* rpc, const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override {
    return Answer(LenientCall("VllmEngine/Abort", context_, rpc, request, response), AbortAll);
  }
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* rpc,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override {
    return Answer(LenientCall("VllmEngine/GetModelInfo", context_, rpc, request, response),
                  TellModel);
  }
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* rpc,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override {
    return Answer(LenientCall("VllmEngine/GetServerInfo", context_, rpc, request, response),
                  TellServer);
  }
  grpc::ServerUnaryReactor* GetLoads(grpc::CallbackServerContext* rpc,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override {
    return Answer(LenientCall("VllmEngine/GetLoads", context_, rpc, request, response), TellLoads);
  }
  grpc::ServerWriteReactor<grpc::ByteBuffer>* GetTokenizer(
      grpc::CallbackServerContext* rpc, const grpc::ByteBuffer* /*request*/) override {
    auto* call = new TokenizerCall(context_, *rpc);
    call->Start();
    return call;
  }
  grpc::ServerWriteReactor<grpc::ByteBuffer>* SubscribeKvEvents(
      grpc::CallbackServerContext* rpc, const grpc::ByteBuffer* /*request*/) override {
    AddMetadata(*rpc, Place::kBehind, {.request_id = "", .instance = context_.server.instance});
    return RefuseStream({ErrorCode::kUnimplemented, "events of the cache are not told yet"});
  }

 private:
  ServiceContext& context_;
};

}  // namespace

NamedService MakeVllmService(ServiceContext& context) {
  return {VllmEngine::service_full_name(), std::make_unique<VllmService>(context)};
}

}  // namespace dsa
