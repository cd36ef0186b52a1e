// One connection of the relay: its two ends, what is held of its bytes, and how far it has come.
#pragma once

#include "server/net/relay.h"

#include <cstddef>
#include <list>
#include <string>
#include <string_view>

namespace dsa {

struct ClientRelay::Connection {
  Connection(const RelayOptions& options, StreamBudget& budget, MonotonicUs now_us)
      : guard(options.limits, budget, now_us) {}

  bool handed_over() const { return server.of != nullptr; }
  bool reads_client() const {
    const bool room = !waiting && (approved == 0 || !handed_over());
    return room && !client_ended && !refusing && !server_ended && !dead;
  }
  bool reads_server() const { return handed_over() && !server_ended && to_client.empty() && !dead; }

  ConnectionGuard guard;
  int listener = -1;
  End client;
  End server;             // `of` is null until gRPC has the other end
  std::string to_server;  // of which `approved` bytes may be sent
  std::size_t approved = 0;
  std::string to_client;
  MonotonicUs deadline_us = 0;  // 0: none
  bool counted = true;          // among the open ones
  bool waiting = false;         // for streams to end
  bool listed = false;          // in waiting_
  bool client_leaves = false;   // it sends nothing behind what is on its way
  bool client_ended = false;    // and all of that was read
  bool server_told = false;     // that the client has ended
  bool server_hung_up = false;  // what it has sent can be read all the same
  bool server_ended = false;
  bool refusing = false;
  bool lingering = false;  // all was said to the client
  bool dead = false;
  std::string_view reason;  // of refusing
  std::list<Connection>::iterator place;
};

}  // namespace dsa
