#include "server/grpc/grpc_library.h"

#include "common/log.h"

#include <absl/base/internal/sysinfo.h>
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

// The first time that two threads wait for one of its mutexes, abseil measures the processor's
// frequency, for which it looks for a file that most machines do not have: ENOENT stays in errno.
// gRPC 1.51 takes such locks between connect() and its look at errno, and so now and then one of
// many channels that open at once fails with "No such file or directory".  Nothing public of
// abseil's measures it beforehand.
void MeasureFrequency() {
  absl::base_internal::NominalCPUFrequency();
}

}  // namespace

void PrepareGrpcLibrary() {
  gpr_set_log_function(Forward);
  google::protobuf::SetLogHandler(ForwardProtobuf);
  MeasureFrequency();
}

}  // namespace dsa
