// Seeded damage to valid inputs, through the same functions as libFuzzer.
#include "tests/fuzz/targets.h"
#include "tests/paths.h"

#include <algorithm>
#include <fstream>
#include <random>
#include <string_view>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

constexpr std::string_view kWords[] = {"-1",
                                       "0",
                                       "1",
                                       "9223372036854775807",
                                       "-9223372036854775809",
                                       "18446744073709551616",
                                       "1e400",
                                       "1e-400",
                                       "-0.0",
                                       "NaN",
                                       "null",
                                       "true",
                                       "\"\"",
                                       "[]",
                                       "{}",
                                       "[[[[[[[[",
                                       "{\"a\":",
                                       "\"a\"",
                                       "\\u0000",
                                       "\\ud800",
                                       "\\",
                                       "\"",
                                       "\n",
                                       "\t",
                                       "\x1b[31m",
                                       "\xef\xbb\xbf",
                                       "\xff",
                                       "\xe4\xb8",
                                       "../x.safetensors",
                                       "</think>",
                                       "<｜",
                                       "｜>",
                                       "<｜DSML｜",
                                       "</｜DSML｜",
                                       "<｜User｜>",
                                       "<｜tool▁call▁begin｜>",
                                       "\\p{L}",
                                       "(?!",
                                       "+",
                                       "{2,}",
                                       "\\s+",
                                       "model.layers.",
                                       "_scale_inv"};

class Mutator final {
 public:
  explicit Mutator(std::uint64_t seed) : random_(seed) {}

  std::string Mutate(const std::vector<std::string>& seeds) {
    std::string input = seeds[Below(seeds.size())];
    for (std::size_t edits = 1 + Below(4); edits > 0; --edits) {
      Edit(input, seeds[Below(seeds.size())]);
    }
    return input;
  }

 private:
  std::size_t Below(std::size_t end) { return end == 0 ? 0 : random_() % end; }

  // A JSON string, number or word; anything where `text` is no JSON.
  std::pair<std::size_t, std::size_t> Scalar(std::string_view text) {
    const std::size_t begin =
        std::min(text.find_first_of("\"-0123456789ntf", Below(text.size())), text.size());
    if (begin < text.size() && text[begin] == '"') {
      return {begin, std::min(text.find('"', begin + 1), text.size() - 1) + 1};
    }
    return {begin, std::min(text.find_first_of(",:]} \n", begin), text.size())};
  }

  void Edit(std::string& input, const std::string& other) {
    const std::size_t at = Below(input.size() + 1);
    const std::size_t count = std::min(1 + Below(Below(2) == 0 ? 4 : 64), input.size() - at);
    const std::string_view word = kWords[Below(std::size(kWords))];
    switch (Below(9)) {
      case 0:
        if (at < input.size()) {
          input[at] = static_cast<char>(input[at] ^ (1 << Below(8)));
        }
        return;
      case 1: input.insert(at, 1, static_cast<char>(random_())); return;
      case 2: input.erase(at, count); return;
      case 3: input.insert(Below(input.size() + 1), input.substr(at, count)); return;
      case 4: input.resize(at); return;
      case 5: input.insert(at, word); return;
      case 6: {  // splice
        const std::size_t from = Below(other.size() + 1);
        input = input.substr(0, at) + other.substr(from);
        return;
      }
      default: {  // one scalar by another, or by a word: mostly still JSON
        const auto [begin, end] = Scalar(input);
        const auto [from, to] = Scalar(other);
        input.replace(begin, end - begin,
                      Below(2) == 0 ? std::string(word) : other.substr(from, to - from));
      }
    }
  }

  std::mt19937_64 random_;
};

void Run(const fuzz::Target& target, const std::string& input) {
  // Copied to the end of an allocation, so that the sanitizer sees a read beyond it.
  const std::vector<std::uint8_t> bytes(input.begin(), input.end());
  target.run(bytes.data(), bytes.size());
}

}  // namespace

TEST_CASE("damaged input is read or refused in one line", "[fuzz]") {
  // Where a sanitizer ends the program, this file says which input it was.
  std::ofstream progress(testing::BuildPath("fuzz-progress"));
  for (const fuzz::Target& target : fuzz::Targets()) {
    const std::vector<std::string> seeds = target.seeds();
    for (const std::string& seed : seeds) {
      Run(target, seed);
    }
    Mutator mutator(1);
    for (int round = 0; round < target.rounds; ++round) {
      const std::string input = mutator.Mutate(seeds);
      CAPTURE(target.name, round);
      progress.seekp(0);
      progress << target.name << " round " << round << "    \n" << std::flush;
      Run(target, input);
    }
  }
  SUCCEED("every input was read or refused");
}

}  // namespace dsa
