// What a process holds, sampled over a long time.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <sys/types.h>

namespace dsa::testing {

struct Sample {
  double time_s;
  double resident_mib;
  std::int64_t threads;
  std::int64_t descriptors;
  double processor_s;
};

// Nothing where the process has ended.
std::optional<Sample> TakeSample(pid_t process, double time_s);

// Least squares over the samples behind the first `warm_up_s`.
double ResidentMibPerHour(const std::vector<Sample>& samples, double warm_up_s);

// The middle value of a member in the samples from `begin_s` to `end_s`.
std::int64_t Median(const std::vector<Sample>& samples, std::int64_t Sample::*member,
                    double begin_s, double end_s);

}  // namespace dsa::testing
