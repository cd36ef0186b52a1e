#include "tests/soak/samples.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include <unistd.h>

namespace dsa::testing {
namespace {

constexpr double kKibPerMib = 1024;
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
  const std::string folder = "/proc/" + std::to_string(process);
  Sample sample{};
  sample.time_s = time_s;
  std::ifstream status(folder + "/status");
  for (std::string line; std::getline(status, line);) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    if (name == "VmRSS:") {
      words >> sample.resident_mib;
      sample.resident_mib /= kKibPerMib;
    } else if (name == "Threads:") {
      words >> sample.threads;
    }
  }
  std::ifstream stat(folder + "/stat");
  std::string text;
  std::getline(stat, text);
  std::istringstream fields(text.substr(std::min(text.size(), text.rfind(')') + 1)));
  for (int i = 0; i < 11; ++i) {
    fields >> text;
  }
  double user = 0;
  double system = 0;
  fields >> user >> system;
  sample.processor_s = (user + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
  sample.descriptors = CountEntries(folder + "/fd");
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
