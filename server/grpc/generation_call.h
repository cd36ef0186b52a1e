// One chat or completion call: the engine's deltas come in, gRPC messages go out.
//
//   stream pump --OnDelta--> [ReplyPart pending] --one write in flight--> gRPC
//                                  ^ merged                 |
//                                  +------ OnWriteDone -----+
//
// A client that reads slowly gets fewer, longer messages; one that does not read at all is dropped.
// Whatever happens to a call ends in one OnDone, which logs it once: as OK only where the client
// was still there when the last message had left. Shared by the engine, as the sink, and by the
// gRPC reactor, which owns itself: neither owns the other, and either may go first.
#pragma once

#include "server/api/open_calls.h"
#include "server/api/reply.h"
#include "server/api/service_context.h"
#include "server/engine/token_sink.h"
#include "server/grpc/v1/encode.h"
#include "server/grpc/v1/translate.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>

namespace dsa {

enum class Delivery : std::uint8_t {
  kWhole,   // one message at the end
  kStream,  // parts as they come
};

// What the four methods differ in.
struct GenerationMethod {
  std::string_view name;  // "ChatService/Chat"
  Delivery delivery;
  // Parses and translates.  `request_id` receives the message's, also where the rest is refused.
  Result<Generation> (*parse)(const grpc::ByteBuffer& bytes, const ServiceContext& context,
                              std::string& request_id);
  grpc::ByteBuffer (*encode)(const ReplyPart& part, const ReplyHead& head,
                             const ServiceContext& context);
};

// The gRPC side of a call.  None of these waits.
class GenerationTransport {
 public:
  GenerationTransport() = default;
  GenerationTransport(const GenerationTransport&) = delete;
  GenerationTransport& operator=(const GenerationTransport&) = delete;
  virtual ~GenerationTransport() = default;

  // `bytes` stays as it is until GenerationCall::OnWriteDone; one write at a time.
  virtual void Write(const grpc::ByteBuffer& bytes) = 0;
  // The last message and the status.  Only so a call can end with OK: gRPC aborts the process where
  // a unary call does without a message.
  virtual void WriteAndFinish(const grpc::ByteBuffer& bytes, const Status& status) = 0;
  virtual void Fail(const Error& error) = 0;
};

class GenerationCall final : public TokenSink, private OpenCall {
 public:
  // Parses, translates and submits a request, here or by the text workers.  The answer or the error
  // leaves through `transport`, which lives, as do `rpc` and `request`, until it calls OnDone. gRPC
  // thread.
  static std::shared_ptr<GenerationCall> Start(const GenerationMethod& method,
                                               ServiceContext& context,
                                               grpc::CallbackServerContext& rpc,
                                               const grpc::ByteBuffer& request,
                                               GenerationTransport& transport);

  GenerationCall(const GenerationMethod& method, ServiceContext& context,
                 grpc::CallbackServerContext& rpc, GenerationTransport& transport);
  ~GenerationCall() override;

  void OnDelta(TokenDelta&& delta) override;  // stream pump thread
  std::unique_ptr<TextDecoder> MakeDecoder() const override;
  std::unique_ptr<ContentReader> MakeContentReader() const override;

  // gRPC threads.
  void OnWriteDone(bool ok);
  void OnCancel();
  void OnDone();

 private:
  // Why a call ends that the engine did not end.
  enum class Departure : std::uint8_t { kNone, kCancelled, kDeadline, kTooSlow };

  void Look() override;  // thread of the open calls
  Status Submit(const grpc::ByteBuffer& request, const std::shared_ptr<GenerationCall>& self);
  Status ClaimId(const std::string& wanted);
  void Refuse(const Error& error);
  void Depart(Departure departure);
  // mutex_ held:
  void Advance();
  void End();
  void SendHeaders();
  void DropIfSlow();
  Status FinalStatus(Departure departure) const;
  void Close(const Status& status);
  void Log(const Status& outcome) const;

  // Constant once submitted.
  const GenerationMethod& method_;
  ServiceContext& context_;
  const MonotonicUs arrival_us_;
  const std::optional<MonotonicUs> deadline_us_;
  ReplyHead head_;  // its request_id may be the client's before it is claimed
  bool claimed_ = false;
  ReplyFormat format_;
  const std::string header_id_;  // x-request-id as it came, of any form; for the log

  std::optional<ReplyAssembler> assembler_;  // stream pump thread

  // The first one stays.  Nothing is ordered by it.
  std::atomic<Departure> departure_{Departure::kNone};

  std::mutex mutex_;
  // Guarded by mutex_:
  grpc::CallbackServerContext* rpc_;  // null after OnDone
  GenerationTransport* transport_;    // null after OnDone
  ReplyPart pending_;
  bool has_pending_ = false;
  bool write_in_flight_ = false;
  bool headers_sent_ = false;
  bool closed_ = false;               // the status is on its way
  Status outcome_;                    // once closed
  MonotonicUs write_started_us_ = 0;  // of the write in flight, or of the status
  grpc::ByteBuffer buffer_;           // of the write in flight
  // Of the part last seen, for the log.
  Usage usage_;
  std::optional<ReplyFinish> finish_;
};

}  // namespace dsa
