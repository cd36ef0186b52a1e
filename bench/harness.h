// Times a body and compares it with what the machine can do at most, measured in the same run.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace dsa::bench {

// Microseconds of one call.
struct Timing {
  double median_us;
  double min_us;
  double max_us;
  int samples;
};

// Calls `body` until warm, then at least 30 times and for at least 0.2 s.  Bodies shorter than
// 20 us are timed in groups.
Timing Measure(const std::function<void()>& body);

// What `threads` threads reach together on this machine.
struct Ceilings {
  double copy_gigabytes_per_s;  // read and written bytes of a copy that exceeds the caches
  double gigaflops;             // independent fused multiply-adds in registers, eight lanes
};
Ceilings MeasureCeilings(int threads);

// The work of one call, computed from its parameters.
struct Work {
  double bytes;  // read and written at least once
  double flops;  // a multiply-add counts as two
};

// Prints aligned rows to standard output.
class Report final {
 public:
  explicit Report(Ceilings ceilings) : ceilings_(ceilings) {}

  // "linear_fp8  T=1 N=384 K=384   4.1 us [4.0, 4.6]  ...  14 % of copy", the nearer ceiling.
  void Row(const std::string& op, const std::string& shape, const Timing& timing,
           const Work& work) const;
  void Heading(const std::string& text) const;

 private:
  Ceilings ceilings_;
};

// Uniform in [-1, 1), the same on every run.
std::vector<float> RandomValues(std::int64_t count, std::uint64_t seed);

}  // namespace dsa::bench
