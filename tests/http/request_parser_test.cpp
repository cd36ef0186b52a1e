// Laws of reading a request from bytes.
#include "server/http/request_parser.h"

#include "tests/http/raw_client.h"

#include <catch2/catch.hpp>

namespace dsa::request_parser_test {
namespace {

constexpr RequestLimits kLimits = {.header_bytes_max = 512, .body_bytes_max = 100};

// Feeds pieces of `size` bytes as a connection would; what is left untaken.
std::string FeedIn(RequestParser& parser, const std::string& bytes, std::size_t size) {
  std::string held;
  for (std::size_t at = 0; at < bytes.size() && !parser.done() && !parser.fault(); at += size) {
    held += bytes.substr(at, size);
    held.erase(0, parser.Feed(held));
  }
  return held;
}

TEST_CASE("a request is the same however its bytes are cut", "[http][parser]") {
  const std::string whole = testing::Post("/v1/x?y=z", "{\"a\": 1}", "X-Request-Id: r-1\r\n");
  const std::string chunked =
      "POST /v1/x?y=z HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
      "X-Request-Id: r-1\r\nTransfer-Encoding: chunked\r\n\r\n"
      "3\r\n{\"a\r\n5;ext=1\r\n\": 1}\r\n0\r\n\r\n";
  for (const std::string& bytes : {whole, chunked}) {
    for (std::size_t size = 1; size <= bytes.size(); ++size) {
      RequestParser parser(kLimits);
      CAPTURE(size);
      CHECK(FeedIn(parser, bytes, size).empty());
      REQUIRE(parser.done());
      CHECK(parser.keep_alive());
      const HttpRequest request = parser.Take();
      CHECK(request.method == "POST");
      CHECK(request.target == "/v1/x?y=z");
      CHECK(request.content_type == "application/json");
      CHECK(request.request_id == "r-1");
      CHECK(request.body == "{\"a\": 1}");
    }
  }
}

TEST_CASE("empty lines before a request are not of it, up to a number", "[http][parser]") {
  const std::string request = testing::Get("/a");
  std::string lines;
  for (int count = 0; count <= kEmptyLinesMax + 1; ++count, lines += "\r\n") {
    const std::string bytes = lines + request;
    for (std::size_t size = 1; size <= bytes.size(); ++size) {
      RequestParser parser(kLimits);
      CAPTURE(count, size);
      const std::string left = FeedIn(parser, bytes, size);
      CHECK(parser.has_begun());
      REQUIRE(parser.done() == (count <= kEmptyLinesMax));
      if (parser.done()) {
        CHECK(left.empty());
        CHECK(parser.Take().target == "/a");
      } else {
        REQUIRE(parser.fault());
        CHECK(parser.fault()->status == 400);
      }
    }
  }
}

TEST_CASE("a request begins behind its empty lines", "[http][parser]") {
  RequestParser parser(kLimits);
  CHECK(parser.Feed("") == 0);
  CHECK(parser.Feed("\r") == 0);  // of which line is not known yet
  CHECK(parser.Feed("\r\n\r") == 2);
  CHECK_FALSE(parser.has_begun());
  CHECK_FALSE(parser.header_done());
  CHECK_FALSE(parser.fault());
  CHECK(parser.Feed("\r\nG") == 2);
  CHECK(parser.has_begun());
  const std::string request = testing::Get("/a");
  CHECK(parser.Feed(request) == request.size());
  CHECK(parser.done());
}

TEST_CASE("what is behind a request is not taken", "[http][parser]") {
  RequestParser parser(kLimits);
  const std::string first = testing::Post("/a", "{}");
  CHECK(parser.Feed(first + testing::Get("/b")) == first.size());
  CHECK(parser.done());
}

TEST_CASE("what is too large or no HTTP is a fault", "[http][parser]") {
  struct Case {
    std::string bytes;
    int status;
  };
  const std::string head = "POST /a HTTP/1.1\r\nHost: x\r\n";
  const std::vector<Case> cases = {
      {"GET /a HTTP/1.1\r\nX: " + std::string(600, 'x'), 431},
      {"GET /" + std::string(600, 'x'), 431},
      {testing::Post("/a", std::string(101, 'x')), 413},
      {head + "Transfer-Encoding: chunked\r\n\r\n65\r\n" + std::string(101, 'x'), 413},
      {head + "Transfer-Encoding: chunked\r\n\r\n1;" + std::string(20'000, 'x'), 431},
      {head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
      {head + "Content-Length: x\r\n\r\n", 400},
      {head + "Content-Length: 3\r\nContent-Length: 4\r\n\r\n", 400},
      {head + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {head + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
      {head + "Transfer-Encoding: gzip\r\n\r\n", 501},
      {"\x16\x03\x01\x02", 400},  // TLS
      {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400},
      {"GET /a\r\n\r\n", 400},
      {"\n" + testing::Get("/a"), 400},
      {"\r\r\n" + testing::Get("/a"), 400},
      {"\r" + testing::Get("/a"), 400},
      {" \r\n" + testing::Get("/a"), 400},
      {"\r\n\n" + testing::Get("/a"), 400},
  };
  for (const Case& one : cases) {
    for (const std::size_t size : {std::size_t{1}, std::size_t{16}, one.bytes.size()}) {
      RequestParser parser(kLimits);
      CAPTURE(one.bytes.substr(0, 80), size);
      FeedIn(parser, one.bytes, size);
      REQUIRE(parser.fault());
      CHECK(parser.fault()->status == one.status);
    }
  }
}

}  // namespace
}  // namespace dsa::request_parser_test
