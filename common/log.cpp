#include "common/log.h"

#include <cstdio>
#include <memory>

#include <fmt/chrono.h>
#include <nlohmann/json.hpp>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

namespace dsa {
namespace {

struct Logger {
  std::shared_ptr<spdlog::logger> sink;
  bool json = false;
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
  auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
  auto logger = std::make_shared<spdlog::logger>("dsa", std::move(sink));
  logger->set_level(ToSpdlog(level));
  logger->set_pattern(json ? "%v" : "%H:%M:%S.%e %^%L%$ %v");
  logger->flush_on(spdlog::level::warn);
  return {.sink = std::move(logger), .json = json};
}

Logger& Instance() {
  static Logger logger = Make(LogLevel::kInfo, false);
  return logger;
}

nlohmann::json ToJson(const LogValue& value) {
  return std::visit([](const auto& v) { return nlohmann::json(v); }, value);
}

// Client strings may hold anything: replaced where they are not UTF-8, escaped always.
std::string Dump(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string Utc() {
  const auto now = std::chrono::system_clock::now();
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}Z",
                     fmt::gmtime(std::chrono::system_clock::to_time_t(now)));
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

void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  const Logger& logger = Instance();
  if (!logger.sink->should_log(ToSpdlog(level))) {
    return;
  }
  if (logger.json) {
    nlohmann::ordered_json line;
    line["time"] = Utc();
    line["level"] = spdlog::level::to_string_view(ToSpdlog(level)).data();
    line["message"] = message;
    for (const LogField& field : fields) {
      line[std::string(field.name)] = ToJson(field.value);
    }
    logger.sink->log(ToSpdlog(level), "{}",
                     line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    return;
  }
  std::string text(message);
  for (const LogField& field : fields) {
    text.append("  ").append(field.name).append("=").append(Dump(ToJson(field.value)));
  }
  logger.sink->log(ToSpdlog(level), "{}", text);
}

void FlushLog() {
  Instance().sink->flush();
}

}  // namespace dsa
