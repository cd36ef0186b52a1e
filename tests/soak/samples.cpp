#include "tests/soak/samples.h"

#include "tests/process_usage.h"

#include <algorithm>
#include <filesystem>
#include <string>

namespace dsa::testing {
namespace {

constexpr double kBytesPerMib = 1 << 20;
constexpr double kUsPerSecond = 1e6;
constexpr double kSecondsPerHour = 3600;

std::int64_t CountEntries(const std::string& folder) {
  std::error_code error;
  std::int64_t count = 0;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    ++count;
  }
  return error ? -1 : count;
}

}  // namespace

std::optional<Sample> TakeSample(pid_t process, double time_s) {
  Sample sample{};
  sample.time_s = time_s;
  sample.resident_mib = static_cast<double>(ProcessStatus(process, "VmRSS")) / kBytesPerMib;
  sample.threads = ProcessStatus(process, "Threads");
  sample.processor_s = static_cast<double>(ProcessorUs(process)) / kUsPerSecond;
  sample.descriptors = CountEntries("/proc/" + std::to_string(process) + "/fd");
  if (sample.threads == 0 || sample.descriptors < 0) {
    return std::nullopt;
  }
  return sample;
}

double ResidentMibPerHour(const std::vector<Sample>& samples, double warm_up_s) {
  double count = 0;
  double time = 0;
  double resident = 0;
  double time_time = 0;
  double time_resident = 0;
  for (const Sample& sample : samples) {
    if (sample.time_s < warm_up_s) {
      continue;
    }
    count += 1;
    time += sample.time_s;
    resident += sample.resident_mib;
    time_time += sample.time_s * sample.time_s;
    time_resident += sample.time_s * sample.resident_mib;
  }
  const double spread = count * time_time - time * time;
  return spread > 0 ? kSecondsPerHour * (count * time_resident - time * resident) / spread : 0;
}

std::int64_t Median(const std::vector<Sample>& samples, std::int64_t Sample::*member,
                    double begin_s, double end_s) {
  std::vector<std::int64_t> values;
  for (const Sample& sample : samples) {
    if (sample.time_s >= begin_s && sample.time_s <= end_s) {
      values.push_back(sample.*member);
    }
  }
  if (values.empty()) {
    return 0;
  }
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace dsa::testing
