#include "kernels/cuda/runtime_library.h"

#include <cstdlib>

#include <dlfcn.h>
#include <fmt/core.h>

namespace dsa::cuda {
namespace {

std::string LoaderMessage() {
  const char* message = dlerror();
  return message == nullptr ? "unknown reason" : message;
}

}  // namespace

std::vector<std::string> LibraryCandidates(const std::string& file, std::string_view cuda_home) {
  std::vector<std::string> candidates = {file};
  const auto add = [&](const std::string& root) {
    for (const char* folder : {"/lib64/", "/lib/", "/targets/x86_64-linux/lib/"}) {
      candidates.push_back(fmt::format("{}{}{}", root, folder, file));
    }
  };
  if (!cuda_home.empty()) {
    add(std::string(cuda_home));
  }
  add("/usr/local/cuda");
  return candidates;
}

std::string CudaHome() {
  const char* home = std::getenv("CUDA_HOME");
  return home == nullptr ? "" : home;
}

Result<RuntimeLibrary> OpenRuntimeLibrary(std::string_view name,
                                          const std::vector<std::string>& candidates) {
  std::string tried;
  std::string reason = "no place to look";
  for (const std::string& candidate : candidates) {
    void* const handle = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) {
      return RuntimeLibrary{.handle = handle, .path = candidate};
    }
    reason = LoaderMessage();
    tried += tried.empty() ? "" : ", ";
    tried += candidate;
  }
  return Error{
      ErrorCode::kFailedPrecondition,
      "needs " + std::string(name) + ", found none; tried " + tried + "; the last: " + reason};
}

void* FindFunction(const RuntimeLibrary& library, const char* name) {
  return dlsym(library.handle, name);
}

}  // namespace dsa::cuda
