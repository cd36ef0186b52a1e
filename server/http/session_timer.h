// The one limit of time that a session has at each moment.  Its loop's thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <utility>

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>

namespace dsa {

class SessionTimer final {
 public:
  explicit SessionTimer(boost::asio::io_context& context) : timer_(context) {}

  // Calls `on_timeout` in `limit_ms`, in place of what was armed before.  It must keep this alive.
  template <typename OnTimeout>
  void Arm(std::int64_t limit_ms, OnTimeout on_timeout) {
    timer_.expires_after(std::chrono::milliseconds(limit_ms));
    timer_.async_wait([this, armed = ++armed_,
                       on_timeout = std::move(on_timeout)](const boost::system::error_code& error) {
      // One that had run out is in the loop's queue already, whatever is armed behind it.
      if (!error && armed == armed_) {
        on_timeout();
      }
    });
  }
  void Disarm() {
    ++armed_;
    timer_.cancel();
  }

 private:
  boost::asio::steady_timer timer_;
  std::uint64_t armed_ = 0;  // the last time that it was
};

}  // namespace dsa
