#include "proto/xai/chat.grpc.pb.h"
#include "server/api/prompt.h"
#include "server/api/uptime.h"
#include "server/grpc/reactors.h"
#include "server/grpc/unary_call.h"
#include "server/grpc/xai/completion.h"
#include "server/grpc/xai/services.h"
#include "tokenizer/utf8.h"

#include <ctime>

namespace dsa {
namespace {

constexpr GenerationMethod kCompletion = {
    .name = "xai_api.Chat/GetCompletion", .fields = &kXaiFieldNames, .codec = MakeXaiWholeCodec};
constexpr GenerationMethod kCompletionChunk = {.name = "xai_api.Chat/GetCompletionChunk",
                                               .fields = &kXaiFieldNames,
                                               .codec = MakeXaiStreamCodec};

xai_api::LanguageModel DescribeForXai(const ServiceContext& context) {
  constexpr std::int64_t kUsPerSecond = 1'000'000;
  const std::int64_t uptime_s = UptimeUs(context) / kUsPerSecond;
  xai_api::LanguageModel model;
  model.set_name(context.model.id);
  model.set_version(context.server.version);
  model.add_input_modalities(xai_api::TEXT);
  model.add_output_modalities(xai_api::TEXT);
  model.mutable_created()->set_seconds(std::time(nullptr) - uptime_s);
  model.set_max_prompt_length(static_cast<std::int32_t>(context.model.context_length - 1));
  model.set_system_fingerprint(context.server.instance);
  return model;
}

Result<xai_api::ListLanguageModelsResponse> ListForXai(const google::protobuf::Empty& /*request*/,
                                                       const ServiceContext& context) {
  xai_api::ListLanguageModelsResponse response;
  *response.add_models() = DescribeForXai(context);
  return response;
}

Result<xai_api::LanguageModel> FindForXai(const xai_api::GetModelRequest& request,
                                          const ServiceContext& context) {
  DSA_RETURN_IF_ERROR(CheckModel(request.name(), "name", context));
  return DescribeForXai(context);
}

Result<xai_api::TokenizeTextResponse> TokenizeForXai(const xai_api::TokenizeTextRequest& request,
                                                     const ServiceContext& context) {
  DSA_RETURN_IF_ERROR(CheckModel(request.model(), "model", context));
  DSA_ASSIGN_OR_RETURN(const std::vector<TokenId> ids,
                       EncodeWithin(request.text(), {}, "text", context));
  xai_api::TokenizeTextResponse response;
  response.set_model(context.model.id);
  for (const TokenId id : ids) {
    const std::string bytes(context.tokenizer->Bytes(id));
    xai_api::Token& token = *response.add_tokens();
    token.set_token_id(static_cast<std::uint32_t>(Value(id)));
    token.set_string_token(RepairUtf8(bytes));
    token.set_token_bytes(bytes);
  }
  return response;
}

Result<xai_api::ApiKey> KeyForXai(const google::protobuf::Empty& /*request*/,
                                  const ServiceContext& /*context*/) {
  xai_api::ApiKey key;
  key.set_name("dsa");
  key.add_acls("api-key:model:*");
  key.add_acls("api-key:endpoint:*");
  return key;
}

class XaiChatService final
    : public xai_api::Chat::WithRawCallbackMethod_GetCompletion<
          xai_api::Chat::WithRawCallbackMethod_GetCompletionChunk<xai_api::Chat::Service>> {
 public:
  explicit XaiChatService(ServiceContext& context) : context_(context) {}

  grpc::ServerUnaryReactor* GetCompletion(grpc::CallbackServerContext* rpc,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override {
    return StartWhole(kCompletion, context_, *rpc, *request, *response);
  }
  grpc::ServerWriteReactor<grpc::ByteBuffer>* GetCompletionChunk(
      grpc::CallbackServerContext* rpc, const grpc::ByteBuffer* request) override {
    return StartStream(kCompletionChunk, context_, *rpc, *request);
  }

 private:
  ServiceContext& context_;
};

class XaiModelsService final
    : public xai_api::Models::WithRawCallbackMethod_ListLanguageModels<
          xai_api::Models::WithRawCallbackMethod_GetLanguageModel<xai_api::Models::Service>> {
 public:
  explicit XaiModelsService(ServiceContext& context) : context_(context) {}

  grpc::ServerUnaryReactor* ListLanguageModels(grpc::CallbackServerContext* rpc,
                                               const grpc::ByteBuffer* request,
                                               grpc::ByteBuffer* response) override {
    return Answer(
        LenientCall("xai_api.Models/ListLanguageModels", context_, rpc, request, response),
        ListForXai);
  }
  grpc::ServerUnaryReactor* GetLanguageModel(grpc::CallbackServerContext* rpc,
                                             const grpc::ByteBuffer* request,
                                             grpc::ByteBuffer* response) override {
    return Answer(LenientCall("xai_api.Models/GetLanguageModel", context_, rpc, request, response),
                  FindForXai);
  }

 private:
  ServiceContext& context_;
};

class XaiTokenizeService final
    : public xai_api::Tokenize::WithRawCallbackMethod_TokenizeText<xai_api::Tokenize::Service> {
 public:
  explicit XaiTokenizeService(ServiceContext& context) : context_(context) {}

  grpc::ServerUnaryReactor* TokenizeText(grpc::CallbackServerContext* rpc,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override {
    return Answer(LenientCall("xai_api.Tokenize/TokenizeText", context_, rpc, request, response),
                  TokenizeForXai);
  }

 private:
  ServiceContext& context_;
};

class XaiAuthService final
    : public xai_api::Auth::WithRawCallbackMethod_get_api_key_info<xai_api::Auth::Service> {
 public:
  explicit XaiAuthService(ServiceContext& context) : context_(context) {}

  grpc::ServerUnaryReactor* get_api_key_info(grpc::CallbackServerContext* rpc,
                                             const grpc::ByteBuffer* request,
                                             grpc::ByteBuffer* response) override {
    return Answer(LenientCall("xai_api.Auth/get_api_key_info", context_, rpc, request, response),
                  KeyForXai);
  }

 private:
  ServiceContext& context_;
};

}  // namespace

NamedService MakeXaiChatService(ServiceContext& context) {
  return {xai_api::Chat::service_full_name(), std::make_unique<XaiChatService>(context)};
}

NamedService MakeXaiModelsService(ServiceContext& context) {
  return {xai_api::Models::service_full_name(), std::make_unique<XaiModelsService>(context)};
}

NamedService MakeXaiTokenizeService(ServiceContext& context) {
  return {xai_api::Tokenize::service_full_name(), std::make_unique<XaiTokenizeService>(context)};
}

NamedService MakeXaiAuthService(ServiceContext& context) {
  return {xai_api::Auth::service_full_name(), std::make_unique<XaiAuthService>(context)};
}

}  // namespace dsa
