#include "server/grpc/reactors.h"

#include "server/grpc/call_info.h"
#include "server/grpc/wire.h"

#include <memory>
#include <utility>

namespace dsa {
namespace {

// What both reactors say beside their messages, and how they encode those.
class Messages final {
 public:
  Messages(const GenerationMethod& method, const ServiceContext& context,
           grpc::CallbackServerContext& rpc)
      : method_(method), context_(context), rpc_(rpc) {}

  grpc::ByteBuffer Encode(const ReplyPart& part, const ReplyHead& head) {
    // With the first token only: a header before it would keep clients from retrying an error.
    if (!headers_sent_) {
      AddMetadata(rpc_, Place::kFront, Names(head));
      headers_sent_ = true;
    }
    return method_.encode(part, head, context_);
  }

  // Behind the last message.
  grpc::Status End(const ReplyHead& head, const Status& status) {
    if (!headers_sent_) {
      AddMetadata(rpc_, Place::kBehind, Names(head));
    }
    if (!status.ok()) {
      AddRetryMetadata(rpc_, status.error());
    }
    return ToGrpc(status);
  }

  void Cancel() { rpc_.TryCancel(); }

 private:
  CallNames Names(const ReplyHead& head) const {
    return {.request_id = head.request_id, .instance = context_.server.instance};
  }

  const GenerationMethod& method_;
  const ServiceContext& context_;
  grpc::CallbackServerContext& rpc_;
  bool headers_sent_ = false;
};

class StreamReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer>, public ReplyWriter {
 public:
  explicit StreamReactor(const Messages& messages) : messages_(messages) {}
  void Begin(std::shared_ptr<GenerationCall> call) { call_ = std::move(call); }

  void Write(const ReplyPart& part, const ReplyHead& head) override {
    buffer_ = messages_.Encode(part, head);
    StartWrite(&buffer_);
  }
  void Finish(const ReplyPart* last, const ReplyHead& head, const Status& status) override {
    if (last == nullptr) {
      ServerWriteReactor::Finish(messages_.End(head, status));
      return;
    }
    buffer_ = messages_.Encode(*last, head);
    StartWriteAndFinish(&buffer_, grpc::WriteOptions(), messages_.End(head, status));
  }
  void Drop() override { messages_.Cancel(); }

  void OnWriteDone(bool ok) override { call_->OnWriteDone(ok); }
  void OnCancel() override { call_->OnCancel(); }
  void OnDone() override {
    call_->OnDone();
    delete this;
  }

 private:
  Messages messages_;
  grpc::ByteBuffer buffer_;               // of the write in flight
  std::shared_ptr<GenerationCall> call_;  // set before gRPC can call back
};

class WholeReactor final : public grpc::ServerUnaryReactor, public ReplyWriter {
 public:
  WholeReactor(const Messages& messages, grpc::ByteBuffer& response)
      : messages_(messages), response_(response) {}
  void Begin(std::shared_ptr<GenerationCall> call) { call_ = std::move(call); }

  void Write(const ReplyPart& /*part*/, const ReplyHead& /*head*/) override {
    DSA_CHECK(false, "a unary call has one message");
  }
  // Only with a message can a call end with OK: gRPC aborts the process where a unary call does
  // without one.
  void Finish(const ReplyPart* last, const ReplyHead& head, const Status& status) override {
    if (last != nullptr) {
      response_ = messages_.Encode(*last, head);
    }
    ServerUnaryReactor::Finish(messages_.End(head, status));
  }
  void Drop() override { messages_.Cancel(); }

  void OnCancel() override { call_->OnCancel(); }
  void OnDone() override {
    call_->OnDone();
    delete this;
  }

 private:
  Messages messages_;
  grpc::ByteBuffer& response_;
  std::shared_ptr<GenerationCall> call_;  // set before gRPC can call back
};

std::shared_ptr<GenerationCall> StartCall(const GenerationMethod& method, Delivery delivery,
                                          ServiceContext& context, grpc::CallbackServerContext& rpc,
                                          const grpc::ByteBuffer& request, ReplyWriter& writer) {
  return GenerationCall::Start(
      context,
      {.method = method.name,
       .fields = method.fields,
       .request_id_header = ClientRequestId(rpc),
       .deadline_us = DeadlineUs(rpc, context.clock)},
      request.Length(),
      [&method, &request, delivery](Ask& ask) {
        ask.delivery = delivery;
        return method.read(request, ask);
      },
      writer);
}

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* StartStream(const GenerationMethod& method,
                                                        ServiceContext& context,
                                                        grpc::CallbackServerContext& rpc,
                                                        const grpc::ByteBuffer& request) {
  auto* reactor = new StreamReactor({method, context, rpc});
  reactor->Begin(StartCall(method, Delivery::kStream, context, rpc, request, *reactor));
  return reactor;
}

grpc::ServerUnaryReactor* StartWhole(const GenerationMethod& method, ServiceContext& context,
                                     grpc::CallbackServerContext& rpc,
                                     const grpc::ByteBuffer& request, grpc::ByteBuffer& response) {
  auto* reactor = new WholeReactor({method, context, rpc}, response);
  reactor->Begin(StartCall(method, Delivery::kWhole, context, rpc, request, *reactor));
  return reactor;
}

}  // namespace dsa
