// The engine simulator as a program.
//
//   engine_sim --steps N [--first-seed S]   seeds S, S + 1, ... until N steps are done
//   engine_sim --seed S                     one seed, as a failure prints it
//   engine_sim_planted --planted K --seeds N   succeeds if the planted bug K is caught
//
// A broken law, of the simulator or of a DSA_CHECK, aborts with the seed and step.
#include "tests/sim/planted.h"
#include "tests/sim/simulator.h"

#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>

#include <fmt/format.h>
#include <unistd.h>

namespace dsa::sim {
namespace {

std::uint64_t running_seed = 0;

// Async-signal-safe: a DSA_CHECK that fails in production code aborts without knowing the seed.
void OnAbort(int /*signal*/) {
  const bool planted = PlantedBug() != 0;
  char line[64];
  constexpr std::string_view kPrefix = "caught or broken at seed ";
  std::size_t size = kPrefix.copy(line, kPrefix.size());
  size = std::to_chars(line + size, line + sizeof(line) - 1, running_seed).ptr - line;
  line[size++] = '\n';
  const bool written = write(STDERR_FILENO, line, size) == static_cast<ssize_t>(size);
  _exit(planted && written ? 0 : 1);
}

void Add(SimStats& total, const SimStats& one) {
  total.steps += one.steps;
  total.tokens += one.tokens;
  total.requests += one.requests;
  total.refused += one.refused;
  total.hit_tokens += one.hit_tokens;
  total.preemptions += one.preemptions;
  total.cancelled += one.cancelled;
  total.expired += one.expired;
  total.failed += one.failed;
  total.stopped += one.stopped;
  total.bound_elsewhere += one.bound_elsewhere;
  total.siblings += one.siblings;
  total.scored += one.scored;
  total.longest_wait_percent = std::max(total.longest_wait_percent, one.longest_wait_percent);
}

bool EverythingHappened(const SimStats& total) {
  return total.tokens > 0 && total.refused > 0 && total.hit_tokens > 0 && total.preemptions > 0 &&
         total.cancelled > 0 && total.expired > 0 && total.failed > 0 && total.stopped > 0 &&
         total.bound_elsewhere > 0 && total.siblings > 0 && total.scored > 0;
}

int Main(std::map<std::string, std::int64_t> options) {
  std::signal(SIGABRT, OnAbort);
  PlantedBug() = static_cast<int>(options["--planted"]);
  const bool one_seed = options.contains("--seed");
  const bool by_steps = options.contains("--steps");
  const std::int64_t first = one_seed ? options["--seed"] : options["--first-seed"];
  const std::int64_t seeds = one_seed ? 1 : options["--seeds"];
  SimStats total;
  for (std::int64_t i = 0; by_steps ? total.steps < options["--steps"] : i < seeds; ++i) {
    running_seed = static_cast<std::uint64_t>(first + i);
    Add(total, RunSeed(running_seed));
  }
  fmt::print(
      "steps {}, tokens {}, requests {} ({} refused, {} cancelled, {} expired, {} faulty, {} "
      "stopped), hit tokens {}, preemptions {}, longest wait {} % of its bound\n",
      total.steps, total.tokens, total.requests, total.refused, total.cancelled, total.expired,
      total.failed, total.stopped, total.hit_tokens, total.preemptions, total.longest_wait_percent);
  if (PlantedBug() != 0) {
    fmt::print(stderr, "planted bug {} was not caught\n", PlantedBug());
    return 1;
  }
  return by_steps && !EverythingHappened(total) ? 1 : 0;
}

}  // namespace
}  // namespace dsa::sim

int main(int argc, char** argv) {
  std::map<std::string, std::int64_t> options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view text(argv[i + 1]);
    std::int64_t value = 0;
    if (std::from_chars(text.data(), text.data() + text.size(), value).ec != std::errc()) {
      fmt::print(stderr, "{} is not a number\n", text);
      return 2;
    }
    options[argv[i]] = value;
  }
  return dsa::sim::Main(std::move(options));
}
