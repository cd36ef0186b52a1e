// cuBLASLt as a table of functions, found when the first CUDA device is opened: the binary starts
// without the library, whose 700 MB stay with the toolkit or the driver's container.
//
// One table for the process, loaded once, never unloaded; any thread.
#pragma once

#include "common/status.h"
#include "kernels/cuda/launch.h"

#include <string>
#include <string_view>
#include <vector>

#include <cublasLt.h>

namespace dsa::cuda {

// The functions that kernels/cuda/ calls, under their own names without the prefix.
struct CublasLt {
  decltype(&::cublasLtCreate) Create;
  decltype(&::cublasLtDestroy) Destroy;
  decltype(&::cublasLtGetVersion) GetVersion;
  decltype(&::cublasLtGetStatusString) GetStatusString;
  decltype(&::cublasLtMatmulDescCreate) MatmulDescCreate;
  decltype(&::cublasLtMatmulDescDestroy) MatmulDescDestroy;
  decltype(&::cublasLtMatmulDescSetAttribute) MatmulDescSetAttribute;
  decltype(&::cublasLtMatrixLayoutCreate) MatrixLayoutCreate;
  decltype(&::cublasLtMatrixLayoutDestroy) MatrixLayoutDestroy;
  decltype(&::cublasLtMatrixLayoutSetAttribute) MatrixLayoutSetAttribute;
  decltype(&::cublasLtMatmulPreferenceCreate) MatmulPreferenceCreate;
  decltype(&::cublasLtMatmulPreferenceDestroy) MatmulPreferenceDestroy;
  decltype(&::cublasLtMatmulPreferenceSetAttribute) MatmulPreferenceSetAttribute;
  decltype(&::cublasLtMatmulAlgoGetHeuristic) MatmulAlgoGetHeuristic;
  decltype(&::cublasLtMatmul) Matmul;
};

// Where the library is looked for, in this order: by its name, where the loader looks
// (LD_LIBRARY_PATH, the system's cache); under `cuda_home`, where that is not empty; under
// /usr/local/cuda.
std::vector<std::string> CublasLtCandidates(std::string_view cuda_home);

// The first candidate that the loader opens, with all functions.  FAILED_PRECONDITION with one line
// that names every candidate and why the last was refused, or the function that is missing.
Result<CublasLt> OpenCublasLt(const std::vector<std::string>& candidates);

// Opens the candidates once, CUDA_HOME included; the same answer ever after.
const Result<CublasLt>& LoadCublasLt();

// The table that LoadCublasLt opened; CHECK-fails where it could not.
const CublasLt& Lt();

}  // namespace dsa::cuda

#define DSA_CUBLAS_CHECK(call)                                                                \
  do {                                                                                        \
    const cublasStatus_t dsa_cublas_status = (call);                                          \
    if (dsa_cublas_status != CUBLAS_STATUS_SUCCESS) [[unlikely]] {                            \
      ::dsa::cuda::CallFailed(::dsa::cuda::Lt().GetStatusString(dsa_cublas_status), __FILE__, \
                              __LINE__);                                                      \
    }                                                                                         \
  } while (false)
