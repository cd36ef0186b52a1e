// Ops that have no CPU implementation yet: each call is a CHECK failure.  The definitions are weak,
// so an op's own file replaces its line here; listed last in CMakeLists.txt for the same reason.
#include "common/check.h"
#include "kernels/cpu/cpu_backend.h"

#define DSA_MISSING_OP(op)                                                  \
  __attribute__((weak)) void CpuBackend::op(const op##Params& /*params*/) { \
    DSA_CHECK(false, "CpuBackend: {} is missing", #op);                     \
  }

namespace dsa {

DSA_MISSING_OP(Rope)
DSA_MISSING_OP(StoreLatent)
DSA_MISSING_OP(StoreIndexerKey)
DSA_MISSING_OP(PrepareIndexerQuery)
DSA_MISSING_OP(IndexerLogits)
DSA_MISSING_OP(SelectTopK)
DSA_MISSING_OP(AbsorbQuery)
DSA_MISSING_OP(LatentAttention)
DSA_MISSING_OP(ExpandValue)
DSA_MISSING_OP(MaskedAttention)

}  // namespace dsa
