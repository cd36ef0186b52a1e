#include "server/grpc/reactors.h"

#include "server/grpc/wire.h"

#include <memory>

namespace dsa {
namespace {

class StreamReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                            public GenerationTransport {
 public:
  void Begin(std::shared_ptr<GenerationCall> call) { call_ = std::move(call); }

  void Write(const grpc::ByteBuffer& bytes) override { StartWrite(&bytes); }
  void WriteAndFinish(const grpc::ByteBuffer& bytes, const Status& status) override {
    StartWriteAndFinish(&bytes, grpc::WriteOptions(), ToGrpc(status));
  }
  void Fail(const Error& error) override { Finish(ToGrpc(error)); }

  void OnWriteDone(bool ok) override { call_->OnWriteDone(ok); }
  void OnCancel() override { call_->OnCancel(); }
  void OnDone() override {
    call_->OnDone();
    delete this;
  }

 private:
  std::shared_ptr<GenerationCall> call_;  // set before gRPC can call back
};

class WholeReactor final : public grpc::ServerUnaryReactor, public GenerationTransport {
 public:
  explicit WholeReactor(grpc::ByteBuffer& response) : response_(response) {}
  void Begin(std::shared_ptr<GenerationCall> call) { call_ = std::move(call); }

  void Write(const grpc::ByteBuffer& /*bytes*/) override {
    DSA_CHECK(false, "a unary call has one message");
  }
  void WriteAndFinish(const grpc::ByteBuffer& bytes, const Status& status) override {
    response_ = bytes;
    Finish(ToGrpc(status));
  }
  void Fail(const Error& error) override { Finish(ToGrpc(error)); }

  void OnCancel() override { call_->OnCancel(); }
  void OnDone() override {
    call_->OnDone();
    delete this;
  }

 private:
  grpc::ByteBuffer& response_;
  std::shared_ptr<GenerationCall> call_;  // set before gRPC can call back
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* StartStream(const GenerationMethod& method,
                                                        ServiceContext& context,
                                                        grpc::CallbackServerContext& rpc,
                                                        const grpc::ByteBuffer& request) {
  auto* reactor = new StreamReactor();
  reactor->Begin(GenerationCall::Start(method, context, rpc, request, *reactor));
  return reactor;
}

grpc::ServerUnaryReactor* StartWhole(const GenerationMethod& method, ServiceContext& context,
                                     grpc::CallbackServerContext& rpc,
                                     const grpc::ByteBuffer& request, grpc::ByteBuffer& response) {
  auto* reactor = new WholeReactor(response);
  reactor->Begin(GenerationCall::Start(method, context, rpc, request, *reactor));
  return reactor;
}

}  // namespace dsa
