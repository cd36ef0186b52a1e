// Laws of the configuration: flags over file over defaults, nothing unknown, documents in step.
#include "server/config.h"

#include "server/device_name.h"
#include "server/devices.h"
#include "server/version.h"
#include "tests/paths.h"

#include <cstdio>
#include <fstream>
#include <sstream>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <unistd.h>

namespace dsa {
namespace {

std::string ReadAll(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// A file that is gone with the test.
struct TemporaryFile {
  explicit TemporaryFile(const std::string& text)
      : path(testing::BuildPath(fmt::format("config_test_{}.json", ::getpid()))) {
    std::ofstream(path) << text;
  }
  ~TemporaryFile() { std::remove(path.c_str()); }
  std::string path;
};

Status ReadText(const std::string& text, ServerConfig& config) {
  const TemporaryFile file(text);
  return ReadConfigFile(file.path, config);
}

const ConfigKey& Key(std::string_view name) {
  for (const ConfigKey& key : ConfigKeys()) {
    if (key.name == name) {
      return key;
    }
  }
  FAIL("no key " << name);
  return ConfigKeys().front();
}

}  // namespace

TEST_CASE("configs/README.md documents every key as the code has it", "[config]") {
  const std::string readme = ReadAll(testing::SourcePath("configs/README.md"));
  const ServerConfig defaults;
  std::size_t rows = 0;
  for (const ConfigKey& key : ConfigKeys()) {
    const std::string row = fmt::format("| `{}` | `{}` | {} | {} |\n", key.name,
                                        ValueText(key, defaults), AllowedValues(key), key.help);
    INFO(row);
    CHECK(readme.find(row) != std::string::npos);
    ++rows;
  }
  CHECK(rows <= 40);
  std::size_t found = 0;
  for (std::size_t at = 0; (at = readme.find("\n| `", at)) != std::string::npos; ++at) {
    ++found;
  }
  CHECK(found == rows + 2);  // and the two files
}

TEST_CASE("configs/server.json is the defaults, all of them", "[config]") {
  const std::string path = testing::SourcePath("configs/server.json");
  ServerConfig config;
  config.max_num_seqs = 1;
  REQUIRE(ReadConfigFile(path, config).ok());
  CHECK(ToJson(config) == ToJson(ServerConfig()));
  CHECK(ReadAll(path) == ToJson(ServerConfig()) + "\n");
  ServerConfig tiny;
  REQUIRE(ReadConfigFile(testing::SourcePath("configs/tiny_cpu.json"), tiny).ok());
  CHECK(Validate(tiny).ok());
}

TEST_CASE("a flag wins over the file, the file over the default", "[config]") {
  ServerConfig config;
  REQUIRE(ReadText(R"({"max_num_seqs": 7, "port": 1})", config)
              .error()
              .message.find("port: unknown key") != std::string::npos);
  config = {};
  REQUIRE(ReadText(R"({"max_num_seqs": 7, "attention": "dense"})", config).ok());
  CHECK(config.max_num_seqs == 7);
  CHECK(config.attention == "dense");
  CHECK(config.max_queued_requests == ServerConfig().max_queued_requests);
  REQUIRE(SetFromFlag(Key("max_num_seqs"), "9", config).ok());
  CHECK(config.max_num_seqs == 9);
  CHECK(FlagName(Key("max_num_seqs")) == "--max-num-seqs");
  // Text of a flag is what a file could hold.
  CHECK(SetFromFlag(Key("served_model_name"), "m\xc3\xa4", config).ok());
  CHECK(ToJson(config).find("m\xc3\xa4") != std::string::npos);
  config.served_model_name.clear();
  CHECK(SetFromFlag(Key("model"), "a\xff", config).error().message ==
        "--model: \"a?\" is not UTF-8");
  CHECK(Differences(config) == "attention=\"dense\" max_num_seqs=9");
}

TEST_CASE("values beyond a key's border are refused by name", "[config]") {
  for (const ConfigKey& key : ConfigKeys()) {
    const std::string name(key.name);
    CAPTURE(name);
    ServerConfig config;
    std::vector<std::string> bad = {"null", "[]", "{}", "1.5"};
    if (const auto* range = std::get_if<IntValue>(&key.value)) {
      CHECK(SetFromFlag(key, std::to_string(range->minimum), config).ok());
      CHECK(SetFromFlag(key, std::to_string(range->maximum), config).ok());
      for (const std::string& text :
           {std::to_string(range->minimum - 1), std::to_string(range->maximum + 1),
            std::string("99999999999999999999"), std::string("1x"), std::string("")}) {
        const Status status = SetFromFlag(key, text, config);
        REQUIRE_FALSE(status.ok());
        CHECK(status.error().message.rfind(FlagName(key) + ": ", 0) == 0);
      }
      bad.insert(bad.end(), {std::to_string(range->maximum + 1), "\"1\"", "true"});
    } else if (const auto* automatic = std::get_if<AutomaticIntValue>(&key.value)) {
      CHECK(SetFromFlag(key, std::to_string(automatic->maximum), config).ok());
      CHECK(config.*automatic->field == automatic->maximum);
      CHECK(ReadText("{\"" + name + "\": \"auto\"}", config).ok());
      CHECK(config.*automatic->field == kAutomatic);
      CHECK(ValueText(key, config) == "\"auto\"");
      CHECK(ReadText("{\"" + name + "\": 5}", config).ok());
      CHECK(ValueText(key, config) == "5");
      CHECK(SetFromFlag(key, "auto", config).ok());
      CHECK(config.*automatic->field == kAutomatic);
      for (const char* text : {"-1", "Auto", "", "5x"}) {
        CHECK(SetFromFlag(key, text, config).error().message ==
              fmt::format("{}: \"{}\" is not {}", FlagName(key), text, AllowedValues(key)));
      }
      bad.insert(bad.end(), {"-1", "\"1\"", "true", std::to_string(automatic->maximum + 1)});
    } else if (std::holds_alternative<ChoiceValue>(key.value)) {
      CHECK_FALSE(SetFromFlag(key, "other", config).ok());
      bad.insert(bad.end(), {"\"other\"", "true"});
    } else if (std::holds_alternative<SwitchValue>(key.value)) {
      CHECK_FALSE(SetFromFlag(key, "yes", config).ok());
      bad.insert(bad.end(), {"1", "\"true\""});
    } else if (const auto* form = std::get_if<FormValue>(&key.value)) {
      const Status status = SetFromFlag(key, "other", config);
      REQUIRE_FALSE(status.ok());
      CHECK(status.error().message ==
            fmt::format("{}: \"other\" is not one of {}", FlagName(key), form->allowed));
      bad.insert(bad.end(), {"\"other\"", "\"\"", "true"});
    }
    for (const std::string& value : bad) {
      const Status status = ReadText("{\"" + name + "\": " + value + "}", config);
      CAPTURE(value);
      REQUIRE_FALSE(status.ok());
      CHECK(status.error().message.find(name) != std::string::npos);
      CHECK(status.error().message.find('\n') == std::string::npos);
    }
  }
}

TEST_CASE("a device has one name", "[config]") {
  const auto is = [](std::string_view text, DeviceKind kind, const std::vector<int>& indices) {
    const std::optional<DeviceName> name = ParseDevice(text);
    return name && name->kind == kind && name->indices == indices;
  };
  CHECK(is("cpu", DeviceKind::kCpu, {}));
  CHECK(is("cuda", DeviceKind::kCuda, {}));
  CHECK(is("cuda:0", DeviceKind::kCuda, {0}));
  CHECK(is("cuda:63", DeviceKind::kCuda, {63}));
  CHECK(is("cuda:2,0,11", DeviceKind::kCuda, {2, 0, 11}));
  CHECK(CudaIndices(*ParseDevice("cuda"), 3) == std::vector<int>{0, 1, 2});
  CHECK(CudaIndices(*ParseDevice("cuda:2,0"), 2) == std::vector<int>{2, 0});
  for (const char* bad : {"", "gpu", "CPU", "cpu:0", "cuda:", "cuda:-1", "cuda:+1", "cuda:01",
                          "cuda:1,1", "cuda:1,", "cuda:,1", "cuda:0, 1", "cuda:0,64", "cuda:64",
                          "cuda:1x", "cuda: 1", "cuda:99999999999", " cuda", "cuda "}) {
    CAPTURE(bad);
    CHECK_FALSE(ParseDevice(bad).has_value());
  }
}

TEST_CASE("a device that this program or machine lacks is refused in one line", "[config]") {
  const auto absent = MakeBackend("cuda:63", 1);
  REQUIRE_FALSE(absent.ok());
  INFO(absent.error().message);
  CHECK(ExitCode(absent.error()) == 3);
  CHECK(absent.error().message.rfind("device: \"cuda:63\": ", 0) == 0);
  CHECK(absent.error().message.find('\n') == std::string::npos);
  if (kBackends == "cpu") {
    CHECK(absent.error().message.find("this build of dsa has the CPU backend only") !=
          std::string::npos);
  }
  const auto unknown = MakeBackend("cuda:x", 1);
  REQUIRE_FALSE(unknown.ok());
  CHECK(ExitCode(unknown.error()) == 2);
  CHECK(MakeBackend("cpu", 1).ok());
}

TEST_CASE("listening beyond this machine is asked for by name", "[config]") {
  ServerConfig config;
  CHECK_FALSE(Validate(config).ok());  // no model
  config.model = "/m";
  for (const char* good : {"127.0.0.1:50051", "localhost:0", "[::1]:1", "127.9.9.9:65535"}) {
    config.listen = good;
    CAPTURE(good);
    CHECK(Validate(config).ok());
  }
  for (const char* bad : {"0.0.0.0:50051", "[::]:1", "10.0.0.1:2", "", ":1", "127.0.0.1", "::1:1",
                          "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:1x", "127.0.0.1:"}) {
    config.listen = bad;
    CAPTURE(bad);
    CHECK_FALSE(Validate(config).ok());
  }
  config.listen = "0.0.0.0:50051";
  config.insecure = true;
  CHECK(Validate(config).ok());
  config.max_num_seqs = config.max_num_batched_tokens + 1;
  CHECK_FALSE(Validate(config).ok());
  // The default adapts, and a value that was set never does.
  config.max_num_seqs = 0;
  CHECK(SequencesMax(config) == 256);
  config.max_num_batched_tokens = 17;
  CHECK(SequencesMax(config) == 17);
  CHECK(Validate(config).ok());
  config.max_num_seqs = 18;
  CHECK(Validate(config).error().message == "max_num_batched_tokens: 17 is below max_num_seqs: 18");
}

TEST_CASE("HTTP's address is held to the same", "[config]") {
  ServerConfig config;
  config.model = "/m";
  config.http_listen = "0.0.0.0:8000";
  CHECK(Validate(config).error().message.rfind("http_listen: \"0.0.0.0:8000\" reaches beyond", 0) ==
        0);
  config.http_listen = "8000";
  CHECK(Validate(config).error().message.rfind("http_listen: \"8000\" is not HOST:PORT", 0) == 0);
  config.http_listen = "unix:/run/dsa.http";
  CHECK(Validate(config).ok());
}

}  // namespace dsa
