#include "proto/chat.grpc.pb.h"
#include "server/api/reactors.h"
#include "server/api/services.h"
#include "server/api/wire.h"

namespace dsa {
namespace {

Result<Generation> Parse(const grpc::ByteBuffer& bytes, const ServiceContext& context,
                         std::string& request_id) {
  v1::ChatRequest message;
  DSA_RETURN_IF_ERROR(ParseStrictly(bytes, message));
  request_id = message.request_id();
  return Translate(message, context);
}

grpc::ByteBuffer EncodeWhole(const ReplyPart& part, const ReplyHead& head,
                             const ServiceContext& context) {
  return Serialize(EncodeChat(part, head, context));
}

grpc::ByteBuffer EncodePart(const ReplyPart& part, const ReplyHead& head,
                            const ServiceContext& context) {
  return Serialize(EncodeChatPart(part, head, context));
}

constexpr GenerationMethod kChat = {.name = "ChatService/Chat",
                                    .delivery = Delivery::kWhole,
                                    .parse = Parse,
                                    .encode = EncodeWhole};
constexpr GenerationMethod kChatStream = {.name = "ChatService/ChatStream",
                                          .delivery = Delivery::kStream,
                                          .parse = Parse,
                                          .encode = EncodePart};

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

}  // namespace

std::unique_ptr<grpc::Service> MakeChatService(ServiceContext& context) {
  return std::make_unique<ChatService>(context);
}

}  // namespace dsa
