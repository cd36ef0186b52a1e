#include "kernels/backend.h"

#include "common/check.h"
#include "kernels/comm/collectives.h"

namespace dsa {

template <MemoryKind kKind>
void BackendBuffer<kKind>::Reset() {
  if (backend_ == nullptr) {
    return;
  }
  if constexpr (kKind == MemoryKind::kDevice) {
    backend_->Free(data_);
  } else {
    backend_->FreeHost(data_);
  }
  backend_ = nullptr;
}

void Backend::AllReduce(const AllReduceParams& params) {
  DSA_CHECK(false, "AllReduce of {} rows: this backend has no ranks", params.sum.rows);
}

void Backend::AllGather(const AllGatherParams& params) {
  DSA_CHECK(false, "AllGather of {} rows: this backend has no ranks", params.whole.rows);
}

void Backend::Dispatch(const DispatchParams& params) {
  DSA_CHECK(false, "Dispatch of {} rows: this backend has no ranks", params.x.rows);
}

void Backend::Combine(const CombineParams& params) {
  DSA_CHECK(false, "Combine of {} rows: this backend has no ranks", params.y.rows);
}

template class BackendBuffer<MemoryKind::kDevice>;
template class BackendBuffer<MemoryKind::kHost>;

}  // namespace dsa
