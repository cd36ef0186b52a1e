// Streams that are read while something else happens, and how evenly their tokens come.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace dsa::testing {

struct TokenGaps {
  std::vector<double> ms;  // sorted: between a stream's tokens, of all streams
  bool all_ok = false;     // no stream ended by itself
  double At(double quantile) const;
};

class Victim final {
 public:
  // Reads so many streams of one connection from here on; the first tokens have come.
  Victim(std::int64_t port, int streams);
  ~Victim();
  Victim(const Victim&) = delete;
  Victim& operator=(const Victim&) = delete;

  TokenGaps Stop();  // once

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dsa::testing
