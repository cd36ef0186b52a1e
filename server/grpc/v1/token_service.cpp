#include "proto/token.grpc.pb.h"
#include "server/grpc/unary_call.h"
#include "server/grpc/v1/services.h"
#include "server/grpc/v1/translate.h"

namespace dsa {
namespace {

Result<RenderedPrompt> RenderConversation(const v1::Conversation& message,
                                          const ServiceContext& context) {
  DSA_ASSIGN_OR_RETURN(const Chat chat, ToChat(message, kConversationNames));
  return RenderPrompt(chat, kConversationNames, context);
}

Result<std::vector<TokenId>> EncodeConversation(const RenderedPrompt& chat,
                                                const ServiceContext& context) {
  return EncodeWithin(chat.text, chat.template_ranges, "conversation", context);
}

template <typename Response>
void AddIds(const std::vector<TokenId>& ids, Response& response) {
  for (const TokenId id : ids) {
    response.add_ids(Value(id));
  }
}

Result<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request,
                                      const ServiceContext& context) {
  DSA_RETURN_IF_ERROR(CheckModel(request.model(), "model", context));
  const TextRange all{.begin = 0, .end = request.text().size()};
  DSA_ASSIGN_OR_RETURN(
      const std::vector<TokenId> ids,
      EncodeWithin(request.text(), {&all, request.parse_special() ? 1U : 0U}, "text", context));
  v1::TokenizeResponse response;
  AddIds(ids, response);
  return response;
}

Result<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request,
                                          const ServiceContext& context) {
  DSA_RETURN_IF_ERROR(CheckModel(request.model(), "model", context));
  DSA_ASSIGN_OR_RETURN(
      std::string text,
      DecodeWithin({request.ids().data(), static_cast<std::size_t>(request.ids_size())}, "ids",
                   context));
  v1::DetokenizeResponse response;
  response.set_text(std::move(text));
  return response;
}

Result<v1::CountTokensResponse> CountTokens(const v1::CountTokensRequest& request,
                                            const ServiceContext& context) {
  DSA_RETURN_IF_ERROR(CheckNoRefusedFields(request));
  DSA_RETURN_IF_ERROR(CheckModel(request.model(), "model", context));
  v1::CountTokensResponse response;
  if (request.has_conversation()) {
    DSA_ASSIGN_OR_RETURN(const RenderedPrompt chat,
                         RenderConversation(request.conversation(), context));
    DSA_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, EncodeConversation(chat, context));
    response.set_tokens(static_cast<std::int64_t>(ids.size()));
    return response;
  }
  if (!request.has_text()) {
    return InvalidArgument("input: missing: text or conversation");
  }
  DSA_ASSIGN_OR_RETURN(const std::vector<TokenId> ids,
                       EncodeWithin(request.text(), {}, "text", context));
  response.set_tokens(static_cast<std::int64_t>(ids.size()));
  return response;
}

Result<v1::RenderResponse> Render(const v1::RenderRequest& request, const ServiceContext& context) {
  DSA_RETURN_IF_ERROR(CheckNoRefusedFields(request));
  DSA_RETURN_IF_ERROR(CheckModel(request.model(), "model", context));
  if (!request.has_conversation()) {
    return InvalidArgument("conversation: missing");
  }
  DSA_ASSIGN_OR_RETURN(const RenderedPrompt chat,
                       RenderConversation(request.conversation(), context));
  DSA_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, EncodeConversation(chat, context));
  v1::RenderResponse response;
  response.set_prompt(chat.text);
  AddIds(ids, response);
  return response;
}

using RawTokenService = v1::TokenService::WithRawCallbackMethod_Tokenize<
    v1::TokenService::WithRawCallbackMethod_Detokenize<
        v1::TokenService::WithRawCallbackMethod_CountTokens<
            v1::TokenService::WithRawCallbackMethod_Render<v1::TokenService::Service>>>>;

class TokenService final : public RawTokenService {
 public:
  explicit TokenService(ServiceContext& context) : context_(context) {}

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* rpc,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override {
    return Answer({"TokenService/Tokenize", context_, *rpc, *request, *response}, dsa::Tokenize);
  }
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* rpc,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override {
    return Answer({"TokenService/Detokenize", context_, *rpc, *request, *response},
                  dsa::Detokenize);
  }
  grpc::ServerUnaryReactor* CountTokens(grpc::CallbackServerContext* rpc,
                                        const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override {
    return Answer({"TokenService/CountTokens", context_, *rpc, *request, *response},
                  dsa::CountTokens);
  }
  grpc::ServerUnaryReactor* Render(grpc::CallbackServerContext* rpc,
                                   const grpc::ByteBuffer* request,
                                   grpc::ByteBuffer* response) override {
    return Answer({"TokenService/Render", context_, *rpc, *request, *response}, dsa::Render);
  }

 private:
  ServiceContext& context_;
};

}  // namespace

NamedService MakeTokenService(ServiceContext& context) {
  return {v1::TokenService::service_full_name(), std::make_unique<TokenService>(context)};
}

}  // namespace dsa
