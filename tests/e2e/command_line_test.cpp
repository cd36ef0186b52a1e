// How commands are spelled, where servers are, and what reaches a terminal.
#include "server/cli/address.h"
#include "server/cli/terminal_text.h"
#include "tests/e2e/process.h"
#include "tests/e2e/tiny_model.h"
#include "tests/temporary_folder.h"

#include <algorithm>
#include <csignal>
#include <fstream>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <stdlib.h>
#include <unistd.h>

namespace dsa {
namespace {

using testing::Arguments;
using testing::Ended;
using testing::Process;
using testing::RunDsa;
using testing::Streams;
using testing::TemporaryFolder;
using testing::TinyModel;

std::string Printed(const Arguments& arguments) {
  const Ended ended = RunDsa(arguments, "");
  INFO(ended.err);
  CHECK(ended.exit_code == 0);
  CHECK(ended.err.empty());
  return ended.out;
}

// What a command says that is refused, without "error: " and its line end.
std::string Refused(const Arguments& arguments, const std::string& input = "") {
  const Ended ended = RunDsa(arguments, input);
  CHECK(ended.exit_code == 2);
  CHECK(ended.out.empty());
  CHECK(std::count(ended.err.begin(), ended.err.end(), '\n') == 1);
  REQUIRE(ended.err.starts_with("error: "));
  return ended.err.substr(7, ended.err.size() - 8);
}

// As /proc has it.
std::string Words(const Arguments& words) {
  std::string text;
  for (const std::string& word : words) {
    text += word;
    text += '\0';
  }
  return text;
}

std::string AddressOf(const Arguments& words, const std::string& folder = "/") {
  const Result<std::string> address = AddressOfCommandLine(Words(words), folder);
  return address.ok() ? address.value() : "refused: " + address.error().message;
}

}  // namespace

TEST_CASE("the forms that people try first work", "[e2e][command line]") {
  CHECK(Printed({"--version"}) == Printed({"version"}));
  CHECK(Printed({"help"}) == Printed({"--help"}));
  CHECK(Printed({"help", "serve"}) == Printed({"serve", "--help"}));
  CHECK(Printed({"help", "bench", "serve"}) == Printed({"bench", "serve", "--help"}));
  CHECK(Refused({"help", "sevre"}).starts_with("\"sevre\" is no command: allowed are serve, chat"));
  CHECK(Refused({"help", "bench", "x"}).starts_with("\"x\" is no command: allowed are "));
  CHECK(Refused({"help", "serve", "x"}) == "dsa serve has no commands below it");
  const auto inspected = [](const Arguments& arguments) {  // without what is free at the moment
    const std::string report = Printed(arguments);
    return report.substr(0, report.find("to serve"));
  };
  CHECK(inspected({"inspect", TinyModel()}) == inspected({"inspect", "--model", TinyModel()}));
  CHECK(Printed({"serve", "/some/model", "--print-config"}) ==
        Printed({"serve", "--model", "/some/model", "--print-config"}));
  CHECK(Printed({"serve", "--print-config", "--threads", "3", "/some/model"})
            .find("\"model\": \"/some/model\"") != std::string::npos);
  CHECK(Refused({"serve", "/some/model", "--model", "/other"}).find("directory") !=
        std::string::npos);
  CHECK(Refused({"serve", "--modle", "/some/model"}).find("--modle") != std::string::npos);
  CHECK(Refused({"inspect", "/one", "/two"}).find("/two") != std::string::npos);
}

TEST_CASE("inspect names the chat format and why it is that one", "[e2e][command line]") {
  CHECK(Printed({"inspect", TinyModel()})
            .find("chat format     v3.2: without a chat template, as the model is published\n") !=
        std::string::npos);
  CHECK(Printed({"inspect", TinyModel(), "--chat-format", "v3.1"})
            .find("chat format     v3.1: by chat_format\n") != std::string::npos);
}

TEST_CASE("text that is no UTF-8 is one line, whichever library looks at it first",
          "[e2e][command line]") {
  const std::string text = "caf\xe9";
  for (const char* command : {"chat", "complete"}) {
    CAPTURE(command);
    const std::string name = command == std::string("chat") ? "message" : "text";
    CHECK(Refused({command}, text) == name + ": not UTF-8");
    CHECK(Refused({command, text}) == name + ": not UTF-8");
    CHECK(Refused({command, "--model", text, "hi"}) == "--model: not UTF-8");
    CHECK(Refused({command}, "") == name + ": empty");
  }
  CHECK(Refused({"chat", "--system", text, "hi"}) == "--system: not UTF-8");
}

TEST_CASE("an address has a port", "[e2e][command line]") {
  for (const char* command : {"chat", "complete", "healthcheck"}) {
    for (const char* address : {"127.0.0.1", "localhost", "[::1]", "example.com"}) {
      CAPTURE(command, address);
      Arguments arguments = {command, "--address", address};
      if (command != std::string("healthcheck")) {
        arguments.push_back("hi");
      }
      CHECK(Refused(arguments).find(std::string("\"") + address + "\" has no port") !=
            std::string::npos);
    }
    for (const char* address : {"127.0.0.1:", ":50051", "127.0.0.1:0", "127.0.0.1:65536", "::1:5",
                                "http://127.0.0.1:5", "unix:", "127.0.0.1:x"}) {
      CAPTURE(command, address);
      CHECK(Refused({command, "--address", address}).find("is not HOST:PORT with a port") !=
            std::string::npos);
    }
  }
}

TEST_CASE("a check beside a server finds it by its command line", "[e2e][command line]") {
  CHECK(AddressOf({"dsa", "serve", "--model", "m"}) == "127.0.0.1:50051");
  CHECK(AddressOf({"/usr/local/bin/dsa", "serve", "m", "--listen", "0.0.0.0:6000", "--insecure"}) ==
        "127.0.0.1:6000");
  CHECK(AddressOf({"dsa", "serve", "m", "--listen=[::]:6001"}) == "[::1]:6001");
  CHECK(AddressOf({"dsa", "serve", "--listen", "10.1.2.3:7"}) == "10.1.2.3:7");
  CHECK(AddressOf({"dsa", "serve", "--listen", "unix:/run/dsa.sock"}) == "unix:/run/dsa.sock");
  CHECK(AddressOf({"/sbin/docker-init", "--", "dsa", "serve", "--listen", "[::1]:9"}) == "[::1]:9");
  for (const Arguments& none : {Arguments{"sh", "-c", "dsa serve"}, Arguments{"dsa", "chat"},
                                Arguments{"dsa"}, Arguments{}}) {
    CHECK(AddressOf(none).find("is no dsa serve") != std::string::npos);
  }
  CHECK(AddressOf({"dsa", "serve", "--listen", "127.0.0.1:0"}).find("only the log knows") !=
        std::string::npos);
  CHECK(AddressOf({"dsa", "serve", "--config", "/nowhere.json"}).find("/nowhere.json") !=
        std::string::npos);
  const TemporaryFolder folder;
  std::ofstream(folder / "server.json") << R"({"listen": "127.0.0.1:7007", "max_num_seqs": 3})";
  CHECK(AddressOf({"dsa", "serve", "--config", "server.json"}, folder.path()) == "127.0.0.1:7007");
  CHECK(AddressOf({"dsa", "serve", "--config", folder / "server.json", "--listen", "[::1]:1"}) ==
        "[::1]:1");
  CHECK(Refused({"healthcheck", "--process", "0"}).find("--process") != std::string::npos);
  CHECK(Refused({"healthcheck", "--process", "2147483647"}).find("is no dsa serve") !=
        std::string::npos);
}

TEST_CASE("no proxy stands between a command and its server", "[e2e][command line]") {
  for (const char* name : {"grpc_proxy", "https_proxy", "http_proxy"}) {
    setenv(name, "http://127.0.0.1:1", 1);
  }
  Process server(
      {"serve", TinyModel(), "--listen", "localhost:0", "--threads", "1", "--max-model-len", "256",
       "--max-num-batched-tokens", "64", "--log-format", "json"},
      Streams::kPipes);
  REQUIRE(server.WaitForErr("\"configuration\""));
  // The batch is smaller than the default of max_num_seqs, which adapts.
  const std::size_t at = server.err().find("\"port\":") + 7;
  const std::string port = ":" + std::to_string(std::stoi(server.err().substr(at)));
  const std::string address = "127.0.0.1" + port;
  CHECK(server.err().find("\"chat format\",\"format\":\"v3.2\",\"reason\":") != std::string::npos);
  // One name, both families.
  std::vector<std::string> hosts = {"127.0.0.1", "localhost"};
  if (access("/proc/net/if_inet6", F_OK) == 0) {
    hosts.emplace_back("[::1]");
  }
  for (const std::string& host : hosts) {
    CAPTURE(host);
    CHECK(RunDsa({"healthcheck", "--address", host + port}, "").out == "SERVING\n");
    CHECK(RunDsa({"chat", "--address", host + port, "--max-tokens", "2", "hi"}, "").exit_code == 0);
  }
  const Ended text = RunDsa(
      {"complete", "--address", address, "--max-tokens", "3", "--temperature", "0", "Hello"}, "");
  CHECK(text.exit_code == 0);
  CHECK(text.err.find(" 3 answered") != std::string::npos);
  const Ended ids = RunDsa({"complete", "--address", address, "--ids", "5,6", "--max-tokens", "3",
                            "--print-ids", "--temperature", "0"},
                           "");
  CHECK(std::count(ids.out.begin(), ids.out.end(), ',') == 2);
  for (const char* name : {"grpc_proxy", "https_proxy", "http_proxy"}) {
    unsetenv(name);
  }
  server.Signal(SIGTERM);
  CHECK(server.Wait().exit_code == 0);
}

TEST_CASE("control characters reach no terminal", "[e2e][command line]") {
  CHECK(WithoutControls("plain\n\ttext, gr\xc3\xbc\xc3\x9f \xe4\xb8\xad") ==
        "plain\n\ttext, gr\xc3\xbc\xc3\x9f \xe4\xb8\xad");
  CHECK(WithoutControls("\x1b]0;title\x07\x1b[2J") == "␛]0;title␇␛[2J");
  CHECK(WithoutControls("over\rwrite\b\x7f") == "over␍write␈␡");
  CHECK(WithoutControls(std::string("\0", 1)) == "␀");
  CHECK(WithoutControls("a\xc2\x9b"
                        "31mb\xc2\x85") ==
        "a\xef\xbf\xbd"
        "31mb\xef\xbf\xbd");
  CHECK(WithoutControls("a\x9b") == "a\xef\xbf\xbd");
  for (int byte = 0; byte < 0x20; ++byte) {
    const std::string shown = WithoutControls(std::string(1, static_cast<char>(byte)));
    CHECK((shown == "\n" || shown == "\t" || static_cast<unsigned char>(shown[0]) >= 0xE2));
  }
  // Not a terminal: as it is.
  CHECK(ForDescriptor("\x1b[2J", -1, false) == "\x1b[2J");
}

}  // namespace dsa
