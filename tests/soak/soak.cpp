// dsa_soak ADDRESS PROCESS SECONDS CALLS_PER_S: mixed traffic for a long time against a server of
// which PROCESS is the id; what the process holds must not grow, every call must end as it should,
// and nothing may be left of them.  tools/soak.sh starts the server and this.
#include "tests/api/test_server.h"
#include "tests/soak/samples.h"
#include "tests/soak/traffic.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include <fmt/core.h>

namespace dsa::testing {
namespace {

using SteadyTime = std::chrono::steady_clock::time_point;

constexpr int kClients = 6;
constexpr double kResidentMibPerHourMax = 1;
constexpr double kSlopeSecondsMin = 3600;  // below it the slope is noise
constexpr double kShortGrowthMibMax = 16;
constexpr double kWarmUpSecondsMax = 900;
constexpr double kUnreadSecondsMin = 240;
constexpr std::int64_t kDescriptorsMore = 8;  // what gRPC keeps once it has had connections
constexpr std::int64_t kThreadsMore = 2;      // of some thirty that come and go with load

struct Soak {
  std::string address;
  pid_t process;
  double seconds;
  double calls_per_s;
  SteadyTime start = std::chrono::steady_clock::now();

  double Now() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
};

bool Check(bool holds, const std::string& what) {
  fmt::print("{} {}\n", holds ? "ok    " : "FAILED", what);
  return holds;
}

void PrintSample(const Sample& sample) {
  fmt::print("{:7.0f} s  {:9.2f} MiB  {:3} threads  {:3} descriptors  {:8.1f} s processor\n",
             sample.time_s, sample.resident_mib, sample.threads, sample.descriptors,
             sample.processor_s);
  std::fflush(stdout);
}

std::vector<std::thread> StartClients(const Soak& soak, Tally& tally) {
  std::vector<CallKind> kinds;
  for (std::size_t kind = 0; kind < kCallKinds - 1; ++kind) {
    kinds.push_back(static_cast<CallKind>(kind));
  }
  std::vector<std::thread> clients;
  const auto end =
      soak.start + std::chrono::microseconds(static_cast<std::int64_t>(1e6 * soak.seconds));
  const auto pause =
      std::chrono::microseconds(static_cast<std::int64_t>(1e6 * kClients / soak.calls_per_s));
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([=, &soak, &tally] {
      RunClient({soak.address, static_cast<std::uint64_t>(i), pause, end, kinds}, tally);
    });
  }
  if (soak.seconds >= kUnreadSecondsMin) {
    clients.emplace_back([=, &soak, &tally] {
      const auto last = end - std::chrono::seconds(120);
      RunClient({soak.address, kClients, std::chrono::seconds(60), last, {CallKind::kUnread}},
                tally);
    });
  }
  return clients;
}

bool Judge(const Soak& soak, const std::vector<Sample>& samples, const Sample& before,
           const Sample& after, const Tally& tally) {
  const double warm_up_s = std::min(kWarmUpSecondsMax, soak.seconds / 4);
  bool good = true;
  const auto settled = std::find_if(samples.begin(), samples.end(), [&](const Sample& sample) {
    return sample.time_s >= warm_up_s;
  });
  if (soak.seconds >= kSlopeSecondsMin) {
    const double slope = ResidentMibPerHour(samples, warm_up_s);
    good &= Check(slope <= kResidentMibPerHourMax,
                  fmt::format("memory grows by {:.3f} MiB per hour, at most {}", slope,
                              kResidentMibPerHourMax));
  } else {
    const double growth =
        after.resident_mib - (settled == samples.end() ? before : *settled).resident_mib;
    good &= Check(growth <= kShortGrowthMibMax,
                  fmt::format("memory has grown by {:.2f} MiB since the warm-up, at most {}",
                              growth, kShortGrowthMibMax));
  }
  const double quarter = soak.seconds / 4;
  const auto early = Median(samples, &Sample::threads, quarter, 2 * quarter);
  const auto late = Median(samples, &Sample::threads, 3 * quarter, soak.seconds);
  good &= Check(late <= early + kThreadsMore,
                fmt::format("{} threads in the last quarter, {} in the second", late, early));
  good &= Check(
      after.descriptors <= before.descriptors + kDescriptorsMore,
      fmt::format("{} descriptors at the end, {} before", after.descriptors, before.descriptors));
  good &= Check(tally.unexpected_count() == 0,
                fmt::format("{} calls did not end as they should", tally.unexpected_count()));
  const auto counts = tally.counts();
  for (std::size_t kind = 0; kind < kCallKinds; ++kind) {
    fmt::print("       {} {}\n", counts[kind], NameOf(static_cast<CallKind>(kind)));
    good &= counts[kind] > 0 || static_cast<CallKind>(kind) == CallKind::kUnread;
  }
  return good;
}

int Run(const Soak& soak) {
  const auto before = TakeSample(soak.process, 0);
  if (!before) {
    fmt::print(stderr, "error: there is no process {}\n", soak.process);
    return 2;
  }
  PrintSample(*before);
  Tally tally;
  std::vector<std::thread> clients = StartClients(soak, tally);
  std::vector<Sample> samples;
  const double interval_s = std::clamp(soak.seconds / 720, 1.0, 10.0);
  bool alive = true;
  double printed_s = 0;
  for (double next_s = interval_s; alive && next_s < soak.seconds; next_s += interval_s) {
    Pause(std::chrono::microseconds(static_cast<std::int64_t>(1e6 * (next_s - soak.Now()))));
    const auto sample = TakeSample(soak.process, soak.Now());
    alive = sample.has_value();
    if (alive) {
      samples.push_back(*sample);
      if (sample->time_s >= printed_s + soak.seconds / 120) {
        PrintSample(*sample);
        printed_s = sample->time_s;
      }
    }
  }
  for (std::thread& client : clients) {
    client.join();
  }
  const bool idle =
      alive && Check(BecomesIdle(soak.address), "nothing waits, runs or holds a block");
  Pause(std::chrono::seconds(2));  // connections are being closed
  const auto after = TakeSample(soak.process, soak.Now());
  if (!idle || !after) {
    Check(false, "the server is there at the end");
    return 1;
  }
  PrintSample(*after);
  return Judge(soak, samples, *before, *after, tally) ? 0 : 1;
}

}  // namespace
}  // namespace dsa::testing

int main(int argc, char** argv) {
  if (argc != 5) {
    fmt::print(stderr, "error: dsa_soak ADDRESS PROCESS SECONDS CALLS_PER_S\n");
    return 2;
  }
  return dsa::testing::Run({.address = argv[1],
                            .process = static_cast<pid_t>(std::atoi(argv[2])),
                            .seconds = std::atof(argv[3]),
                            .calls_per_s = std::atof(argv[4])});
}
