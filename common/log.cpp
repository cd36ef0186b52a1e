#include "common/log.h"

#include "common/json.h"
#include "common/log_writer.h"

#include <array>
#include <chrono>
#include <ctime>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>

#include <fmt/format.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

namespace dsa {
namespace {

constexpr std::int64_t kBufferBytes = std::int64_t{1} << 20;
constexpr std::chrono::milliseconds kFlushLimit{1000};

struct Logger {
  std::shared_ptr<spdlog::logger> sink;
  bool json = false;
};

std::string DroppedLine(std::int64_t lines);

// Never destroyed: its thread may be stuck in a write when the process ends.
LogWriter& Writer() {
  static LogWriter& writer = *new LogWriter(
      {.descriptor = STDERR_FILENO, .bytes_max = kBufferBytes, .dropped_line = DroppedLine});
  return writer;
}

// Hands formatted lines to the writer.
class WriterSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit WriterSink(bool color) : color_(color) {}

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    const std::string_view text(line.data(), line.size());
    if (!color_ || message.color_range_end <= message.color_range_start) {
      Writer().Append(text);
      return;
    }
    const std::size_t first = message.color_range_start;
    const std::size_t last = message.color_range_end;
    Writer().Append(fmt::format("{}{}{}{}{}", text.substr(0, first), Color(message.level),
                                text.substr(first, last - first), kPlain, text.substr(last)));
  }
  void flush_() override {}

 private:
  static constexpr std::string_view kPlain = "\033[m";

  static std::string_view Color(spdlog::level::level_enum level) {
    switch (level) {
      case spdlog::level::debug: return "\033[36m";
      case spdlog::level::info: return "\033[32m";
      case spdlog::level::warn: return "\033[33m\033[1m";
      default: return "\033[31m\033[1m";
    }
  }

  const bool color_;
};

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug: return spdlog::level::debug;
    case LogLevel::kInfo: return spdlog::level::info;
    case LogLevel::kWarning: return spdlog::level::warn;
    case LogLevel::kError: return spdlog::level::err;
  }
  return spdlog::level::info;
}

Logger Make(LogLevel level, bool json) {
  auto sink = std::make_shared<WriterSink>(!json && isatty(STDERR_FILENO) == 1);
  auto logger = std::make_shared<spdlog::logger>("dsa", std::move(sink));
  logger->set_level(ToSpdlog(level));
  logger->set_pattern(json ? "%v" : "%H:%M:%S.%e %^%L%$ %v");
  logger->set_error_handler([](const std::string& /*reason*/) { Writer().CountDropped(); });
  return {.sink = std::move(logger), .json = json};
}

Logger& Instance() {
  static Logger logger = Make(LogLevel::kInfo, false);
  return logger;
}

Json ToJson(const LogValue& value) {
  return std::visit([](const auto& v) { return Json(v); }, value);
}

// Client strings may hold anything: replaced where they are not UTF-8, escaped always.
std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

using LogFields = std::initializer_list<LogField>;

std::string Utc() {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  std::array<char, sizeof "2026-01-01T00:00:00Z"> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text.data();
}

std::string JsonLine(LogLevel level, std::string_view message, const LogFields& fields) {
  Json line;
  line["time"] = Utc();
  line["level"] = spdlog::level::to_string_view(ToSpdlog(level)).data();
  line["message"] = message;
  for (const LogField& field : fields) {
    line[std::string(field.name)] = ToJson(field.value);
  }
  return line.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// For people: as in JSON, but that quotes and backslashes stand for themselves, between single
// quotes where there is a double one.
std::string TextValue(const LogValue& value) {
  std::string json = Dump(ToJson(value));
  if (!std::holds_alternative<std::string>(value)) {
    return json;
  }
  std::string plain;
  for (std::size_t i = 1; i + 1 < json.size(); ++i) {
    const bool escaped = json[i] == '\\' && (json[i + 1] == '"' || json[i + 1] == '\\');
    plain += escaped ? json[++i] : json[i];
  }
  const char quote = plain.find('"') == std::string::npos ? '"' : '\'';
  return fmt::format("{}{}{}", quote, plain, quote);
}

std::string TextLine(std::string_view message, const LogFields& fields) {
  std::string text(message);
  for (const LogField& field : fields) {
    text.append("  ").append(field.name).append("=").append(TextValue(field.value));
  }
  return text;
}

// Made by the writer itself, past the queue that is full.
std::string DroppedLine(std::int64_t lines) {
  constexpr std::string_view kMessage = "log lines were dropped: nobody took them";
  const LogFields fields = {{"lines", lines}};
  return (Instance().json ? JsonLine(LogLevel::kWarning, kMessage, fields)
                          : TextLine(kMessage, fields)) +
         "\n";
}

}  // namespace

std::optional<LogLevel> ParseLogLevel(std::string_view name) {
  if (name == "debug") {
    return LogLevel::kDebug;
  }
  if (name == "info") {
    return LogLevel::kInfo;
  }
  if (name == "warning") {
    return LogLevel::kWarning;
  }
  if (name == "error") {
    return LogLevel::kError;
  }
  return std::nullopt;
}

std::optional<LogFormat> ParseLogFormat(std::string_view name) {
  if (name == "auto") {
    return LogFormat::kAuto;
  }
  if (name == "text") {
    return LogFormat::kText;
  }
  if (name == "json") {
    return LogFormat::kJson;
  }
  return std::nullopt;
}

void ConfigureLog(LogLevel level, LogFormat format) {
  const bool json =
      format == LogFormat::kJson || (format == LogFormat::kAuto && isatty(STDERR_FILENO) == 0);
  Instance() = Make(level, json);
}

Status StartLogThread() {
  try {
    Writer().Start();
  } catch (const std::system_error& error) {
    return Error{ErrorCode::kFailedPrecondition,
                 fmt::format("the log's thread cannot be started: {}", error.what())};
  }
  return {};
}

void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  const Logger& logger = Instance();
  if (!logger.sink->should_log(ToSpdlog(level))) {
    return;
  }
  try {
    logger.sink->log(ToSpdlog(level), "{}",
                     logger.json ? JsonLine(level, message, fields) : TextLine(message, fields));
  } catch (const std::bad_alloc&) {
    Writer().CountDropped();
  }
}

void FlushLog() {
  Writer().Flush(kFlushLimit);
}

LogProgress ReadLogProgress() {
  return {.lines_done = Writer().lines_done(), .waiting = Writer().waiting()};
}

}  // namespace dsa
