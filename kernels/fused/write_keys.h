// Everything between the projections of a layer's input and those of its query latent: the norm of
// the query latent, and each row's latent and indexer key into the paged caches.
#pragma once

#include "kernels/fused/activation.h"
#include "kernels/ops/store_indexer_key.h"
#include "kernels/ops/store_latent.h"

#include <optional>

namespace dsa {

struct WriteKeysParams {
  Activation query_latent;                // [T, q_latent]  normed in place; data null: none
  Vector<const float> query_norm_weight;  // [q_latent]
  float query_norm_eps;
  StoreLatentParams latent;
  std::optional<StoreIndexerKeyParams> indexer_key;  // where the layer has an indexer
};

}  // namespace dsa
