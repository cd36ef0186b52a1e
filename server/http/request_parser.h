// One HTTP/1.1 request from bytes as they come.  Single thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace dsa {

struct HttpRequest {
  std::string method;  // "POST"
  std::string target;  // "/v1/models?x=y", as it came
  std::string content_type;
  std::string content_encoding;  // empty: none
  std::string request_id;        // X-Request-Id as it came, of any form
  std::string body;
  // The client had closed its side when this was read: who would work long for it need not begin.
  bool client_left = false;
};

// Why what came is no request, or none that is served.
struct HttpFault {
  int status;
  std::string message;
};

struct RequestLimits {
  std::int64_t header_bytes_max;
  std::int64_t body_bytes_max;
};

// Empty lines before a request that are ignored: RFC 9112, 2.2, asks for one, which some clients
// send behind a body.  One more is no request.
inline constexpr int kEmptyLinesMax = 4;

class RequestParser final {
 public:
  explicit RequestParser(const RequestLimits& limits);
  ~RequestParser();
  RequestParser(const RequestParser&) = delete;
  RequestParser& operator=(const RequestParser&) = delete;

  // Takes bytes from the front of `bytes`, all that came and was not taken; returns how many.
  // Nothing more after done() or fault().
  std::size_t Feed(std::string_view bytes);

  bool has_begun() const;  // more has come than empty lines
  bool header_done() const;
  bool done() const;
  const std::optional<HttpFault>& fault() const { return fault_; }

  // Of the header, once it is done.
  bool wants_continue() const;  // the client waits for "100 Continue"
  bool keep_alive() const;
  bool knows_chunks() const;  // HTTP/1.0 does not

  // Of the body, so far.
  std::size_t body_bytes() const;

  // Once done.
  HttpRequest Take();

 private:
  std::size_t TakeEmptyLines(std::string_view bytes);
  bool HasOtherCoding() const;

  struct State;
  std::unique_ptr<State> state_;
  std::optional<HttpFault> fault_;
};

}  // namespace dsa
