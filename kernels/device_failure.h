// The end of a process whose device has failed.  An asynchronous CUDA error poisons the context for
// good: nothing that was computed can be read any more and nothing else can be, so there is no
// error to hand back.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace dsa {

inline constexpr int kDeviceFailedExitCode = 4;
// The process has ended within this of a failure, whatever a handler does.
inline constexpr unsigned kDeviceFailureSeconds = 4;

// Called once, on the thread that met the failure, which will queue nothing any more; what a server
// does for its clients before the process ends.  `reason` is one line.
using DeviceFailureHandler = std::function<void(const std::string& reason)>;

// In place of the one before; empty: none.  Any thread, but not while a device is used by another.
void SetDeviceFailureHandler(DeviceFailureHandler handler);

// For the calling thread alone, before all else: called instead of everything below and never
// returns, since another thread ends the process.  Empty: none.  For a thread that works for
// another one, which must end the process itself.
using ThreadFailureHandler = std::function<void(std::string_view reason)>;
void SetThreadFailureHandler(ThreadFailureHandler handler);

// Prints the reason, calls the handler and ends the process with kDeviceFailedExitCode.  A failure
// within the handler, or on another thread meanwhile, ends it at once.
[[noreturn]] void DeviceFailed(std::string_view reason);

}  // namespace dsa
