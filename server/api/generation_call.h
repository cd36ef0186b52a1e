// One chat or completion call of any protocol: the engine's deltas come in, messages go out.
//
//   stream pump --OnDelta--> [ReplyPart pending] --one write in flight--> ReplyWriter
//                                  ^ merged                 |
//                                  +------ OnWriteDone -----+
//
// Several answers to one prompt (n) and answers to several prompts are as many requests of the
// engine and one call: each has its deltas, its parts and its end, and the call ends with the last
// of them.  Those to the first prompt come first.
//
// A client that reads slowly gets fewer, longer messages; one that does not read at all is dropped.
// Whatever happens to a call ends in one OnDone, which logs it once: as OK only where the client
// was still there when the last message had left. Shared by the engine, as the sink, and by the
// protocol's side, which owns itself: neither owns the other, and either may go first.
#pragma once

#include "server/api/ask.h"
#include "server/api/call_answers.h"
#include "server/api/open_calls.h"
#include "server/api/reply.h"
#include "server/api/reply_writer.h"
#include "server/api/service_context.h"
#include "server/engine/token_sink.h"

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

// What a call brings beside its message.
struct CallFacts {
  std::string_view method;             // for the log: "ChatService/Chat"
  const FieldNames* fields = nullptr;  // of its message; outlive the call
  std::string request_id_header{};     // x-request-id as it came, of any form
  std::optional<MonotonicUs> deadline_us{};
};

// Reads a call's message into `ask`, whose request_id is set also where the rest is refused.
using ReadAsk = std::function<Status(Ask& ask)>;

class GenerationCall final : public TokenSink, private OpenCall {
 public:
  // Reads, resolves and submits a request of `bytes`, here or by the text workers.  The answer or
  // the error leaves through `writer`, which lives, as does what `read` refers to, until the
  // protocol calls OnDone.
  static std::shared_ptr<GenerationCall> Start(ServiceContext& context, CallFacts facts,
                                               std::size_t bytes, ReadAsk read,
                                               ReplyWriter& writer);

  GenerationCall(ServiceContext& context, CallFacts facts, ReplyWriter& writer);
  ~GenerationCall() override;

  void OnDelta(TokenDelta&& delta) override;  // stream pump thread; of the first answer
  std::unique_ptr<TextDecoder> MakeDecoder() const override;
  std::unique_ptr<ContentReader> MakeContentReader() const override;

  // The protocol's threads: a write has ended; the client has left; nothing of the call is left but
  // this, which is the last that the writer is used for.
  void OnWriteDone(bool ok);
  void OnCancel();
  void OnDone();

 private:
  class Sibling;  // the sink of a further answer

  // Why a call ends that the engine did not end.
  enum class Departure : std::uint8_t {
    kNone,
    kCancelled,
    kDeadline,
    kTooSlow,
    kTooLarge,
    kTooManyLogprobs
  };

  void Look() override;  // thread of the open calls
  Status Submit(const ReadAsk& read, const std::shared_ptr<GenerationCall>& self);
  Status TakePromptBytes(const Generation& generation);
  void BeginAnswers(const Generation& generation);
  Result<Generation> Prepare(const ReadAsk& read, std::string& wanted_id);
  std::vector<Siblings> ToSiblings(Generation&& generation,
                                   const std::shared_ptr<GenerationCall>& self) const;
  Status SubmitUnder(const std::string& wanted_id, std::vector<Siblings>&& prompts);
  void OnAnswerDelta(std::size_t index, TokenDelta&& delta);
  void Refuse(const Error& error);
  void Depart(Departure departure);
  // mutex_ held:
  void Advance();
  void End();
  void DropIfSlow();
  void StayAliveIfSilent();
  bool IsCrowded() const;
  void EndIfLarge();
  Status FinalStatus(Departure departure) const;
  void Close(const Status& status);
  void Log(const Status& outcome) const;

  // Constant once submitted.
  ServiceContext& context_;
  const CallFacts facts_;
  const MonotonicUs arrival_us_;
  ReplyHead head_;  // its request_id may be the client's although it is not claimed
  Delivery delivery_ = Delivery::kWhole;
  std::int64_t ignored_fields_ = 0;
  ReplyFormat format_;
  std::shared_ptr<AnswerBudget> prompt_budget_;  // that prompt_bytes_ were taken from
  std::int64_t prompt_bytes_ = 0;  // taken of ServiceContext::prompt_logprobs until this is gone

  std::vector<ReplyAssembler> assemblers_;  // one per answer; stream pump thread once submitted

  // The first one stays.  Nothing is ordered by it.
  std::atomic<Departure> departure_{Departure::kNone};

  std::mutex mutex_;
  // Guarded by mutex_:
  ReplyWriter* writer_;  // null after OnDone
  CallAnswers answers_;
  bool write_in_flight_ = false;
  bool begun_ = false;                // something was written
  bool waits_ = false;                // as a stream, for what the engine says
  MonotonicUs spoken_us_ = 0;         // when a write last ended, or the waiting began
  bool closed_ = false;               // the status is on its way
  Status outcome_;                    // once closed
  MonotonicUs write_started_us_ = 0;  // of the write in flight, or of the status
};

}  // namespace dsa
