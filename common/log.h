// Logging: human on a terminal, one JSON object a line otherwise, always on standard error.
// Thread-safe.  Prompts and replies are never logged.
//
// Once StartLogThread was called, a message never waits for whoever reads standard error, nor for a
// disk: what does not fit into 1 MiB is dropped, counted, and said when writing works again.
//
//   Log(LogLevel::kInfo, "model loaded", {{"layers", 61}, {"seconds", 3.2}});
#pragma once

#include "common/status.h"

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

namespace dsa {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

enum class LogFormat { kAuto, kText, kJson };

// nullopt for a word that names none: "debug", "info", "warning", "error" / "auto", "text", "json".
std::optional<LogLevel> ParseLogLevel(std::string_view name);
std::optional<LogFormat> ParseLogFormat(std::string_view name);

using LogValue = std::variant<std::int64_t, double, bool, std::string>;

struct LogField {
  LogField(std::string_view field_name, std::string_view v)
      : name(field_name), value(std::string(v)) {}
  LogField(std::string_view field_name, const char* v) : name(field_name), value(std::string(v)) {}
  LogField(std::string_view field_name, const std::string& v) : name(field_name), value(v) {}
  LogField(std::string_view field_name, bool v) : name(field_name), value(v) {}
  LogField(std::string_view field_name, double v) : name(field_name), value(v) {}
  LogField(std::string_view field_name, std::int64_t v) : name(field_name), value(v) {}
  LogField(std::string_view field_name, int v) : name(field_name), value(std::int64_t{v}) {}

  std::string_view name;
  LogValue value;
};

// Call once, before the first message; without it messages are text at info level.
void ConfigureLog(LogLevel level, LogFormat format);

// From now on a thread of its own writes, for as long as the process lives; before, each caller of
// Log does.  Once.  FAILED_PRECONDITION where no thread can be started.
Status StartLogThread();

void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields = {});

// Waits until what was logged has been written, but at most a second; before exit.
void FlushLog();

// What the log's thread has done, for who watches it.
struct LogProgress {
  std::int64_t lines_done;  // written or dropped
  bool waiting;             // some are not
};
LogProgress ReadLogProgress();

}  // namespace dsa
