// Which path answers what.
#pragma once

#include "server/api/service_context.h"
#include "server/http/openai/request_fields.h"
#include "server/http/transport.h"

#include <atomic>
#include <memory>

namespace dsa {

class Routes final {
 public:
  // `context` outlives it.
  Routes(ServiceContext& context, UnknownKeys unknown) : context_(context), unknown_(unknown) {}

  // A transport's thread.
  std::shared_ptr<HttpCall> Handle(HttpRequest&& request, std::shared_ptr<HttpExchange> exchange);

  // Any thread.
  void SetStalled(bool stalled) { stalled_.store(stalled, std::memory_order_relaxed); }

 private:
  HttpResponse Ready() const;
  std::shared_ptr<HttpCall> AnswerText(HttpRequest&& request,
                                       std::shared_ptr<HttpExchange> exchange);

  ServiceContext& context_;
  const UnknownKeys unknown_;
  std::atomic<bool> stalled_{false};  // a hint: nothing is ordered by it
};

}  // namespace dsa
