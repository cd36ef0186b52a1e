#include "server/grpc/reactors.h"

#include "server/grpc/call_info.h"
#include "server/grpc/wire.h"

#include <optional>
#include <utility>
#include <vector>

namespace dsa {
namespace {

// What both reactors say, and beside it.
class Messages final {
 public:
  Messages(const GenerationMethod& method, const ServiceContext& context,
           grpc::CallbackServerContext& rpc)
      : codec_(method.codec(context)), instance_(context.server.instance), rpc_(rpc) {}

  MessageCodec& codec() { return *codec_; }

  std::vector<grpc::ByteBuffer> Encode(const ReplyPart& part, const ReplyHead& head) {
    std::vector<grpc::ByteBuffer> messages = codec_->Encode(part, head);
    // With the first token only: a header before it would keep clients from retrying an error.
    if (!headers_sent_ && !messages.empty()) {
      AddMetadata(rpc_, Place::kFront, {.request_id = head.request_id, .instance = instance_});
      headers_sent_ = true;
    }
    return messages;
  }

  // Behind the last message.
  grpc::Status End(const ReplyHead& head, const Status& status) {
    if (!headers_sent_) {
      AddMetadata(rpc_, Place::kBehind, {.request_id = head.request_id, .instance = instance_});
    }
    if (!status.ok()) {
      AddRetryMetadata(rpc_, status.error());
    }
    return ToGrpc(status);
  }

  void Cancel() { rpc_.TryCancel(); }

 private:
  const std::unique_ptr<MessageCodec> codec_;
  const std::string& instance_;
  grpc::CallbackServerContext& rpc_;
  bool headers_sent_ = false;
};

// A part may be several messages, and gRPC writes one at a time.
class StreamReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer>, public ReplyWriter {
 public:
  StreamReactor(const GenerationMethod& method, const ServiceContext& context,
                grpc::CallbackServerContext& rpc)
      : messages_(method, context, rpc) {}
  MessageCodec& codec() { return messages_.codec(); }
  void Begin(std::shared_ptr<GenerationCall> call) { call_ = std::move(call); }

  void Write(const ReplyPart& part, const ReplyHead& head) override {
    written_ = 0;
    buffers_ = messages_.Encode(part, head);
    DSA_CHECK(!buffers_.empty(), "a part in the middle of a stream is a message");
    WriteNext();
  }
  bool StayAlive(const ReplyHead& /*head*/) override { return false; }  // pings do
  void Finish(const ReplyPart* last, const ReplyHead& head, const Status& status) override {
    written_ = 0;
    buffers_ = last == nullptr ? std::vector<grpc::ByteBuffer>() : messages_.Encode(*last, head);
    end_ = messages_.End(head, status);
    WriteNext();
  }
  void Drop() override { messages_.Cancel(); }

  void OnWriteDone(bool ok) override {
    if (!ok) {
      buffers_.resize(written_);  // nobody is there to read the rest
    }
    if (end_ || written_ < buffers_.size()) {
      WriteNext();
    } else {
      call_->OnWriteDone(ok);
    }
  }
  void OnCancel() override { call_->OnCancel(); }
  void OnDone() override {
    call_->OnDone();
    delete this;
  }

 private:
  void WriteNext() {
    if (written_ == buffers_.size()) {
      ServerWriteReactor::Finish(*end_);
      return;
    }
    grpc::ByteBuffer* buffer = &buffers_[written_++];
    if (end_ && written_ == buffers_.size()) {
      StartWriteAndFinish(buffer, grpc::WriteOptions(), *end_);
    } else {
      StartWrite(buffer);
    }
  }

  Messages messages_;
  // By Write and Finish, then by OnWriteDone until all are written.
  std::vector<grpc::ByteBuffer> buffers_;
  std::size_t written_ = 0;               // of buffers_, the one in flight included
  std::optional<grpc::Status> end_;       // behind the last of buffers_
  std::shared_ptr<GenerationCall> call_;  // set before gRPC can call back
};

class WholeReactor final : public grpc::ServerUnaryReactor, public ReplyWriter {
 public:
  WholeReactor(const GenerationMethod& method, const ServiceContext& context,
               grpc::CallbackServerContext& rpc, grpc::ByteBuffer& response)
      : messages_(method, context, rpc), response_(response) {}
  MessageCodec& codec() { return messages_.codec(); }
  void Begin(std::shared_ptr<GenerationCall> call) { call_ = std::move(call); }

  void Write(const ReplyPart& /*part*/, const ReplyHead& /*head*/) override {
    DSA_CHECK(false, "a unary call has one message");
  }
  bool StayAlive(const ReplyHead& /*head*/) override { return false; }  // pings do
  // Only with a message can a call end with OK: gRPC aborts the process where a unary call does
  // without one.
  void Finish(const ReplyPart* last, const ReplyHead& head, const Status& status) override {
    if (last != nullptr) {
      const std::vector<grpc::ByteBuffer> messages = messages_.Encode(*last, head);
      DSA_CHECK(messages.size() == 1, "{} messages of a unary call", messages.size());
      response_ = messages.front();
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

class Refusal final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  explicit Refusal(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

template <typename Reactor>
Reactor* StartCall(const GenerationMethod& method, Delivery delivery, ServiceContext& context,
                   grpc::CallbackServerContext& rpc, const grpc::ByteBuffer& request,
                   Reactor* reactor) {
  reactor->Begin(GenerationCall::Start(
      context,
      {.method = method.name,
       .fields = method.fields,
       .request_id_header = ClientRequestId(rpc),
       .deadline_us = DeadlineUs(rpc, context.clock)},
      request.Length(),
      [&codec = reactor->codec(), &request, delivery](Ask& ask) {
        ask.delivery = delivery;
        return codec.Read(request, ask);
      },
      *reactor));
  return reactor;
}

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* StartStream(const GenerationMethod& method,
                                                        ServiceContext& context,
                                                        grpc::CallbackServerContext& rpc,
                                                        const grpc::ByteBuffer& request) {
  return StartCall(method, Delivery::kStream, context, rpc, request,
                   new StreamReactor(method, context, rpc));
}

grpc::ServerUnaryReactor* StartWhole(const GenerationMethod& method, ServiceContext& context,
                                     grpc::CallbackServerContext& rpc,
                                     const grpc::ByteBuffer& request, grpc::ByteBuffer& response) {
  return StartCall(method, Delivery::kWhole, context, rpc, request,
                   new WholeReactor(method, context, rpc, response));
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* RefuseStream(const Error& error) {
  return new Refusal(ToGrpc(error));
}

}  // namespace dsa
