// What gRPC and the libraries under it need from a process that uses them.
#pragma once

namespace dsa {

// Before the first server or channel; once a process is enough, every further call is harmless.
// Thread-safe.
//
// Lines that gRPC and protobuf would write to standard error become ours, at debug level: what
// concerns a call is in its status and in our own log, and a client must not be able to write to it
// freely.  And what abseil would do once, in the middle of some call, is done here.
void PrepareGrpcLibrary();

}  // namespace dsa
