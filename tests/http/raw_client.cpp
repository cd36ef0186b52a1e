#include "tests/http/raw_client.h"

#include "common/check.h"

#include <algorithm>
#include <array>
#include <charconv>

#include <arpa/inet.h>
#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>

namespace dsa::testing {

RawClient::RawClient(std::int64_t port, int receive_bytes)
    : socket_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  const timeval limit{.tv_sec = 20, .tv_usec = 0};
  setsockopt(socket_.number(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  setsockopt(socket_.number(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  if (receive_bytes > 0) {
    setsockopt(socket_.number(), SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof(receive_bytes));
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int failed =
      connect(socket_.number(), reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  DSA_CHECK(failed == 0, "RawClient: cannot connect to port {}", port);
}

bool RawClient::Send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = send(socket_.number(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) {
      return false;
    }
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
  return true;
}

void RawClient::SendLast(std::string_view bytes) {
  send(socket_.number(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_MORE);
  socket_.Close();
}

bool RawClient::Receive() {
  std::array<char, 65536> bytes;
  const ssize_t count = recv(socket_.number(), bytes.data(), bytes.size(), 0);
  if (count > 0) {
    input_.append(bytes.data(), static_cast<std::size_t>(count));
  }
  return count > 0;
}

std::optional<std::string> RawClient::Line() {
  std::size_t end = 0;
  while ((end = input_.find("\r\n")) == std::string::npos) {
    if (!Receive()) {
      return std::nullopt;
    }
  }
  std::string line = input_.substr(0, end);
  input_.erase(0, end + 2);
  return line;
}

std::optional<Reply> RawClient::Head() {
  Reply reply;
  const std::optional<std::string> first = Line();
  if (!first || first->size() < 12) {
    return std::nullopt;
  }
  std::from_chars(first->data() + 9, first->data() + 12, reply.status);
  while (true) {
    const std::optional<std::string> line = Line();
    if (!line) {
      return std::nullopt;
    }
    if (line->empty()) {
      return reply;
    }
    const std::size_t colon = line->find(": ");
    std::string name = line->substr(0, colon);
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    reply.headers[name] = colon == std::string::npos ? "" : line->substr(colon + 2);
  }
}

std::optional<Reply> RawClient::ReadBeginning() {
  std::optional<Reply> reply = Head();
  while (reply && input_.empty()) {
    if (!Receive()) {
      return std::nullopt;
    }
  }
  return reply;
}

std::optional<Reply> RawClient::Read() {
  std::optional<Reply> reply = Head();
  if (!reply || reply->status == 100) {
    return reply;
  }
  return ReadRest(*std::move(reply));
}

std::optional<Reply> RawClient::ReadRest(Reply head) {
  std::optional<Reply> reply = std::move(head);
  const auto take = [&](std::size_t bytes) {
    while (input_.size() < bytes) {
      if (!Receive()) {
        return false;
      }
    }
    reply->body += input_.substr(0, bytes);
    input_.erase(0, bytes);
    return true;
  };
  if (reply->headers.count("transfer-encoding") == 0) {
    const auto length = reply->headers.find("content-length");
    if (length == reply->headers.end()) {
      while (Receive()) {
      }
      reply->body = std::exchange(input_, "");
      return reply;
    }
    return take(std::stoul(length->second)) ? reply : std::nullopt;
  }
  while (true) {
    const std::optional<std::string> line = Line();
    if (!line) {
      return std::nullopt;
    }
    const std::size_t bytes = std::stoul(*line, nullptr, 16);
    if (!take(bytes) || !Line()) {
      return std::nullopt;
    }
    if (bytes == 0) {
      return reply;
    }
  }
}

bool RawClient::IsClosed() {
  std::array<char, 65536> bytes;
  ssize_t count = 0;
  while ((count = recv(socket_.number(), bytes.data(), bytes.size(), 0)) > 0) {
  }
  return count == 0 || errno == ECONNRESET;
}

std::string Post(std::string_view path, std::string_view body, std::string_view headers) {
  return fmt::format(
      "POST {} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n"
      "{}\r\n{}",
      path, body.size(), headers, body);
}

std::string Get(std::string_view path) {
  return fmt::format("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", path);
}

std::string Completion(int max_tokens, bool stream) {
  return Post(
      "/v1/completions",
      fmt::format(R"({{"prompt": [1, 2], "max_tokens": {}, "stream": {}}})", max_tokens, stream));
}

Reply Exchange(std::int64_t port, std::string_view request) {
  RawClient client(port);
  client.Send(request);
  return client.Read().value_or(Reply{});
}

void LetThreadsRead(std::int64_t port) {
  for (int i = 0; i < 40; ++i) {
    CHECK(Exchange(port, Get("/health")).status == 200);
  }
}

}  // namespace dsa::testing
