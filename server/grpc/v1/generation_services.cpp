#include "proto/chat.grpc.pb.h"
#include "proto/completion.grpc.pb.h"
#include "server/grpc/reactors.h"
#include "server/grpc/v1/encode.h"
#include "server/grpc/v1/services.h"
#include "server/grpc/v1/translate.h"
#include "server/grpc/wire.h"

namespace dsa {
namespace {

// Of messages that are read by ToAsk and written by `kEncode`: each says all there is to say of it.
template <typename Message, auto kEncode>
class PlainCodec final : public MessageCodec {
 public:
  explicit PlainCodec(const ServiceContext& context) : context_(context) {}

  Status Read(const grpc::ByteBuffer& bytes, Ask& ask) override {
    Message message;
    DSA_RETURN_IF_ERROR(ParseMessage(bytes, UnknownFields::kRefused, message));
    return ToAsk(message, ask);
  }
  std::vector<grpc::ByteBuffer> Encode(const ReplyPart& part, const ReplyHead& head) override {
    return {Serialize(kEncode(part, head, context_))};
  }

 private:
  const ServiceContext& context_;
};

template <typename Message, auto kEncode>
std::unique_ptr<MessageCodec> MakeCodec(const ServiceContext& context) {
  return std::make_unique<PlainCodec<Message, kEncode>>(context);
}

constexpr GenerationMethod kChat = {.name = "ChatService/Chat",
                                    .fields = &kFieldNames,
                                    .codec = MakeCodec<v1::ChatRequest, EncodeChat>};
constexpr GenerationMethod kChatStream = {.name = "ChatService/ChatStream",
                                          .fields = &kFieldNames,
                                          .codec = MakeCodec<v1::ChatRequest, EncodeChatPart>};
constexpr GenerationMethod kComplete = {
    .name = "CompletionService/Complete",
    .fields = &kFieldNames,
    .codec = MakeCodec<v1::CompletionRequest, EncodeCompletion>};
constexpr GenerationMethod kCompleteStream = {
    .name = "CompletionService/CompleteStream",
    .fields = &kFieldNames,
    .codec = MakeCodec<v1::CompletionRequest, EncodeCompletionPart>};

class ChatService final
    : public v1::ChatService::WithRawCallbackMethod_Chat<
          v1::ChatService::WithRawCallbackMethod_ChatStream<v1::ChatService::Service>> {
 public:
  explicit ChatService(ServiceContext& context) : context_(context) {}

  grpc::ServerUnaryReactor* Chat(grpc::CallbackServerContext* rpc, const grpc::ByteBuffer* request,
                                 grpc::ByteBuffer* response) override {
    return StartWhole(kChat, context_, *rpc, *request, *response);
  }
  grpc::ServerWriteReactor<grpc::ByteBuffer>* ChatStream(grpc::CallbackServerContext* rpc,
                                                         const grpc::ByteBuffer* request) override {
    return StartStream(kChatStream, context_, *rpc, *request);
  }

 private:
  ServiceContext& context_;
};

class CompletionService final : public v1::CompletionService::WithRawCallbackMethod_Complete<
                                    v1::CompletionService::WithRawCallbackMethod_CompleteStream<
                                        v1::CompletionService::Service>> {
 public:
  explicit CompletionService(ServiceContext& context) : context_(context) {}

  grpc::ServerUnaryReactor* Complete(grpc::CallbackServerContext* rpc,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override {
    return StartWhole(kComplete, context_, *rpc, *request, *response);
  }
  grpc::ServerWriteReactor<grpc::ByteBuffer>* CompleteStream(
      grpc::CallbackServerContext* rpc, const grpc::ByteBuffer* request) override {
    return StartStream(kCompleteStream, context_, *rpc, *request);
  }

 private:
  ServiceContext& context_;
};

}  // namespace

NamedService MakeChatService(ServiceContext& context) {
  return {v1::ChatService::service_full_name(), std::make_unique<ChatService>(context)};
}

NamedService MakeCompletionService(ServiceContext& context) {
  return {v1::CompletionService::service_full_name(), std::make_unique<CompletionService>(context)};
}

}  // namespace dsa
