// gRPC and protobuf write lines of their own to standard error.  They become ours, at debug level:
// what concerns a call is in its status and in our own log, and a client must not be able to write
// to it freely.
#pragma once

namespace dsa {

// Once a process is enough; thread-safe.
void RouteLibraryLogs();

}  // namespace dsa
