#include "server/grpc/library_logs.h"

#include "common/log.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>

namespace dsa {
namespace {

void Forward(gpr_log_func_args* line) {
  Log(LogLevel::kDebug, "grpc",
      {{"file", line->file}, {"line", line->line}, {"text", line->message}});
}

void ForwardProtobuf(google::protobuf::LogLevel /*level*/, const char* file, int line,
                     const std::string& text) {
  Log(LogLevel::kDebug, "protobuf", {{"file", file}, {"line", line}, {"text", text}});
}

}  // namespace

void RouteLibraryLogs() {
  gpr_set_log_function(Forward);
  google::protobuf::SetLogHandler(ForwardProtobuf);
}

}  // namespace dsa
