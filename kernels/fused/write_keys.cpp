#include "kernels/fused/write_keys.h"

#include "common/view_parts.h"
#include "kernels/backend.h"
#include "kernels/ops/rms_norm.h"

namespace dsa {

void Backend::WriteKeys(const WriteKeysParams& params) {
  const AnyMatrix& query_latent = params.query_latent.x;
  if (query_latent.data != nullptr) {
    RmsNorm({.x = query_latent,
             .residual = NullMatrix(query_latent.type),
             .weight = params.query_norm_weight,
             .y = query_latent,
             .eps = params.query_norm_eps});
    Quantize(*this, params.query_latent);
  }
  StoreLatent(params.latent);
  if (params.indexer_key) {
    StoreIndexerKey(*params.indexer_key);
  }
}

}  // namespace dsa
