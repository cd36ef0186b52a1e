#include "proto/admin.grpc.pb.h"
#include "server/api/uptime.h"
#include "server/grpc/unary_call.h"
#include "server/grpc/v1/services.h"

namespace dsa {
namespace {

Result<v1::ServerInfo> GetServerInfo(const v1::GetServerInfoRequest& /*request*/,
                                     const ServiceContext& context) {
  constexpr double kUsPerSecond = 1e6;
  v1::ServerInfo info;
  info.set_version(context.server.version);
  info.set_uptime_seconds(static_cast<double>(UptimeUs(context)) / kUsPerSecond);
  info.set_device(context.server.device);
  info.set_model(context.model.id);
  info.set_configuration_json(context.server.configuration_json);
  info.set_instance(context.server.instance);
  return info;
}

Result<v1::Load> GetLoad(const v1::GetLoadRequest& /*request*/, const ServiceContext& context) {
  constexpr double kUsPerMs = 1000.0;
  const EngineLoad load = context.engine.Load();
  v1::Load message;
  message.set_waiting(load.waiting);
  message.set_running(load.running);
  message.set_blocks_total(load.blocks_total);
  message.set_blocks_referenced(load.blocks_referenced);
  message.set_blocks_cached(load.blocks_cached);
  message.set_steps(load.steps);
  message.set_tokens_computed(load.tokens_computed);
  message.set_requests_finished(load.requests_finished);
  message.set_last_step_ms(static_cast<double>(load.last_step_us) / kUsPerMs);
  message.set_draining(load.draining);
  v1::BusyTime& busy = *message.mutable_busy();
  busy.set_total_ms(load.busy.busy_us / kUsPerMs);
  busy.set_prefill_ms(load.busy.prefill_us / kUsPerMs);
  busy.set_decode_ms(load.busy.decode_us / kUsPerMs);
  busy.set_recomputed_ms(load.busy.recomputed_us / kUsPerMs);
  busy.set_padding_ms(load.busy.padding_us / kUsPerMs);
  busy.set_own_ms(load.busy.own_us / kUsPerMs);
  busy.set_dropped_ms(load.busy.dropped_us / kUsPerMs);
  for (const RankLoad& rank : load.ranks) {
    v1::RankLoad& row = *message.add_ranks();
    row.set_waiting(rank.waiting);
    row.set_running(rank.running);
    row.set_blocks_total(rank.blocks_total);
    row.set_blocks_referenced(rank.blocks_referenced);
    row.set_blocks_cached(rank.blocks_cached);
    const std::int64_t rows = rank.rows + rank.padding_rows;
    row.set_rows(rows);
    row.set_padding_share(
        rows == 0 ? 0.0 : static_cast<double>(rank.padding_rows) / static_cast<double>(rows));
    row.set_last_step_ms(static_cast<double>(rank.last_step_us) / kUsPerMs);
    row.set_expert_pairs(rank.expert_pairs);
    row.set_expert_pairs_max_over_mean(rank.expert_pairs_max_over_mean);
  }
  return message;
}

Result<v1::AbortResponse> Abort(const v1::AbortRequest& request, const ServiceContext& context) {
  if (request.request_id().empty()) {
    return InvalidArgument("request_id: empty");
  }
  v1::AbortResponse response;
  response.set_aborted(context.engine.Abort(request.request_id()));
  return response;
}

class AdminService final
    : public v1::AdminService::WithRawCallbackMethod_GetServerInfo<
          v1::AdminService::WithRawCallbackMethod_GetLoad<
              v1::AdminService::WithRawCallbackMethod_Abort<v1::AdminService::Service>>> {
 public:
  explicit AdminService(ServiceContext& context) : context_(context) {}

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* rpc,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override {
    return Answer({"AdminService/GetServerInfo", context_, *rpc, *request, *response},
                  dsa::GetServerInfo);
  }
  grpc::ServerUnaryReactor* GetLoad(grpc::CallbackServerContext* rpc,
                                    const grpc::ByteBuffer* request,
                                    grpc::ByteBuffer* response) override {
    return Answer({"AdminService/GetLoad", context_, *rpc, *request, *response}, dsa::GetLoad);
  }
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* rpc, const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override {
    return Answer({"AdminService/Abort", context_, *rpc, *request, *response}, dsa::Abort);
  }

 private:
  ServiceContext& context_;
};

}  // namespace

NamedService MakeAdminService(ServiceContext& context) {
  return {v1::AdminService::service_full_name(), std::make_unique<AdminService>(context)};
}

}  // namespace dsa
