// Factors between the units of stamps and of reports.
#pragma once

namespace dsa::bench {

inline constexpr double kNsPerUs = 1e3;
inline constexpr double kNsPerMs = 1e6;
inline constexpr double kNsPerSecond = 1e9;
inline constexpr double kUsPerMs = 1e3;
inline constexpr double kUsPerSecond = 1e6;
inline constexpr double kMsPerSecond = 1e3;
inline constexpr double kSecondsPerHour = 3600;
inline constexpr double kTokensPerK = 1024;

}  // namespace dsa::bench
