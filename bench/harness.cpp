#include "bench/harness.h"

#include "common/prng.h"
#include "kernels/cpu/simd.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

using Clock = std::chrono::steady_clock;

double MicrosecondsOf(const std::function<void()>& body, int calls) {
  const auto start = Clock::now();
  for (int i = 0; i < calls; ++i) {
    body();
  }
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count() / calls;
}

// Runs `body(thread)` on every thread and returns the seconds until all are done.
double SecondsOnThreads(int threads, const std::function<void(int)>& body) {
  const auto start = Clock::now();
  std::vector<std::thread> workers;
  workers.reserve(static_cast<std::size_t>(threads));
  for (int thread = 0; thread < threads; ++thread) {
    workers.emplace_back(body, thread);
  }
  for (std::thread& worker : workers) {
    worker.join();
  }
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr int kChains = 12;  // enough to hide the latency of two units
constexpr std::int64_t kFmaSteps = 20'000'000;

float FmaLoop(float seed) {
  F32x8 sums[kChains];
#pragma GCC unroll 12
  for (int chain = 0; chain < kChains; ++chain) {
    sums[chain] = F32x8::All(seed);
  }
  const F32x8 factor = F32x8::All(0.999F);
  for (std::int64_t i = 0; i < kFmaSteps; ++i) {
#pragma GCC unroll 12  // so that every chain has a register
    for (int chain = 0; chain < kChains; ++chain) {
      sums[chain] = MultiplyAdd(sums[chain], factor, factor);
    }
  }
  float total = 0.0F;
#pragma GCC unroll 12
  for (int chain = 0; chain < kChains; ++chain) {
    total += ReduceSum(sums[chain]);
  }
  return total;
}

}  // namespace

Timing Measure(const std::function<void()>& body) {
  constexpr int kSamplesMin = 30;
  constexpr double kTotalUs = 200'000.0;
  body();
  const double rough_us = MicrosecondsOf(body, 3);
  const int calls = std::max(1, static_cast<int>(20.0 / std::max(rough_us, 0.01)));
  const double sample_us = std::max(rough_us * calls, 1.0);
  const int samples = std::clamp(static_cast<int>(kTotalUs / sample_us), kSamplesMin, 10'000);
  std::vector<double> times;
  times.reserve(static_cast<std::size_t>(samples));
  for (int i = 0; i < samples; ++i) {
    times.push_back(MicrosecondsOf(body, calls));
  }
  std::sort(times.begin(), times.end());
  return {.median_us = times[times.size() / 2],
          .min_us = times.front(),
          .max_us = times.back(),
          .samples = samples};
}

Ceilings MeasureCeilings(int threads) {
  constexpr std::size_t kBytes = 256U << 20U;  // of a thread; beyond any cache
  std::vector<std::vector<char>> sources(static_cast<std::size_t>(threads));
  std::vector<std::vector<char>> targets(static_cast<std::size_t>(threads));
  std::vector<float> sinks(static_cast<std::size_t>(threads));
  for (std::size_t i = 0; i < sources.size(); ++i) {
    sources[i].assign(kBytes, 1);
    targets[i].assign(kBytes, 2);
  }
  double copy = 0.0;
  double flops = 0.0;
  for (int round = 0; round < 3; ++round) {
    const double copy_s = SecondsOnThreads(threads, [&](int thread) {
      const auto index = static_cast<std::size_t>(thread);
      std::memcpy(targets[index].data(), sources[index].data(), kBytes);
    });
    copy = std::max(copy, 2.0 * static_cast<double>(kBytes) * threads / copy_s);
    const double fma_s = SecondsOnThreads(threads, [&](int thread) {
      sinks[static_cast<std::size_t>(thread)] = FmaLoop(static_cast<float>(thread));
    });
    flops = std::max(flops, 2.0 * kLanes * kChains * kFmaSteps * threads / fma_s);
  }
  fmt::print("ceilings of {} threads: copy {:.1f} GB/s, multiply-add {:.0f} GFLOP/s ({})\n",
             threads, copy / 1e9, flops / 1e9, sinks.front() > 0.0F ? "finite" : "zero");
  return {.copy_gigabytes_per_s = copy / 1e9, .gigaflops = flops / 1e9};
}

void Report::Heading(const std::string& text) const {
  fmt::print("\n{}\n", text);
}

void Report::Row(const std::string& op, const std::string& shape, const Timing& timing,
                 const Work& work) const {
  const double gigabytes_per_s = work.bytes / timing.median_us / 1e3;
  const double gigaflops = work.flops / timing.median_us / 1e3;
  const double of_copy = 100.0 * gigabytes_per_s / ceilings_.copy_gigabytes_per_s;
  const double of_fma = 100.0 * gigaflops / ceilings_.gigaflops;
  fmt::print(
      "{:<16} {:<28} {:>10.1f} us [{:.1f}, {:.1f}] {:>9.3f} MB {:>7.1f} GB/s {:>7.1f} GFLOP/s "
      "{:>4.0f} % of {}\n",
      op, shape, timing.median_us, timing.min_us, timing.max_us, work.bytes / 1e6, gigabytes_per_s,
      gigaflops, std::max(of_copy, of_fma), of_copy > of_fma ? "copy" : "multiply-add");
}

std::vector<float> RandomValues(std::int64_t count, std::uint64_t seed) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = 2.0F * CounterUniform(seed, i) - 1.0F;
  }
  return values;
}

}  // namespace dsa::bench
