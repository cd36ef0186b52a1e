#include "proto/model.grpc.pb.h"
#include "server/api/prompt.h"
#include "server/grpc/unary_call.h"
#include "server/grpc/v1/services.h"
#include "tokenizer/chat_format.h"

namespace dsa {
namespace {

v1::ModelInfo Describe(const ServedModel& model) {
  v1::ModelInfo info;
  info.set_id(model.id);
  info.set_model_type(model.model_type);
  info.set_context_length(model.context_length);
  info.set_vocabulary(model.vocabulary);
  info.set_layers(model.layers);
  info.set_index_topk(model.index_topk);
  info.set_masked_mha_until(model.masked_mha_until);
  if (model.chat_format) {
    info.set_chat_format(std::string(ToString(*model.chat_format)));
  }
  for (const TokenId id : model.end_ids) {
    info.add_end_token_ids(Value(id));
  }
  info.set_max_tokens_default(model.max_tokens_default);
  info.set_temperature(model.temperature);
  info.set_top_p(model.top_p);
  info.set_top_k(model.top_k);
  info.set_min_p(model.min_p);
  info.set_repetition_penalty(model.repetition_penalty);
  return info;
}

Result<v1::ListModelsResponse> ListModels(const v1::ListModelsRequest& /*request*/,
                                          const ServiceContext& context) {
  v1::ListModelsResponse response;
  *response.add_models() = Describe(context.model);
  return response;
}

Result<v1::ModelInfo> GetModel(const v1::GetModelRequest& request, const ServiceContext& context) {
  DSA_RETURN_IF_ERROR(CheckModel(request.id(), "model", context));
  return Describe(context.model);
}

class ModelService final
    : public v1::ModelService::WithRawCallbackMethod_ListModels<
          v1::ModelService::WithRawCallbackMethod_GetModel<v1::ModelService::Service>> {
 public:
  explicit ModelService(ServiceContext& context) : context_(context) {}

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* rpc,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override {
    return Answer({"ModelService/ListModels", context_, *rpc, *request, *response},
                  dsa::ListModels);
  }
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* rpc,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override {
    return Answer({"ModelService/GetModel", context_, *rpc, *request, *response}, dsa::GetModel);
  }

 private:
  ServiceContext& context_;
};

}  // namespace

NamedService MakeModelService(ServiceContext& context) {
  return {v1::ModelService::service_full_name(), std::make_unique<ModelService>(context)};
}

}  // namespace dsa
