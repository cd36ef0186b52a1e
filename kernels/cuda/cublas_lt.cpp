#include "kernels/cuda/cublas_lt.h"

#include "common/check.h"

#include <cstdlib>

#include <dlfcn.h>

namespace dsa::cuda {
namespace {

constexpr char kLibrary[] = "libcublasLt.so.13";  // its major version is the toolkit's

template <typename Function>
bool Find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

// The name of the first function that the library lacks; null where it has all.
const char* FindAll(void* library, CublasLt& table) {
  struct Entry {
    const char* name;
    bool found;
  };
  const Entry entries[] = {
#define DSA_ENTRY(name) Entry{"cublasLt" #name, Find(library, "cublasLt" #name, table.name)}
      DSA_ENTRY(Create),
      DSA_ENTRY(Destroy),
      DSA_ENTRY(GetVersion),
      DSA_ENTRY(GetStatusString),
      DSA_ENTRY(MatmulDescCreate),
      DSA_ENTRY(MatmulDescDestroy),
      DSA_ENTRY(MatmulDescSetAttribute),
      DSA_ENTRY(MatrixLayoutCreate),
      DSA_ENTRY(MatrixLayoutDestroy),
      DSA_ENTRY(MatrixLayoutSetAttribute),
      DSA_ENTRY(MatmulPreferenceCreate),
      DSA_ENTRY(MatmulPreferenceDestroy),
      DSA_ENTRY(MatmulPreferenceSetAttribute),
      DSA_ENTRY(MatmulAlgoGetHeuristic),
      DSA_ENTRY(Matmul),
#undef DSA_ENTRY
  };
  for (const Entry& entry : entries) {
    if (!entry.found) {
      return entry.name;
    }
  }
  return nullptr;
}

std::string LoaderMessage() {
  const char* message = dlerror();
  return message == nullptr ? "unknown reason" : message;
}

}  // namespace

std::vector<std::string> CublasLtCandidates(std::string_view cuda_home) {
  std::vector<std::string> candidates = {kLibrary};
  const auto add = [&candidates](const std::string& root) {
    for (const char* folder : {"/lib64/", "/lib/", "/targets/x86_64-linux/lib/"}) {
      candidates.push_back(root + folder + kLibrary);
    }
  };
  if (!cuda_home.empty()) {
    add(std::string(cuda_home));
  }
  add("/usr/local/cuda");
  return candidates;
}

Result<CublasLt> OpenCublasLt(const std::vector<std::string>& candidates) {
  std::string tried;
  std::string reason = "no place to look";
  for (const std::string& candidate : candidates) {
    void* library = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      reason = LoaderMessage();
      tried += (tried.empty() ? "" : ", ") + candidate;
      continue;
    }
    CublasLt table{};
    if (const char* missing = FindAll(library, table)) {
      return Error{ErrorCode::kFailedPrecondition, candidate + " has no " + missing};
    }
    return table;
  }
  return Error{ErrorCode::kFailedPrecondition,
               "needs cuBLASLt 13, found none; tried " + tried + "; the last: " + reason};
}

const Result<CublasLt>& LoadCublasLt() {
  static const Result<CublasLt> table = [] {
    const char* cuda_home = std::getenv("CUDA_HOME");
    return OpenCublasLt(CublasLtCandidates(cuda_home == nullptr ? "" : cuda_home));
  }();
  return table;
}

const CublasLt& Lt() {
  static const CublasLt& table = [&]() -> const CublasLt& {
    const Result<CublasLt>& loaded = LoadCublasLt();
    DSA_CHECK(loaded.ok(), "{}", std::string_view(loaded.error().message));
    return loaded.value();
  }();
  return table;
}

}  // namespace dsa::cuda
