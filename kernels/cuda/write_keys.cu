// WriteKeys in one launch: norm and fp8 copy of the query latent, latents and indexer keys of T
// rows, in blocks of 256 threads:
//
//   blocks [0, T)       a row of the query latent each (norm_row.cuh)
//   blocks [T, 2 T)     a latent each (store_latent.cuh)
//   blocks [2 T, ...)   eight indexer keys each (store_indexer_key.cuh)
//
// Some 5 KB per row, in the L2 cache: latency counts, so all three run side by side.
#include "common/view_parts.h"
#include "kernels/cuda/norm_row.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/store_indexer_key.cuh"
#include "kernels/cuda/store_latent.cuh"
#include "kernels/fused/write_keys.h"
#include "kernels/ops/rms_norm.h"

namespace dsa {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / cuda::kWarpSize;
constexpr int kPacks = 2;

template <typename T>
using QueryRow = cuda::NormRow<T, kThreads, kPacks>;

// What a launch has of the parameters, where the optional parts are not there with 0 rows.
struct Rows {
  Activation query_latent;
  const float* query_norm_weight;
  float query_norm_eps;
  StoreLatentParams latent;
  StoreIndexerKeyParams indexer_key;
  int query_latents;
  int latents;
  int indexer_keys;
};

template <typename T>
__global__ __launch_bounds__(kThreads) void WriteKeysKernel(const __grid_constant__ Rows p) {
  cuda::ptx::AllowSuccessor();
  const int block = static_cast<int>(blockIdx.x);
  if (block < p.query_latents) {
    const AnyMatrix& x = p.query_latent.x;
    const QueryRow<T> norm(p.query_norm_weight, x.cols);
    cuda::ptx::WaitForPredecessors();
    T* const row = static_cast<T*>(x.data) + block * x.row_stride;
    norm.Run(row, nullptr, p.query_norm_eps, row, p.query_latent.fp8, block);
    return;
  }
  cuda::ptx::WaitForPredecessors();
  const int latent = block - p.query_latents;
  if (latent < p.latents) {
    cuda::LatentRow<T, kThreads>(p.latent, latent).Run();
    return;
  }
  const int key = (latent - p.latents) * kWarps + static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  if (key < p.indexer_keys) {
    cuda::StoreIndexerKeyRow<T>(p.indexer_key, key);
  }
}

void CheckQueryLatent(const WriteKeysParams& params) {
  const Activation& query_latent = params.query_latent;
  Validate(RmsNormParams{.x = query_latent.x,
                         .residual = NullMatrix(query_latent.x.type),
                         .weight = params.query_norm_weight,
                         .y = query_latent.x,
                         .eps = params.query_norm_eps});
  if (query_latent.fp8.values.data != nullptr) {
    Validate(QuantizeFp8Params{.x = query_latent.x,
                               .values = query_latent.fp8.values,
                               .scales = query_latent.fp8.scales,
                               .scale_format = query_latent.fp8.format});
  }
}

// One type throughout, and a query latent that fits.
bool IsTaken(const WriteKeysParams& params) {
  const DataType type = params.latent.kv.type;
  const AnyMatrix& query_latent = params.query_latent.x;
  return (query_latent.data == nullptr ||
          (query_latent.type == type && query_latent.cols <= QueryRow<float>::kColumnsMax)) &&
         (!params.indexer_key || params.indexer_key->k.type == type);
}

}  // namespace

bool cuda::WriteKeys(const WriteKeysParams& params, cudaStream_t stream) {
  const bool has_query_latent = params.query_latent.x.data != nullptr;
  const auto latents = static_cast<int>(Validate(params.latent).tokens);
  const auto indexer_keys =
      static_cast<int>(params.indexer_key ? Validate(*params.indexer_key).tokens : 0);
  if (has_query_latent) {
    CheckQueryLatent(params);
  }
  if (!IsTaken(params)) {
    return false;
  }
  const Rows rows{
      .query_latent = params.query_latent,
      .query_norm_weight = params.query_norm_weight.data,
      .query_norm_eps = params.query_norm_eps,
      .latent = params.latent,
      .indexer_key = params.indexer_key ? *params.indexer_key : StoreIndexerKeyParams{},
      .query_latents = has_query_latent ? static_cast<int>(params.query_latent.x.rows) : 0,
      .latents = latents,
      .indexer_keys = indexer_keys};
  const int blocks = rows.query_latents + latents + (indexer_keys + kWarps - 1) / kWarps;
  if (blocks == 0) {
    return true;
  }
  cuda::DispatchFloat(params.latent.kv.type, [&]<typename T>(T) {
    cuda::LaunchDependent(WriteKeysKernel<T>,
                          {.grid = static_cast<unsigned>(blocks), .threads = kThreads}, stream,
                          rows);
  });
  return true;
}

}  // namespace dsa
