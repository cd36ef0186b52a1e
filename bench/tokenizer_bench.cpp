// How fast text becomes ids: loading, natural text, and texts made to be slow.  One core.
//
//   dsa_tokenizer_bench TOKENIZER_JSON TEXT_FILE...
//
// Bounds of the project: 5 MB/s on natural text; on hostile text twice the size takes at most 2.3
// times as long, and a MiB less than a second.
#include "common/file.h"
#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <ctime>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr std::size_t kMebibyte = std::size_t{1} << 20;

// Processor time of this thread: what other processes do at the same time hardly counts.
double Seconds(const std::function<void()>& body) {
  const auto now = [] {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
  };
  const double begin = now();
  body();
  return now() - begin;
}

// The quickest of several runs: whatever disturbs a run only ever adds time.
double BestSeconds(const Tokenizer& tokenizer, const std::string& text) {
  constexpr int kRuns = 3;
  double best = 1e9;
  for (int run = 0; run < kRuns; ++run) {
    best = std::min(best, Seconds([&] { static_cast<void>(tokenizer.Encode(text)); }));
  }
  return best;
}

std::string Repeated(const std::string& unit, std::size_t bytes) {
  std::string text;
  text.reserve(bytes + unit.size());
  while (text.size() < bytes) {
    text += unit;
  }
  return text;
}

std::string RandomLetters(std::size_t bytes) {
  std::string text(bytes, '\0');
  std::uint64_t state = 1;
  for (char& letter : text) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    letter = static_cast<char>('a' + (state >> 33) % 26);
  }
  return text;
}

void Natural(const Tokenizer& tokenizer, const std::string& path) {
  const std::string text = ReadFile(path, std::int64_t{64} << 20).value();
  const double seconds = BestSeconds(tokenizer, text);
  fmt::print("{:<28} {:>9} bytes {:>8} ids {:>9.1f} ms {:>7.1f} MB/s\n",
             path.substr(path.rfind('/') + 1), text.size(), tokenizer.Encode(text).size(),
             seconds * 1e3, static_cast<double>(text.size()) / seconds / 1e6);
}

void Hostile(const Tokenizer& tokenizer, const std::string& name,
             const std::function<std::string(std::size_t)>& make) {
  const double one = BestSeconds(tokenizer, make(kMebibyte));
  const double two = BestSeconds(tokenizer, make(2 * kMebibyte));
  const double four = BestSeconds(tokenizer, make(4 * kMebibyte));
  fmt::print("{:<28} 1 MiB {:>7.1f} ms   2 MiB {:>7.1f} ms   4 MiB {:>7.1f} ms   x{:.2f} x{:.2f}\n",
             name, one * 1e3, two * 1e3, four * 1e3, two / one, four / two);
}

int Run(const std::vector<std::string>& arguments) {
  constexpr int kBadInput = 2;
  if (arguments.size() < 2) {
    fmt::print(stderr, "usage: dsa_tokenizer_bench TOKENIZER_JSON TEXT_FILE...\n");
    return kBadInput;
  }
  std::unique_ptr<Tokenizer> tokenizer;
  const double load = Seconds([&] { tokenizer = Tokenizer::Load(arguments[0]).value(); });
  fmt::print("{:<28} {:>42.1f} ms\n", "load", load * 1e3);
  for (std::size_t i = 1; i < arguments.size(); ++i) {
    Natural(*tokenizer, arguments[i]);
  }
  const std::vector<std::pair<std::string, std::string>> units = {
      {"one letter", "a"},
      {"spaces", " "},
      {"digits", "7"},
      {"line feeds", "\n"},
      {"combining marks", "\u0301"},
      {"zero-width joiners", "\u200d"},
      {"punctuation", "!"},
      {"control characters", "\x01"},
      {"start of an added token", "<｜"},
  };
  for (const auto& [name, unit] : units) {
    Hostile(*tokenizer, name, [&u = unit](std::size_t bytes) { return Repeated(u, bytes); });
  }
  Hostile(*tokenizer, "random letters", RandomLetters);
  return 0;
}

}  // namespace
}  // namespace dsa::bench

int main(int argc, char** argv) {
  return dsa::bench::Run(std::vector<std::string>(argv + 1, argv + argc));
}
