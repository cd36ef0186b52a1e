#include "kernels/cuda/cublas_lt.h"

#include "common/check.h"
#include "kernels/cuda/runtime_library.h"

namespace dsa::cuda {
namespace {

constexpr char kLibrary[] = "libcublasLt.so.13";  // its major version is the toolkit's

template <typename Function>
bool Find(const RuntimeLibrary& library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(FindFunction(library, name));
  return function != nullptr;
}

// The name of the first function that the library lacks; null where it has all.
const char* FindAll(const RuntimeLibrary& library, CublasLt& table) {
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

}  // namespace

std::vector<std::string> CublasLtCandidates(std::string_view cuda_home) {
  return LibraryCandidates(kLibrary, cuda_home);
}

Result<CublasLt> OpenCublasLt(const std::vector<std::string>& candidates) {
  DSA_ASSIGN_OR_RETURN(const RuntimeLibrary library, OpenRuntimeLibrary("cuBLASLt 13", candidates));
  CublasLt table{};
  if (const char* missing = FindAll(library, table)) {
    return Error{ErrorCode::kFailedPrecondition, library.path + " has no " + missing};
  }
  return table;
}

const Result<CublasLt>& LoadCublasLt() {
  static const Result<CublasLt> table = OpenCublasLt(CublasLtCandidates(CudaHome()));
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
