// Laws of the commands that need no server, on the real binary.
#include "common/json.h"
#include "tests/e2e/process.h"
#include "tests/e2e/tiny_model.h"
#include "tests/paths.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <sstream>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <fmt/ranges.h>
#include <unistd.h>

namespace dsa {
namespace {

using testing::Arguments;
using testing::Ended;
using testing::kTinyTopK;
using testing::kTinyVocabulary;
using testing::Process;
using testing::RunDsa;
using testing::Streams;
using testing::TinyModel;

const std::string kDeepSeekTokenizer =
    testing::SourcePath("tests/fixtures/deepseek_v3_tokenizer/tokenizer.json");

// A folder of this process, removed with the object.
struct Scratch {
  Scratch() : path(testing::BuildPath(fmt::format("e2e-scratch-{}", getpid()))) {
    std::filesystem::create_directories(path);
  }
  ~Scratch() { std::filesystem::remove_all(path); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  std::string File(const std::string& name) const { return path + "/" + name; }

  const std::string path;
};

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void WriteAll(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// Ids that are no pattern; a longer list begins with the shorter one.
std::vector<int> Ids(int count) {
  std::vector<int> ids;
  ids.reserve(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) {
    ids.push_back((i * i * 31 + i * 7 + 5) % kTinyVocabulary);
  }
  return ids;
}

std::string Comma(const std::vector<int>& ids) {
  return fmt::format("{}", fmt::join(ids, ","));
}

struct Array {
  std::string header;
  std::vector<float> values;
};

// A file of NumPy's format, version 1.0.
Array ReadNpy(const std::string& path) {
  const std::string bytes = ReadAll(path);
  REQUIRE(bytes.substr(0, 8) == std::string("\x93NUMPY\x01\x00", 8));
  const std::size_t length = static_cast<unsigned char>(bytes[8]) +
                             std::size_t{256} * static_cast<unsigned char>(bytes[9]);
  Array array;
  array.header = bytes.substr(10, length);
  CHECK((10 + length) % 64 == 0);
  array.values.resize((bytes.size() - 10 - length) / sizeof(float));
  std::memcpy(array.values.data(), bytes.data() + 10 + length, array.values.size() * sizeof(float));
  return array;
}

Array Logits(const std::vector<int>& ids) {
  const Scratch scratch;
  const std::string file = scratch.File("logits.npy");
  const Ended ended = RunDsa(
      {"logits", "--model", TinyModel(), "--device", "cpu", "--ids", Comma(ids), "--output", file},
      "");
  INFO(ended.err);
  REQUIRE(ended.exit_code == 0);
  CHECK(ended.out.empty());
  CHECK(ended.err.empty());
  return ReadNpy(file);
}

// The id with the largest logit of a row; the lower one of equals.
int Argmax(const Array& logits, std::size_t row) {
  const auto begin = logits.values.begin() + static_cast<std::ptrdiff_t>(row * kTinyVocabulary);
  return static_cast<int>(std::max_element(begin, begin + kTinyVocabulary) - begin);
}

Json Generate(const std::vector<int>& ids, const Arguments& more) {
  Arguments arguments = {"generate", "--model",      TinyModel(), "--device",      "cpu", "--ids",
                         Comma(ids), "--max-tokens", "8",         "--temperature", "0"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  const Ended ended = RunDsa(arguments, "");
  INFO(ended.err);
  REQUIRE(ended.exit_code == 0);
  CHECK(ended.err.empty());
  CHECK(std::count(ended.out.begin(), ended.out.end(), '\n') == 1);
  CHECK(ended.out.back() == '\n');
  return Json::parse(ended.out);
}

std::vector<Json> Lines(const std::string& text) {
  std::vector<Json> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    lines.push_back(Json::parse(line));
  }
  return lines;
}

// One line on standard error, nothing on standard output.
void CheckRefused(const Arguments& arguments, int exit_code, const std::string& says) {
  CAPTURE(arguments);
  const Ended ended = RunDsa(arguments, "");
  CAPTURE(ended.err);
  CHECK(ended.exit_code == exit_code);
  CHECK(ended.out.empty());
  CHECK(ended.err.find(says) != std::string::npos);
  CHECK(std::count(ended.err.begin(), ended.err.end(), '\n') == 1);
}

}  // namespace

TEST_CASE("logits are float32 [T, vocabulary], and a row depends on what is before it", "[e2e]") {
  constexpr int kShort = 3 * kTinyTopK + 5;
  constexpr int kLong = 5 * kTinyTopK + 1;
  const Array shorter = Logits(Ids(kShort));
  const Array longer = Logits(Ids(kLong));
  CHECK(shorter.header.find("'descr': '<f4'") != std::string::npos);
  CHECK(shorter.header.find("'fortran_order': False") != std::string::npos);
  CHECK(shorter.header.find(fmt::format("'shape': ({}, {})", kShort, kTinyVocabulary)) !=
        std::string::npos);
  REQUIRE(shorter.values.size() == std::size_t{kShort} * kTinyVocabulary);
  REQUIRE(longer.values.size() == std::size_t{kLong} * kTinyVocabulary);
  CHECK(std::all_of(longer.values.begin(), longer.values.end(),
                    [](float value) { return std::isfinite(value); }));
  // Bit for bit: neither the prompt's length nor its chunks reach a row.
  CHECK(std::memcmp(shorter.values.data(), longer.values.data(),
                    shorter.values.size() * sizeof(float)) == 0);
  CHECK(Argmax(longer, 0) >= 0);
}

TEST_CASE("greedy generation is the chain of the logits' argmax", "[e2e]") {
  const int prompt_tokens = GENERATE(3, 3 * kTinyTopK);
  const std::vector<int> prompt = Ids(prompt_tokens);
  const Json line = Generate(prompt, {"--ignore-eos"});
  const auto ids = line.at("ids").get<std::vector<int>>();
  REQUIRE(ids.size() == 8);
  CHECK(line.at("finish_reason") == "length");
  std::vector<int> all = prompt;
  all.insert(all.end(), ids.begin(), ids.end());
  const Array logits = Logits(all);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    CAPTURE(i);
    CHECK(ids[i] == Argmax(logits, prompt.size() - 1 + i));
  }
  // Without --ignore-eos: the same, up to the end id, which is part of the answer.
  const auto stopped = Generate(prompt, {}).at("ids").get<std::vector<int>>();
  REQUIRE(stopped.size() <= ids.size());
  CHECK(std::equal(stopped.begin(), stopped.end(), ids.begin()));
  // A file of ids is the same as a list.
  const Scratch scratch;
  WriteAll(scratch.File("ids"), Comma(prompt) + "\n");
  const Ended from_file =
      RunDsa({"generate", "--model", TinyModel(), "--device", "cpu", "--ids",
              "@" + scratch.File("ids"), "--max-tokens", "8", "--temperature", "0"},
             "");
  CHECK(Json::parse(from_file.out).at("ids").get<std::vector<int>>() == stopped);
}

TEST_CASE("the loading bar shows on a terminal only", "[e2e]") {
  const Arguments arguments = {"generate", "--model", TinyModel(), "--ids", "5", "--threads", "1"};
  const std::string shown = Process(arguments, Streams::kTerminal).Wait().out;
  CHECK(shown.find("loading weights [##############################] 100%") != std::string::npos);
  CHECK(shown.find("{\"ids\":") != std::string::npos);
  CHECK(RunDsa(arguments, "").err.empty());
}

TEST_CASE("a drawn seed is reported and gives the same ids again", "[e2e]") {
  const Arguments base = {"generate",     "--model", TinyModel(),     "--ids", Comma(Ids(5)),
                          "--max-tokens", "8",       "--temperature", "1.5"};
  const Ended first = RunDsa(base, "");
  REQUIRE(first.exit_code == 0);
  const Json line = Json::parse(first.out);
  Arguments again = base;
  again.insert(again.end(), {"--seed", line.at("seed").dump()});
  CHECK(RunDsa(again, "").out == first.out);
}

TEST_CASE("make-checkpoint writes the same bytes for the same seed", "[e2e]") {
  const Scratch scratch;
  const auto make = [&](const std::string& name, const std::string& seed) {
    const Ended ended = RunDsa({"make-checkpoint", "--output", scratch.File(name), "--layers", "2",
                                "--shards", "1", "--seed", seed},
                               "");
    INFO(ended.err);
    REQUIRE(ended.exit_code == 0);
    CHECK(ended.out.empty());
    std::map<std::string, std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(scratch.File(name))) {
      files[entry.path().filename()] = ReadAll(entry.path());
    }
    return files;
  };
  const auto first = make("a", "1");
  CHECK(first.count("config.json") == 1);
  CHECK(first.count("tokenizer.json") == 1);
  const bool equal = first == make("b", "1");
  CHECK(equal);
  const bool differs = first != make("c", "2");
  CHECK(differs);
}

TEST_CASE("tokenize answers line by line, and --special matches added tokens", "[e2e]") {
  const std::string input = "{\"text\": \"Hi <｜User｜>\"}\n{\"text\": \"\"}\n";
  const Ended plain = RunDsa({"tokenize", "--tokenizer", kDeepSeekTokenizer}, input);
  const Ended special = RunDsa({"tokenize", "--tokenizer", kDeepSeekTokenizer, "--special"}, input);
  REQUIRE(plain.exit_code == 0);
  REQUIRE(special.exit_code == 0);
  constexpr int kUser = 128803;
  const auto plain_ids = Lines(plain.out).at(0).at("ids").get<std::vector<int>>();
  const auto special_ids = Lines(special.out).at(0).at("ids").get<std::vector<int>>();
  CHECK(std::count(plain_ids.begin(), plain_ids.end(), kUser) == 0);
  CHECK(std::count(special_ids.begin(), special_ids.end(), kUser) == 1);
  CHECK(special_ids.size() < plain_ids.size());
  CHECK(Lines(plain.out).at(1).at("ids").empty());
}

TEST_CASE("a bad line is answered by an error, the others still by their answer", "[e2e]") {
  struct Case {
    Arguments arguments;
    std::string good;
    std::vector<std::string> bad;
    const char* key;
  };
  const std::vector<Case> cases = {
      {{"tokenize", "--tokenizer", TinyModel() + "/tokenizer.json"},
       R"({"text": "Hi"})",
       {"x", "{}", R"({"text": 5})", "[]"},
       "ids"},
      {{"render", "--chat-format", "v3.2"},
       R"({"messages": [{"role": "user", "content": "Hi"}], "thinking": true})",
       {"x", "{}", R"({"messages": [{"role": "king", "content": "Hi"}]})",
        R"({"messages": [{"role": "user", "content": null}]})"},
       "prompt"},
      {{"render", "--chat-format", "v3.1"},
       R"({"messages": [{"role": "user", "content": "Hi"}]})",
       {R"({"messages": 7})", R"({"messages": []})"},
       "prompt"},
  };
  for (const Case& one : cases) {
    CAPTURE(one.arguments);
    const Ended fine = RunDsa(one.arguments, one.good + "\n" + one.good);  // no last line end
    REQUIRE(fine.exit_code == 0);
    CHECK(fine.err.empty());
    const std::vector<Json> answers = Lines(fine.out);
    REQUIRE(answers.size() == 2);
    CHECK(answers[0].contains(one.key));
    CHECK(answers[0] == answers[1]);
    for (const std::string& bad : one.bad) {
      CAPTURE(bad);
      const Ended mixed = RunDsa(one.arguments, one.good + "\n" + bad + "\n" + one.good + "\n");
      CHECK(mixed.exit_code == 2);
      const std::vector<Json> lines = Lines(mixed.out);
      REQUIRE(lines.size() == 3);
      CHECK(lines[0] == answers[0]);
      CHECK(lines[1].size() == 2);
      CHECK(lines[1].at("error").is_string());
      CHECK(lines[1].at("line") == 2);
      CHECK(lines[2] == answers[0]);
    }
  }
}

TEST_CASE("render writes what the formats say", "[e2e]") {
  const std::string input = R"({"messages": [{"role": "system", "content": "S"},)"
                            R"( {"role": "user", "content": [{"type": "text", "text": "Hi"}]}],)"
                            R"( "thinking": true})"
                            "\n";
  const Ended v32 = RunDsa({"render", "--chat-format", "v3.2"}, input);
  const Ended v31 = RunDsa({"render", "--chat-format", "v3.1"}, input);
  const char* expected = "<｜begin▁of▁sentence｜>S<｜User｜>Hi<｜Assistant｜><think>";
  CHECK(Lines(v32.out).at(0).at("prompt") == expected);
  CHECK(Lines(v31.out).at(0).at("prompt") == expected);
}

TEST_CASE("inspect shows a good checkpoint and refuses a broken one", "[e2e]") {
  const Ended good = RunDsa({"inspect", "--model", TinyModel()}, "");
  REQUIRE(good.exit_code == 0);
  CHECK(good.err.empty());
  for (const char* text : {"deepseek_v32", "top 32", "KV cache fp8", "problems        none"}) {
    CAPTURE(text);
    CHECK(good.out.find(text) != std::string::npos);
  }
  // What serve would need follows its flags: per thread 16 heads of 12 bytes a key, and more.
  const auto scratch_of = [](const char* context, const char* threads) {
    const Ended ended = RunDsa({"inspect", "--model", TinyModel(), "--max-model-len", context,
                                "--threads", threads, "--max-num-seqs", "1"},
                               "");
    INFO(ended.out << ended.err);
    const std::size_t at = ended.out.find("scratch ");
    REQUIRE(at != std::string::npos);
    const double amount = std::stod(ended.out.substr(at + 8));
    return ended.out.find(" MB,", at) < ended.out.find(',', at) ? amount : -1.0;
  };
  const double small = scratch_of("1024", "4");
  CHECK(small > 0);
  CHECK(scratch_of("8192", "4") == Approx(small + 4 * 16 * 7168 * 12 / 1e6).margin(0.02));
  CHECK(scratch_of("1024", "8") > 1.2 * small);
  const Ended too_much =
      RunDsa({"inspect", "--model", TinyModel(), "--kv-cache-memory-bytes", "100000000000000"}, "");
  CHECK(too_much.exit_code == 0);
  CHECK(too_much.out.find("not enough memory: ") != std::string::npos);
  CheckRefused({"serve", "--model", TinyModel(), "--listen", "127.0.0.1:0",
                "--kv-cache-memory-bytes", "100000000000000"},
               3, "not enough memory: ");
  const Scratch scratch;
  const std::string copy = scratch.File("copy");
  std::filesystem::copy(TinyModel(), copy);
  const std::string shard = copy + "/model-00002-of-00002.safetensors";
  const std::string bytes = ReadAll(shard);
  WriteAll(shard, bytes.substr(0, bytes.size() - 1));
  CheckRefused({"inspect", "--model", copy}, 2, "model-00002-of-00002.safetensors");
  std::filesystem::remove(shard);
  CheckRefused({"inspect", "--model", copy}, 2, "model-00002-of-00002.safetensors");
  WriteAll(copy + "/config.json", "{");
  CheckRefused({"inspect", "--model", copy}, 2, "config.json");
  CheckRefused({"inspect", "--model", "/nowhere"}, 2, "/nowhere");
}

TEST_CASE("what cannot be run ends with 2 or 3 and one line", "[e2e]") {
  const Arguments generate = {"generate", "--model", TinyModel(), "--ids"};
  const auto ids = [&](const std::string& list) {
    Arguments arguments = generate;
    arguments.push_back(list);
    return arguments;
  };
  CheckRefused(ids("5,x"), 2, "--ids: 'x'");
  CheckRefused(ids("-1"), 2, "--ids: '-1'");
  CheckRefused(ids("512"), 2, "512");
  CheckRefused(ids("@/nowhere"), 2, "/nowhere");
  CheckRefused({"logits", "--model", TinyModel(), "--ids", "5", "--output", "/nowhere/f.npy"}, 2,
               "/nowhere/f.npy");
  CheckRefused({"serve", "--model", "/nowhere", "--listen", "127.0.0.1:0"}, 2, "/nowhere");
  CheckRefused({"serve", "--model", TinyModel(), "--listen", "0.0.0.0:0"}, 2, "insecure");
  // One answer for a device that is not there, whatever the command.
  const std::string no_device = "error: device: \"cuda\"";
  Arguments on_cuda = ids("5");
  on_cuda.insert(on_cuda.end(), {"--device", "cuda"});
  CheckRefused(on_cuda, 3, no_device);
  on_cuda[0] = "logits";
  on_cuda.insert(on_cuda.end(), {"--output", "/nowhere/f.npy"});
  CheckRefused(on_cuda, 3, no_device);
  CheckRefused({"serve", "--model", TinyModel(), "--device", "cuda", "--listen", "127.0.0.1:0"}, 3,
               no_device);
  const Scratch scratch;
  WriteAll(scratch.File("c.json"), R"({"max_num_seq": 4})");
  CheckRefused({"serve", "--model", TinyModel(), "--config", scratch.File("c.json")}, 2,
               "max_num_seq");
  CHECK(RunDsa({"--help"}, "").exit_code == 0);
  CHECK(RunDsa({"version"}, "").out.rfind("dsa ", 0) == 0);
}

TEST_CASE("a wrong command line is one line that names the argument and what is allowed", "[e2e]") {
  const std::string commands =
      "serve, chat, complete, generate, logits, tokenize, render, inspect, make-checkpoint, bench, "
      "healthcheck, version, help\n";
  CheckRefused({}, 2, "error: a command is missing: one of " + commands);
  CheckRefused({"serv"}, 2, "error: \"serv\" is no command: allowed are " + commands);
  CheckRefused({"generate"}, 2, "error: --model is required; see dsa generate --help");
  CheckRefused({"generate", "--modle", "x"}, 2, "error: \"--modle\" is no argument of generate");
  CheckRefused({"generate", "--kv-format", "fp8"}, 2,
               "error: \"--kv-format\" is no argument of generate");
  CheckRefused({"logits", "--kv-cache-dtype", "fp9"}, 2,
               "--kv-cache-dtype: fp9 not in {auto,fp8,bf16,f32}");
  CheckRefused({"serve", "--no-such-flag"}, 2, "--no-such-flag; see dsa serve --help");
  CheckRefused({"render", "--chat-format", "v4"}, 2, "--chat-format: v4 not in {v3.2,v3.1}");
  CheckRefused({"healthcheck", "--address", ""}, 2, "--address: \"\" is not HOST:PORT");
  CheckRefused({"chat", "--temperature", "x", "hi"}, 2, "--temperature = x: not a number");
  // Neither wrapped, clamped nor read as octal.
  for (const char* seed : {"-1", "18446744073709551616", "010", "0x10", "1e3", ""}) {
    CheckRefused(
        {"chat", "--seed", seed, "hi"}, 2,
        std::string("--seed: \"") + seed + "\" is not a whole number in [0, 18446744073709551615]");
  }
  CheckRefused({"generate", "--model", TinyModel(), "--ids", "5", "--max-tokens", "010"}, 2,
               "--max-tokens: \"010\"");
}

TEST_CASE("input that cannot be read and an answer that cannot be written are errors", "[e2e]") {
  for (const Arguments& arguments :
       {Arguments{"version"}, Arguments{"inspect", "--model", TinyModel()},
        Arguments{"generate", "--model", TinyModel(), "--ids", "5", "--threads", "1"}}) {
    CAPTURE(arguments);
    const Ended ended = Process(arguments, Streams::kBroken).Wait();
    CHECK(ended.exit_code == 1);
    CHECK(ended.err == "error: standard output: No space left on device\n");
  }
  const Ended ended = Process({"render", "--chat-format", "v3.2"}, Streams::kBroken).Wait();
  CHECK(ended.exit_code == 2);
  CHECK(ended.err == "error: standard input: cannot be read\n");
}

}  // namespace dsa
