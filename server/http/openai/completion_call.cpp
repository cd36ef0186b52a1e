#include "server/http/openai/completion_call.h"

#include "server/api/errors.h"
#include "server/http/openai/errors.h"

#include <utility>

namespace dsa {

std::shared_ptr<CompletionCall> CompletionCall::Start(Endpoint endpoint, UnknownKeys unknown,
                                                      ServiceContext& context,
                                                      HttpRequest&& request,
                                                      std::shared_ptr<HttpExchange> exchange) {
  auto call =
      std::make_shared<CompletionCall>(endpoint, context, std::move(request), std::move(exchange));
  // Whatever is written or sent before this is set comes back on this very thread, later.
  call->call_ = GenerationCall::Start(
      context,
      {.method = endpoint == Endpoint::kChat ? "/v1/chat/completions" : "/v1/completions",
       .fields = &call->names_,
       .request_id_header = call->request_.request_id,
       .deadline_us = std::nullopt},
      call->request_.body.size(), [call, unknown](Ask& ask) { return call->Read(unknown, ask); },
      *call);
  return call;
}

CompletionCall::CompletionCall(Endpoint endpoint, const ServiceContext& context,
                               HttpRequest&& request, std::shared_ptr<HttpExchange> exchange)
    : endpoint_(endpoint),
      exchange_(std::move(exchange)),
      request_(std::move(request)),
      names_(FieldNamesOf(endpoint)),
      encoder_(endpoint, context) {}

Status CompletionCall::Read(UnknownKeys unknown, Ask& ask) {
  if (request_.client_left) {
    return CancelledError();
  }
  Status status = ReadGeneration(endpoint_, request_.body, unknown, ask, form_, names_);
  delivery_ = ask.delivery;
  request_.body = {};  // with its memory: a long reply needs it no more
  exchange_->ReleaseBody();
  return status;
}

void CompletionCall::OnWritten(bool ok) {
  call_->OnWriteDone(ok);
}

void CompletionCall::OnGone() {
  call_->OnCancel();
}

void CompletionCall::OnDone() {
  call_->OnDone();
}

void CompletionCall::Write(const ReplyPart& part, const ReplyHead& head) {
  Say(encoder_.Event(part, head, form_), head);
}

// A comment, which clients pass over: what lies between takes a connection that is silent for dead.
bool CompletionCall::StayAlive(const ReplyHead& head) {
  Say(": keep-alive\n\n", head);
  return true;
}

void CompletionCall::Say(std::string bytes, const ReplyHead& head) {
  if (std::exchange(begun_, true)) {
    exchange_->Send(std::move(bytes));
    return;
  }
  // With the first token, or after a long silence: until then an error has a status of its own.
  exchange_->Begin({.content_type = "text/event-stream; charset=utf-8",
                    .headers = {{"Cache-Control", "no-cache"}, {"X-Request-Id", head.request_id}},
                    .body = std::move(bytes)});
}

std::string CompletionCall::Rest(const ReplyPart& last, const ReplyHead& head,
                                 const Status& status) {
  if (!status.ok()) {
    ReplyPart unfinished = last;
    unfinished.finish = std::nullopt;
    return (last.empty() ? "" : encoder_.Event(unfinished, head, form_)) +
           AsEvent(ErrorBody(status.error()));
  }
  std::string rest = encoder_.Event(last, head, form_);
  if (form_.include_usage) {
    rest += encoder_.UsageEvent(last, head);
  }
  return rest.append(kLastEvent);
}

void CompletionCall::Finish(const ReplyPart* last, const ReplyHead& head, const Status& status) {
  if (begun_) {
    exchange_->End(last == nullptr ? AsEvent(ErrorBody(status.error()))
                                   : Rest(*last, head, status));
    return;
  }
  HttpResponse response;
  if (last == nullptr || !status.ok()) {
    response =
        ErrorResponse(status.ok() ? Error{ErrorCode::kInternal, "no answer"} : status.error());
  } else if (delivery_ == Delivery::kStream) {
    response.content_type = "text/event-stream; charset=utf-8";
    response.headers.push_back({"Cache-Control", "no-cache"});
    response.body = Rest(*last, head, status);
  } else {
    response.body = encoder_.Whole(*last, head, form_);
  }
  if (!head.request_id.empty()) {
    response.headers.push_back({"X-Request-Id", head.request_id});
  }
  exchange_->Respond(std::move(response));
}

void CompletionCall::Drop() {
  exchange_->Drop();
}

}  // namespace dsa
