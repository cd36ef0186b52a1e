// Abuses of HTTP/2 that cost a server without a guard far more than the one who does them.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace dsa::testing {

struct AttackSize {
  std::int64_t amount = 0;  // in the attack's own unit
  std::chrono::milliseconds time_max{10'000};
};

struct AttackResult {
  std::int64_t done = 0;  // of the amount
  std::int64_t bytes = 0;
  std::int64_t connections = 0;               // that were opened
  std::int64_t refused = 0;                   // ended by the server
  std::optional<std::uint32_t> go_away_code;  // the last that came
};

// What an attack may add to the peak of the server's memory.
inline constexpr std::int64_t kAddedBytesMax = std::int64_t{32} << 20;

struct Attack {
  std::string_view name;
  std::string_view unit;
  std::int64_t full_amount;
  std::int64_t quick_amount;
  bool quick_swells;  // surely: the quick amount takes more than kAddedBytesMax where nothing is
                      // bounded
  // Against loopback; opens a new connection whenever one is ended.
  AttackResult (*run)(std::int64_t port, const AttackSize& size);
};

std::span<const Attack> Attacks();

}  // namespace dsa::testing
