// Libraries of the machine's toolkit that are found when they are needed: the binary starts without
// them.
#pragma once

#include "common/status.h"

#include <string>
#include <string_view>
#include <vector>

namespace dsa::cuda {

// Where `file` is looked for, in this order: by its name, where the loader looks (LD_LIBRARY_PATH,
// the system's cache); under `cuda_home`, where that is not empty; under /usr/local/cuda.
std::vector<std::string> LibraryCandidates(const std::string& file, std::string_view cuda_home);

// The environment's CUDA_HOME; empty where it names none.
std::string CudaHome();

struct RuntimeLibrary {
  void* handle;  // never closed
  std::string path;
};

// The first candidate that the loader opens.  FAILED_PRECONDITION with one line, "needs NAME, found
// none", that names every candidate and why the last was refused.
Result<RuntimeLibrary> OpenRuntimeLibrary(std::string_view name,
                                          const std::vector<std::string>& candidates);

// Null where the library has no such function.
void* FindFunction(const RuntimeLibrary& library, const char* name);

}  // namespace dsa::cuda
