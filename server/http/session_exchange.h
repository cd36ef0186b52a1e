// One request's end of its session, for whoever answers it on any thread.
#pragma once

#include "server/http/transport.h"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

namespace dsa {

// Session: Post(number, work), which does the work on the session's own thread, and what is called
// there.
template <typename Session>
class SessionExchange final : public HttpExchange {
 public:
  SessionExchange(std::shared_ptr<Session> session, std::uint64_t number)
      : session_(std::move(session)), number_(number) {}

  void Respond(HttpResponse response) override {
    session_->Post(
        number_, [response = std::move(response)](Session& session) { session.Respond(response); });
  }
  void Begin(HttpResponse head) override {
    session_->Post(number_, [head = std::move(head)](Session& session) { session.Begin(head); });
  }
  void Send(std::string bytes) override {
    session_->Post(number_, [bytes = std::move(bytes)](Session& session) { session.Send(bytes); });
  }
  void End(std::string bytes) override {
    session_->Post(number_, [bytes = std::move(bytes)](Session& session) { session.End(bytes); });
  }
  void ReleaseBody() override {
    session_->Post(number_, [](Session& session) { session.ReleaseBody(); });
  }
  void Drop() override {
    session_->Post(number_, [](Session& session) { session.Drop(); });
  }

 private:
  const std::shared_ptr<Session> session_;
  const std::uint64_t number_;
};

}  // namespace dsa
