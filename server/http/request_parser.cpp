#include "server/http/request_parser.h"

#include <cstdint>
#include <utility>

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <fmt/core.h>

namespace dsa {
namespace {

namespace http = boost::beast::http;

HttpFault FaultOf(const boost::system::error_code& error, const RequestLimits& limits) {
  constexpr int kBadRequest = 400;
  constexpr int kTooLarge = 413;
  constexpr int kHeaderTooLarge = 431;
  if (error == http::error::header_limit) {
    return {.status = kHeaderTooLarge,
            .message = fmt::format("header: more than {} bytes", limits.header_bytes_max)};
  }
  if (error == http::error::body_limit || error == http::error::buffer_overflow) {
    return {.status = kTooLarge,
            .message = fmt::format("body: more than {} bytes", limits.body_bytes_max)};
  }
  return {.status = kBadRequest, .message = "not an HTTP request: " + error.message()};
}

}  // namespace

struct RequestParser::State {
  RequestLimits limits;
  http::request_parser<http::string_body> parser;
  int empty_lines = 0;
  bool has_begun = false;
};

RequestParser::RequestParser(const RequestLimits& limits) : state_(std::make_unique<State>()) {
  state_->limits = limits;
  state_->parser.header_limit(static_cast<std::uint32_t>(limits.header_bytes_max));
  state_->parser.body_limit(static_cast<std::uint64_t>(limits.body_bytes_max));
  state_->parser.eager(true);  // the body too
}

RequestParser::~RequestParser() = default;

// Half an empty line stays where it is until its other half shows what it is.
std::size_t RequestParser::TakeEmptyLines(std::string_view bytes) {
  constexpr std::string_view kLine = "\r\n";
  std::size_t taken = 0;
  while (state_->empty_lines < kEmptyLinesMax && bytes.substr(taken).starts_with(kLine)) {
    taken += kLine.size();
    ++state_->empty_lines;
  }
  const std::string_view rest = bytes.substr(taken);
  state_->has_begun = rest.size() >= kLine.size() || !kLine.starts_with(rest);
  return taken;
}

std::size_t RequestParser::Feed(std::string_view bytes) {
  std::size_t taken = has_begun() ? 0 : TakeEmptyLines(bytes);
  while (has_begun() && taken < bytes.size() && !done() && !fault_) {
    boost::system::error_code error;
    const std::string_view rest = bytes.substr(taken);
    const std::size_t used =
        state_->parser.put(boost::asio::buffer(rest.data(), rest.size()), error);
    taken += used;
    if (error == http::error::need_more) {
      // A chunk's own header has no limit in the parser.
      if (used == 0 && static_cast<std::int64_t>(rest.size()) > state_->limits.header_bytes_max) {
        fault_ = FaultOf(http::make_error_code(http::error::header_limit), state_->limits);
      } else if (used == 0) {
        break;
      }
    } else if (error) {
      fault_ = FaultOf(error, state_->limits);
    } else if (used == 0) {
      break;
    }
    if (!fault_ && header_done() && HasOtherCoding()) {
      constexpr int kNotImplemented = 501;
      fault_ = {.status = kNotImplemented, .message = "Transfer-Encoding: only chunked"};
    }
  }
  return taken;
}

// Of which the parser takes off the chunks and leaves the rest.
bool RequestParser::HasOtherCoding() const {
  const auto& message = state_->parser.get();
  return message.count(http::field::transfer_encoding) > 0 &&
         !boost::beast::iequals(message[http::field::transfer_encoding], "chunked");
}

bool RequestParser::has_begun() const {
  return state_->has_begun;
}

bool RequestParser::header_done() const {
  return state_->parser.is_header_done();
}

bool RequestParser::done() const {
  return state_->parser.is_done();
}

bool RequestParser::wants_continue() const {
  const auto& message = state_->parser.get();
  return boost::beast::iequals(message[http::field::expect], "100-continue") &&
         message.version() >= 11;
}

bool RequestParser::keep_alive() const {
  return state_->parser.keep_alive();
}

bool RequestParser::knows_chunks() const {
  return state_->parser.get().version() >= 11;
}

std::size_t RequestParser::body_bytes() const {
  return state_->parser.get().body().size();
}

HttpRequest RequestParser::Take() {
  auto message = state_->parser.release();
  return {.method = std::string(message.method_string()),
          .target = std::string(message.target()),
          .content_type = std::string(message[http::field::content_type]),
          .content_encoding = std::string(message[http::field::content_encoding]),
          .request_id = std::string(message["X-Request-Id"]),
          .body = std::move(message.body())};
}

}  // namespace dsa
