// A streaming call by its path, in bytes: no generated stub.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <grpcpp/generic/generic_stub.h>

namespace dsa::testing {

// One message out, any number in.  Waits at most 30 s for each.
class RawStream final {
 public:
  RawStream(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
            const std::string& bytes)
      : stub_(channel) {
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    stream_ = stub_.PrepareCall(&rpc_, method, &events_);
    stream_->StartCall(this);
    Next();
    stream_->WriteLast(request, grpc::WriteOptions(), this);
    Next();
  }
  ~RawStream() {
    rpc_.TryCancel();
    if (!finished_) {
      Finish();
    }
    events_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (events_.Next(&tag, &ok)) {
    }
  }
  // Once finished.
  bool HasTrailer(const char* key) const {
    return rpc_.GetServerTrailingMetadata().count(key) == 1;
  }

  RawStream(const RawStream&) = delete;
  RawStream& operator=(const RawStream&) = delete;

  // False at the end.
  template <typename Message>
  bool Read(Message& message) {
    grpc::ByteBuffer buffer;
    stream_->Read(&buffer, this);
    if (!Next()) {
      return false;
    }
    std::vector<grpc::Slice> slices;
    CHECK(buffer.Dump(&slices).ok());
    std::string bytes;
    for (const grpc::Slice& slice : slices) {
      bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    }
    CHECK(message.ParseFromString(bytes));
    return true;
  }

  grpc::Status Finish() {
    finished_ = true;
    grpc::Status status;
    stream_->Finish(&status, this);
    Next();
    return status;
  }

  grpc::ClientContext& rpc() { return rpc_; }

 private:
  bool Next() {
    void* tag = nullptr;
    bool ok = false;
    const auto limit = std::chrono::system_clock::now() + std::chrono::seconds(30);
    CHECK(events_.AsyncNext(&tag, &ok, limit) == grpc::CompletionQueue::GOT_EVENT);
    return ok;
  }

  grpc::GenericStub stub_;
  grpc::ClientContext rpc_;
  grpc::CompletionQueue events_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  bool finished_ = false;
};

}  // namespace dsa::testing
