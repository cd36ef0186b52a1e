#include "proto/completion.grpc.pb.h"
#include "server/api/reactors.h"
#include "server/api/services.h"
#include "server/api/wire.h"

namespace dsa {
namespace {

Result<Generation> Parse(const grpc::ByteBuffer& bytes, const ServiceContext& context,
                         std::string& request_id) {
  v1::CompletionRequest message;
  DSA_RETURN_IF_ERROR(ParseStrictly(bytes, message));
  request_id = message.request_id();
  return Translate(message, context);
}

grpc::ByteBuffer EncodeWhole(const ReplyPart& part, const ReplyHead& head,
                             const ServiceContext& context) {
  return Serialize(EncodeCompletion(part, head, context));
}

grpc::ByteBuffer EncodePart(const ReplyPart& part, const ReplyHead& head,
                            const ServiceContext& context) {
  return Serialize(EncodeCompletionPart(part, head, context));
}

constexpr GenerationMethod kComplete = {.name = "CompletionService/Complete",
                                        .delivery = Delivery::kWhole,
                                        .parse = Parse,
                                        .encode = EncodeWhole};
constexpr GenerationMethod kCompleteStream = {.name = "CompletionService/CompleteStream",
                                              .delivery = Delivery::kStream,
                                              .parse = Parse,
                                              .encode = EncodePart};

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

std::unique_ptr<grpc::Service> MakeCompletionService(ServiceContext& context) {
  return std::make_unique<CompletionService>(context);
}

}  // namespace dsa
