// One request for a completion over HTTP, between GenerationCall and its exchange.
#pragma once

#include "server/api/generation_call.h"
#include "server/http/openai/answer.h"
#include "server/http/openai/generation_request.h"
#include "server/http/transport.h"

#include <memory>
#include <string>

namespace dsa {

class CompletionCall final : public HttpCall, public ReplyWriter {
 public:
  // Reads, submits and answers `request`.  A transport's thread.
  static std::shared_ptr<CompletionCall> Start(Endpoint endpoint, UnknownKeys unknown,
                                               ServiceContext& context, HttpRequest&& request,
                                               std::shared_ptr<HttpExchange> exchange);

  CompletionCall(Endpoint endpoint, const ServiceContext& context, HttpRequest&& request,
                 std::shared_ptr<HttpExchange> exchange);

  void OnWritten(bool ok) override;
  void OnGone() override;
  void OnDone() override;

  void Write(const ReplyPart& part, const ReplyHead& head) override;
  bool StayAlive(const ReplyHead& head) override;
  void Finish(const ReplyPart* last, const ReplyHead& head, const Status& status) override;
  void Drop() override;

 private:
  Status Read(UnknownKeys unknown, Ask& ask);
  void Say(std::string bytes, const ReplyHead& head);
  std::string Rest(const ReplyPart& last, const ReplyHead& head, const Status& status);

  const Endpoint endpoint_;
  const std::shared_ptr<HttpExchange> exchange_;
  std::shared_ptr<GenerationCall> call_;  // the transport's thread

  // By who reads the request; after that constant.
  HttpRequest request_;
  FieldNames names_;
  AnswerForm form_;
  Delivery delivery_ = Delivery::kWhole;

  // Under the lock of `call_`.
  AnswerEncoder encoder_;
  bool begun_ = false;
};

}  // namespace dsa
