#include "server/cli/address.h"

#include "common/json.h"
#include "server/cli/config_flags.h"
#include "server/config.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/core.h>

namespace dsa {
namespace {

std::vector<std::string> SplitWords(std::string_view text) {
  std::vector<std::string> words;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\0'), text.size());
    words.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return words;
}

// What follows "dsa serve", which an init process may run for the container.
Result<std::vector<std::string>> ServeArguments(std::string_view text) {
  const std::vector<std::string> words = SplitWords(text);
  for (std::size_t i = 0; i + 1 < words.size(); ++i) {
    const std::string name = words[i].substr(words[i].rfind('/') + 1);
    if (name == "dsa" && words[i + 1] == "serve") {
      return std::vector<std::string>(words.begin() + static_cast<std::ptrdiff_t>(i) + 2,
                                      words.end());
    }
  }
  return InvalidArgument(
      fmt::format("\"{}\" is no dsa serve", words.empty() ? "" : OneLine(words.front())));
}

// The address that reaches a server listening on `address`, on the same machine.
Result<std::string> ReachedAt(const std::string& address) {
  DSA_ASSIGN_OR_RETURN(const ListenAddress listen, ParseListen(address));
  if (listen.host.starts_with("unix:")) {
    return listen.host;
  }
  if (listen.port == 0) {
    return InvalidArgument(fmt::format("listen: \"{}\": only the log knows the port", address));
  }
  std::string host = listen.host;
  if (host == "0.0.0.0") {
    host = "127.0.0.1";
  } else if (host == "::") {
    host = "::1";
  }
  const bool ipv6 = host.find(':') != std::string::npos;
  return ipv6 ? fmt::format("[{}]:{}", host, listen.port) : fmt::format("{}:{}", host, listen.port);
}

}  // namespace

CLI::Validator ServerAddress() {
  return {[](std::string& text) -> std::string {
            const Result<ListenAddress> address = ParseListen(text);
            const bool socket = text.starts_with("unix:/");
            if (address.ok() && (socket || address.value().port > 0)) {
              return "";
            }
            const bool no_port = !text.empty() && text.back() != ':' &&
                                 (text.find(':') == std::string::npos || text.back() == ']');
            return fmt::format("\"{}\" {}HOST:PORT with a port in [1, 65535], nor unix:/PATH",
                               OneLine(text), no_port ? "has no port: it is not " : "is not ");
          },
          ""};
}

Result<std::string> AddressOfCommandLine(std::string_view words, const std::string& folder) {
  DSA_ASSIGN_OR_RETURN(std::vector<std::string> arguments, ServeArguments(words));
  CLI::App serve;
  const auto flags = AddConfigFlags(serve);
  std::reverse(arguments.begin(), arguments.end());  // as the library takes them
  serve.allow_extras();
  try {
    serve.parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    return InvalidArgument(fmt::format("its command line: {}", OneLine(error.what())));
  }
  if (!flags->config_file.empty() && !flags->config_file.starts_with('/')) {
    flags->config_file = folder + "/" + flags->config_file;
  }
  DSA_ASSIGN_OR_RETURN(const ServerConfig config, ReadConfig(*flags));
  return ReachedAt(config.listen);
}

Result<std::string> AddressOfProcess(int process) {
  const std::string path = fmt::format("/proc/{}", process);
  std::ifstream file(path + "/cmdline", std::ios::binary);
  const std::string words{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  Result<std::string> address = AddressOfCommandLine(words, path + "/cwd");
  if (!address.ok()) {
    return InvalidArgument(fmt::format("process {}: {}", process, address.error().message));
  }
  return address;
}

}  // namespace dsa
