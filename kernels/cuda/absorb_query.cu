// AbsorbQuery: per head a product of [T, N] queries with [N, 512] weights, whose summed axis is the
// weight's rows.  bfloat16 runs on the tensor cores, one block of 256 threads a tile:
//
//   A   W_UK^T   [128 latent values, 64 of N]   transposed while it is read from shared memory
//   B   queries  [64 of N, kTokens]
//   C   128 x kTokens in float32, through shared memory to rows of the output
//
// Other types, and queries or weights whose rows are not aligned to 16 bytes, take float32 products
// without tensor cores.  A result's bits depend on its row alone.
//
// With few rows the weights' 2 H N 512 bytes are the bound; the first stages of them are read
// before the kernels ahead have ended.  RotateAndAbsorb rotates the queries' RoPE columns in the
// same launch.
#include "kernels/cuda/attend_latent.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/plain_product.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/rope.cuh"
#include "kernels/kv_layout.h"
#include "kernels/ops/absorb_query.h"

#include <algorithm>

namespace dsa {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 128;  // latent values of a tile
constexpr int kDepth = 64;     // of N, a stage
constexpr int kStages = 2;
constexpr int kWeightStride = kColumns * 2 + 16;  // bytes; eight rows meet all banks
constexpr int kQueryStride = kDepth * 2 + 16;
constexpr int kResultStride = kColumns + 4;  // floats

template <int kTokens>
struct Tile {
  static constexpr int kTokenWarps = kTokens >= 32 ? 2 : 1;
  static constexpr int kColumnTiles = kColumns / (8 / kTokenWarps) / 16;  // of a warp
  static constexpr int kTokenTiles = kTokens / kTokenWarps / 8;
  static constexpr int kStageBytes = kDepth * kWeightStride + kTokens * kQueryStride;
  static constexpr int kSharedBytes = std::max(kStages * kStageBytes, kTokens* kResultStride * 4);

  using Totals = float[kColumnTiles][kTokenTiles][4];

  // `first_n` of both: where the stage begins in N.
  __device__ static void LoadWeights(std::uint8_t* stage, const AbsorbQueryParams& p, int first_n,
                                     int first_column, std::int64_t head) {
    const auto* weights =
        static_cast<const __nv_bfloat16*>(p.w_uk.data) + head * p.w_uk.row_stride + first_column;
    const int left = static_cast<int>(p.q_nope.cols) - first_n;
    for (int i = static_cast<int>(threadIdx.x); i < kDepth * kColumns / 8; i += kThreads) {
      const int n = i / (kColumns / 8);
      const int chunk = i % (kColumns / 8);
      const bool exists = n < left;
      cuda::ptx::CopyAsync16(
          stage + n * kWeightStride + chunk * 16,
          weights + (exists ? (first_n + n) * p.w_uk.head_stride + chunk * 8 : 0), exists ? 16 : 0);
    }
  }

  __device__ static void LoadQueries(std::uint8_t* stage, const AbsorbQueryParams& p, int first_n,
                                     std::int64_t first_token, std::int64_t head) {
    const auto* queries =
        static_cast<const __nv_bfloat16*>(p.q_nope.data) + head * p.q_nope.head_stride + first_n;
    const int left = static_cast<int>(p.q_nope.cols) - first_n;
    for (int i = static_cast<int>(threadIdx.x); i < kTokens * kDepth / 8; i += kThreads) {
      const int token = i / (kDepth / 8);
      const int n = i % (kDepth / 8) * 8;
      const bool exists = first_token + token < p.q_nope.rows && n < left;
      cuda::ptx::CopyAsync16(
          stage + kDepth * kWeightStride + token * kQueryStride + n * 2,
          exists ? queries + (first_token + token) * p.q_nope.row_stride + n : queries - first_n,
          exists ? min(left - n, 8) * 2 : 0);
    }
  }

  __device__ static void Multiply(const std::uint8_t* stage, int column, int token,
                                  Totals& totals) {
    const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
    const std::uint8_t* queries = stage + kDepth * kWeightStride;
#pragma unroll
    for (int n = 0; n < kDepth; n += 16) {
      unsigned b[kTokenTiles][2];
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        const std::uint8_t* at =
            queries + (token + t * 8 + lane / 4) * kQueryStride + n * 2 + lane % 4 * 4;
        b[t][0] = *reinterpret_cast<const unsigned*>(at);
        b[t][1] = *reinterpret_cast<const unsigned*>(at + 16);
      }
#pragma unroll
      for (int m = 0; m < kColumnTiles; ++m) {
        unsigned a[4];
        cuda::ptx::LoadMatricesTransposed(a, stage +
                                                 (n + lane / 16 * 8 + lane % 8) * kWeightStride +
                                                 (column + m * 16 + lane / 8 % 2 * 8) * 2);
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
          cuda::ptx::MmaBf16(totals[m][t], a, b[t][0], b[t][1]);
        }
      }
    }
  }
};

constexpr int kColumnTiles = kLatentValues / kColumns;

// What a thread rotates: RoPE columns of a tile of tokens of one head, of which each of the head's
// column tiles takes some.  Read before the products and stored behind them, so that nothing waits.
template <int kTokens>
class Rotation final {
 public:
  __device__ Rotation(const RopeParams& p, std::int64_t first_token, std::int64_t head)
      : columns_(cuda::PairColumns(static_cast<int>(threadIdx.x) % kPairs, kLatentRopeValues,
                                   p.layout)) {
    const int pair = static_cast<int>(threadIdx.x) % kPairs;
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int place = static_cast<int>(threadIdx.x) / kPairs + i * kAtOnce;
      const std::int64_t token = first_token + place * kColumnTiles + blockIdx.x;
      rows_[i] = nullptr;
      if (place < kTokens / kColumnTiles && token < p.x.rows) {
        rows_[i] =
            static_cast<__nv_bfloat16*>(p.x.data) + token * p.x.row_stride + head * p.x.head_stride;
        const std::int64_t position = p.positions.data[token];
        first_[i] = rows_[i][columns_.first];
        second_[i] = rows_[i][columns_.second];
        cosine_[i] = p.table.cos.Row(position)[pair];
        sine_[i] = p.table.sin.Row(position)[pair];
      }
    }
  }
  __device__ void Store() const {
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      if (rows_[i] != nullptr) {
        float a = __bfloat162float(first_[i]);
        float b = __bfloat162float(second_[i]);
        cuda::Rotate(cosine_[i], sine_[i], a, b);
        rows_[i][columns_.first] = __float2bfloat16_rn(a);
        rows_[i][columns_.second] = __float2bfloat16_rn(b);
      }
    }
  }

 private:
  static constexpr int kPairs = kLatentRopeValues / 2;
  static constexpr int kAtOnce = kThreads / kPairs;  // tokens
  static constexpr int kTurns = (kTokens / kColumnTiles + kAtOnce - 1) / kAtOnce;

  cuda::RopePair columns_;
  __nv_bfloat16* rows_[kTurns];
  __nv_bfloat16 first_[kTurns];
  __nv_bfloat16 second_[kTurns];
  float cosine_[kTurns];
  float sine_[kTurns];
};
struct NoRotation {
  __device__ void Store() const {}
};

// Grid: tiles of latent values, tiles of tokens, heads.  kRotates: the queries' RoPE columns as
// well.
template <int kTokens, bool kRotates>
__global__ __launch_bounds__(kThreads) void AbsorbQueryKernel(
    const __grid_constant__ AbsorbQueryParams p, const __grid_constant__ RopeParams rope) {
  using T = Tile<kTokens>;
  extern __shared__ __align__(16) std::uint8_t shared[];
  const int first_column = static_cast<int>(blockIdx.x) * kColumns;
  const std::int64_t first_token = blockIdx.y * std::int64_t{kTokens};
  const std::int64_t head = blockIdx.z;
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int column = warp / T::kTokenWarps * T::kColumnTiles * 16;
  const int token = warp % T::kTokenWarps * T::kTokenTiles * 8;
  const int stages = (static_cast<int>(p.q_nope.cols) + kDepth - 1) / kDepth;
  typename T::Totals totals = {};
  cuda::ptx::AllowSuccessor();
  for (int stage = 0; stage < min(stages, kStages); ++stage) {
    T::LoadWeights(shared + stage * T::kStageBytes, p, stage * kDepth, first_column, head);
  }
  cuda::ptx::WaitForPredecessors();
  T::LoadQueries(shared, p, 0, first_token, head);
  cuda::ptx::CommitCopies();
  const auto rotation = [&] {
    if constexpr (kRotates) {
      return Rotation<kTokens>(rope, first_token, head);
    } else {
      return NoRotation{};
    }
  }();
  for (int stage = 0; stage < stages; ++stage) {
    if (stage + 1 < stages) {
      std::uint8_t* const next = shared + (stage + 1) % kStages * T::kStageBytes;
      if (stage + 1 >= kStages) {
        T::LoadWeights(next, p, (stage + 1) * kDepth, first_column, head);
      }
      T::LoadQueries(next, p, (stage + 1) * kDepth, first_token, head);
    }
    cuda::ptx::CommitCopies();
    cuda::ptx::WaitForCopies<1>();
    __syncthreads();
    T::Multiply(shared + stage % kStages * T::kStageBytes, column, token, totals);
    __syncthreads();
  }
  auto* results = reinterpret_cast<float*>(shared);
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
#pragma unroll
  for (int m = 0; m < T::kColumnTiles; ++m) {
#pragma unroll
    for (int t = 0; t < T::kTokenTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        results[(token + t * 8 + lane % 4 * 2 + i % 2) * kResultStride + column + m * 16 +
                lane / 4 + i / 2 * 8] = totals[m][t][i];
      }
    }
  }
  __syncthreads();
  // 16 lanes store a token's tile.
  constexpr int kWidth = 8;
  constexpr int kLanes = kColumns / kWidth;
  const int value = static_cast<int>(threadIdx.x) % kLanes * kWidth;
  auto* const output = static_cast<__nv_bfloat16*>(p.q_latent.data) +
                       head * p.q_latent.head_stride + first_column + value;
#pragma unroll
  for (int first = 0; first < kTokens; first += kThreads / kLanes) {
    const int t = first + static_cast<int>(threadIdx.x) / kLanes;
    if (t < kTokens && first_token + t < p.q_latent.rows) {
      cuda::Pack<__nv_bfloat16, kWidth> rounded;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        rounded.values[i] = __float2bfloat16_rn(results[t * kResultStride + value + i]);
      }
      cuda::StorePack(output + (first_token + t) * p.q_latent.row_stride, rounded);
    }
  }
  rotation.Store();
}

template <typename T, typename W>
__global__ __launch_bounds__(kThreads) void PlainAbsorbQueryKernel(
    const __grid_constant__ AbsorbQueryParams p) {
  cuda::StartAfterPredecessors();
  using Product = cuda::PlainProduct<T, W>;
  __shared__ typename Product::Shared shared;
  const int first_column = static_cast<int>(blockIdx.x) * Product::kWeightRows;
  const std::int64_t first_token = blockIdx.y * std::int64_t{Product::kTokens};
  const std::int64_t head = blockIdx.z;
  T* output = static_cast<T*>(p.q_latent.data) + first_token * p.q_latent.row_stride +
              head * p.q_latent.head_stride + first_column;
  Product::Run(
      shared,
      {.weight = static_cast<const W*>(p.w_uk.data) + head * p.w_uk.row_stride + first_column,
       .weight_stride = 1,
       .weight_column_stride = p.w_uk.head_stride,
       .weight_rows = Product::kWeightRows,
       .x = static_cast<const T*>(p.q_nope.data) + first_token * p.q_nope.row_stride +
            head * p.q_nope.head_stride,
       .x_stride = p.q_nope.row_stride,
       .x_rows = nullptr,
       .tokens = static_cast<int>(min(p.q_nope.rows - first_token, std::int64_t{Product::kTokens})),
       .columns = static_cast<int>(p.q_nope.cols)},
      [&](int token, int row, float value) {
        output[token * p.q_latent.row_stride + row] = cuda::FromFloat<T>(value);
      });
}

template <int kTokens, bool kRotates>
void Launch(const AbsorbQueryParams& params, const RopeParams& rope, cudaStream_t stream) {
  const auto kernel = AbsorbQueryKernel<kTokens, kRotates>;
  DSA_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      Tile<kTokens>::kSharedBytes));
  const dim3 grid(kColumnTiles, static_cast<unsigned>((params.q_nope.rows + kTokens - 1) / kTokens),
                  static_cast<unsigned>(params.q_nope.heads));
  cuda::LaunchDependent(
      kernel, {.grid = grid, .threads = kThreads, .shared_bytes = Tile<kTokens>::kSharedBytes},
      stream, params, rope);
}

template <bool kRotates>
void LaunchTensor(const AbsorbQueryParams& params, const RopeParams& rope, cudaStream_t stream) {
  constexpr std::int64_t kFew = 8;
  params.q_nope.rows <= kFew ? Launch<8, kRotates>(params, rope, stream)
                             : Launch<64, kRotates>(params, rope, stream);
}

bool TensorCoresTake(const AbsorbQueryParams& params) {
  return params.q_nope.type == DataType::kBf16 && params.w_uk.type == DataType::kBf16 &&
         cuda::HasAlignedRows(params.q_nope) && cuda::HasAlignedRows(params.w_uk);
}

}  // namespace

bool cuda::RotateAndAbsorb(const RopeParams& rope, const AbsorbQueryParams& absorb,
                           cudaStream_t stream) {
  Validate(rope);
  const AbsorbQueryExtents extents = Validate(absorb);
  if (!TensorCoresTake(absorb) || rope.x.type != DataType::kBf16) {
    return false;
  }
  if (extents.tokens > 0) {
    LaunchTensor<true>(absorb, rope, stream);
  }
  return true;
}

void CudaBackend::AbsorbQuery(const AbsorbQueryParams& params) {
  const AbsorbQueryExtents extents = Validate(params);
  if (extents.tokens == 0) {
    return;
  }
  if (TensorCoresTake(params)) {
    LaunchTensor<false>(params, {}, state_->stream);
    return;
  }
  cuda::DispatchFloat(params.q_nope.type, [&]<typename T>(T) {
    cuda::DispatchFloat(params.w_uk.type, [&]<typename W>(W) {
      using Product = cuda::PlainProduct<T, W>;
      const dim3 grid(
          kLatentValues / Product::kWeightRows,
          static_cast<unsigned>((extents.tokens + Product::kTokens - 1) / Product::kTokens),
          static_cast<unsigned>(extents.heads));
      cuda::LaunchDependent(PlainAbsorbQueryKernel<T, W>, {.grid = grid, .threads = kThreads},
                            state_->stream, params);
    });
  });
}

}  // namespace dsa
