#include "kernels/backend.h"

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

template class BackendBuffer<MemoryKind::kDevice>;
template class BackendBuffer<MemoryKind::kHost>;

}  // namespace dsa
