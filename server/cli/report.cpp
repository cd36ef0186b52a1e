#include "server/cli/report.h"

#include "common/last_line.h"
#include "common/log.h"
#include "server/cli/standard_output.h"

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <sstream>
#include <system_error>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/core.h>
#include <fmt/ranges.h>

namespace dsa {
namespace {

// The parser looks for what is missing before it complains about what is too much; a misspelt name
// is both, and the one that the user can see is the one to tell.
std::string ParseMessage(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<std::string> unknown = app.remaining(true);
  const CLI::App* command = &app;  // the innermost one that was named
  std::string name;
  while (!command->get_subcommands().empty()) {
    command = command->get_subcommands().front();
    name += (name.empty() ? "" : " ") + command->get_name();
  }
  const std::vector<std::string> below = CommandNames(*command);
  if (!below.empty()) {
    const std::string names = fmt::format("{}", fmt::join(below, ", "));
    return unknown.empty()
               ? fmt::format("a command is missing: one of {}", names)
               : fmt::format("\"{}\" is no command: allowed are {}", unknown.front(), names);
  }
  const std::string hint = fmt::format("see dsa {} --help", name);
  const bool misspelt = !unknown.empty() &&
                        (error.get_name() == "RequiredError" || error.get_name() == "ExtrasError");
  if (misspelt) {
    return fmt::format("\"{}\" is no argument of {}; {}", unknown.front(), name, hint);
  }
  const bool number = error.get_name() == "ConversionError";
  return fmt::format("{}{}; {}", error.what(), number ? ": not a number" : "", hint);
}

template <typename Number>
CLI::Validator Decimal() {
  return {[](std::string& text) -> std::string {
            Number value = 0;
            const char* end = text.data() + text.size();
            const auto parsed = std::from_chars(text.data(), end, value);
            const std::size_t sign = text.starts_with('-') ? 1 : 0;
            const bool octal = text.size() > sign + 1 && text[sign] == '0';
            if (parsed.ec == std::errc() && parsed.ptr == end && !octal) {
              return {};
            }
            return fmt::format("\"{}\" is not a whole number in [{}, {}]", text,
                               std::numeric_limits<Number>::min(),
                               std::numeric_limits<Number>::max());
          },
          ""};
}

}  // namespace

std::vector<std::string> CommandNames(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  return names;
}

int ReportError(const Error& error) {
  FlushLog();
  WriteLastLine(fmt::format("error: {}\n", error.message));
  return ExitCode(error);
}

int ReportParseError(const CLI::App& app, const CLI::ParseError& error) {
  if (error.get_exit_code() == 0) {
    std::ostringstream text;
    const int exit_code = app.exit(error, text, text);
    fmt::print("{}", text.str());
    return exit_code;
  }
  return ReportError(InvalidArgument(ParseMessage(app, error)));
}

int FlushOutput(int exit_code) {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0 && OutputError() == 0) {
    return exit_code;
  }
  WriteLastLine(fmt::format("error: standard output: {}\n", OutputError() == 0
                                                                ? "cannot be written"
                                                                : std::strerror(OutputError())));
  return exit_code == 0 ? 1 : exit_code;
}

CLI::Validator WholeNumber() {
  return Decimal<std::int64_t>();
}

CLI::Validator FiniteIn(double minimum, double maximum) {
  return {[minimum, maximum](std::string& text) -> std::string {
            double value = 0;
            const char* end = text.data() + text.size();
            const auto parsed = std::from_chars(text.data(), end, value);
            const bool number = parsed.ec == std::errc() && parsed.ptr == end;
            return number && value >= minimum && value <= maximum
                       ? ""
                       : fmt::format("\"{}\" is not a number in [{}, {}]", text, minimum, maximum);
          },
          ""};
}

CLI::Validator NotEmpty() {
  return {[](std::string& text) { return std::string(text.empty() ? "empty" : ""); }, ""};
}

CLI::Validator Unsigned() {
  return Decimal<std::uint64_t>();
}

}  // namespace dsa
