#include "server/net/relay_connection.h"

#include "server/net/http2_frame.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include <sys/epoll.h>
#include <sys/socket.h>

namespace dsa {
namespace {

constexpr int kChunksAtOnce = 4;                   // then it is the other connections' turn
constexpr std::int64_t kLingerUs = 1'000'000;      // for the client to read the last bytes
constexpr std::int64_t kLastBytesUs = 10'000'000;  // for the rest to be taken once a side has ended

bool IsTransient(int error) {
  return error == EAGAIN || error == EINTR;
}

// An idle connection keeps no memory for what has passed.
void EraseFront(std::string& bytes, std::size_t count) {
  if (count == bytes.size()) {
    bytes = std::string();
  } else {
    bytes.erase(0, count);
  }
}

}  // namespace

void ClientRelay::OnClient(Connection& connection, std::uint32_t events) {
  if ((events & (EPOLLHUP | EPOLLERR)) != 0) {
    Kill(connection);
    return;
  }
  if ((events & EPOLLRDHUP) != 0) {
    connection.client_leaves = true;
    EndClient(connection);
  }
  if ((events & EPOLLOUT) != 0) {
    FlushToClient(connection);
  }
  if ((events & EPOLLIN) != 0 && connection.reads_client()) {
    ReadClient(connection);
  }
}

void ClientRelay::OnServer(Connection& connection, std::uint32_t events) {
  connection.server_hung_up = (events & (EPOLLHUP | EPOLLERR)) != 0;
  if ((events & EPOLLOUT) != 0) {
    FlushToServer(connection);
  }
  if (connection.reads_server()) {
    ReadServer(connection);
  }
}

void ClientRelay::ReadClient(Connection& connection) {
  for (int i = 0; i < kChunksAtOnce && connection.reads_client(); ++i) {
    const ssize_t got = recv(connection.client.socket.number(), chunk_.data(), kChunkBytes, 0);
    if (got < 0) {
      if (!IsTransient(errno)) {
        Kill(connection);
      }
      return;
    }
    if (got == 0) {
      connection.client_ended = true;
      EndClient(connection);
      return;
    }
    connection.to_server.append(chunk_, 0, static_cast<std::size_t>(got));
    Admit(connection);
    if (static_cast<std::size_t>(got) < kChunkBytes) {
      return;
    }
  }
}

// Lets pass what may, and sends it.
void ClientRelay::Admit(Connection& connection) {
  const std::string_view held = std::string_view(connection.to_server).substr(connection.approved);
  const ConnectionGuard::Verdict verdict = connection.guard.Inspect(held, now_us_);
  connection.approved += verdict.pass;
  connection.waiting = verdict.next == ConnectionGuard::Next::kWait;
  if (connection.waiting && !std::exchange(connection.listed, true)) {
    waiting_.push_back(&connection);
  }
  const bool begins = !connection.handed_over() && connection.guard.begun();
  if (begins && !HandOver(connection)) {
    Kill(connection);
    return;
  }
  FlushToServer(connection);
  if (verdict.next == ConnectionGuard::Next::kRefuse) {
    Refuse(connection, verdict.reason);
  }
}

bool ClientRelay::HandOver(Connection& connection) {
  std::array<int, 2> pair{};
  if (!handing_over_ ||
      socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair.data()) != 0) {
    return false;
  }
  connection.server.of = &connection;
  connection.server.socket = Descriptor(pair[0]);
  SetDeadline(connection, options_.handshake_ms_max * 1000);
  take_(connection.listener, pair[1]);
  return true;
}

void ClientRelay::FlushToServer(Connection& connection) {
  if (connection.approved == 0 || !connection.handed_over() || connection.server_ended) {
    return;
  }
  const ssize_t sent = send(connection.server.socket.number(), connection.to_server.data(),
                            connection.approved, MSG_NOSIGNAL);
  std::size_t gone = 0;
  if (sent > 0) {
    gone = static_cast<std::size_t>(sent);
  } else if (!IsTransient(errno)) {
    gone = connection.approved;  // gRPC has closed: what it said last is still to be read
  }
  connection.approved -= gone;
  EraseFront(connection.to_server, gone);
}

void ClientRelay::ReadServer(Connection& connection) {
  for (int i = 0; i < kChunksAtOnce && connection.reads_server(); ++i) {
    std::size_t size = kChunkBytes;
    if (connection.refusing) {
      size = std::min(size, connection.guard.ServerBytesToBoundary());
      if (size == 0) {
        break;
      }
    }
    const ssize_t got = recv(connection.server.socket.number(), chunk_.data(), size, 0);
    if (got <= 0) {
      connection.server_ended = got == 0 || !IsTransient(errno);
      break;
    }
    const auto bytes = std::string_view(chunk_).substr(0, static_cast<std::size_t>(got));
    connection.guard.Observe(bytes, now_us_);
    SendToClient(connection, bytes);
    if (bytes.size() < size && !connection.server_hung_up) {
      break;
    }
  }
  if (connection.waiting) {  // a stream may have ended
    Admit(connection);
  }
}

void ClientRelay::SendToClient(Connection& connection, std::string_view bytes) {
  if (connection.to_client.empty()) {
    const ssize_t sent =
        send(connection.client.socket.number(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && !IsTransient(errno)) {
      Kill(connection);
      return;
    }
    bytes.remove_prefix(static_cast<std::size_t>(std::max<ssize_t>(sent, 0)));
  }
  connection.to_client.append(bytes);
}

void ClientRelay::FlushToClient(Connection& connection) {
  std::string held = std::exchange(connection.to_client, {});
  SendToClient(connection, held);
  if (connection.server_hung_up && connection.reads_server()) {
    ReadServer(connection);  // no event says so any more
  }
}

void ClientRelay::Refuse(Connection& connection, std::string_view reason) {
  if (connection.refusing) {
    return;
  }
  refused_.fetch_add(1, std::memory_order_relaxed);
  if (reason.empty()) {  // no HTTP/2: nothing would be understood
    Kill(connection);
    return;
  }
  refusal_.Log(reason, "open_streams", budget_.open());
  connection.refusing = true;
  connection.reason = reason;
  SetDeadline(connection, kLingerUs);
}

// What follows from what has happened to it.
void ClientRelay::Settle(Connection& connection) {
  if (connection.dead) {
    return;
  }
  const bool at_boundary = connection.guard.ServerBytesToBoundary() == 0;
  if (connection.refusing && !connection.server_ended && at_boundary) {
    connection.server_ended = true;
    SendToClient(connection, CalmDownFrame(connection.guard.last_stream(), connection.reason));
  }
  if (connection.server_ended) {
    SetInterest(connection.server, 0);
    connection.server.socket.Close();
    connection.approved = 0;
    connection.to_server = std::string();
    if (!connection.lingering && !connection.dead) {
      connection.lingering = connection.to_client.empty();
      if (connection.lingering) {
        shutdown(connection.client.socket.number(), SHUT_WR);
      }
      SetDeadline(connection, connection.lingering ? kLingerUs : kLastBytesUs);
    }
  }
  // A client that leaves while its streams wait has nothing to expect.
  const bool over = connection.client_leaves &&
                    (connection.lingering || connection.waiting || !connection.handed_over());
  if (over) {
    Kill(connection);
  } else if (connection.client_ended && connection.approved == 0 && !connection.server_ended &&
             !connection.server_told) {
    connection.server_told = true;
    shutdown(connection.server.socket.number(), SHUT_WR);
    SetDeadline(connection, kLastBytesUs);
  }
  SetInterests(connection);
}

void ClientRelay::SetInterests(Connection& connection) {
  if (connection.dead) {
    return;
  }
  const auto when = [](bool wanted, std::uint32_t event) { return wanted ? event : 0U; };
  SetInterest(connection.client, EPOLLERR | when(connection.reads_client(), EPOLLIN) |
                                     when(!connection.to_client.empty(), EPOLLOUT) |
                                     when(!connection.client_leaves, EPOLLRDHUP));
  if (connection.handed_over() && !connection.server_ended) {
    // A closed end is reported for ever: it is left alone until its last bytes can go on.
    const bool watched = !connection.server_hung_up || connection.reads_server();
    SetInterest(connection.server,
                when(watched, EPOLLERR | when(connection.reads_server(), EPOLLIN) |
                                  when(connection.approved > 0, EPOLLOUT)));
  }
}

void ClientRelay::SetInterest(End& end, std::uint32_t interest) {
  if (interest == end.interest) {
    return;
  }
  epoll_event event{};
  event.events = interest;
  event.data.ptr = &end;
  int change = EPOLL_CTL_MOD;
  if (interest == 0) {
    change = EPOLL_CTL_DEL;
  } else if (end.interest == 0) {
    change = EPOLL_CTL_ADD;
  }
  if (epoll_ctl(events_.number(), change, end.socket.number(), &event) == 0) {
    end.interest = interest;
  } else {
    Kill(*end.of);
  }
}

}  // namespace dsa
