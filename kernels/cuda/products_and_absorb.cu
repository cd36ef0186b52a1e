// Fp8 products of up to 64 rows whose outputs a block multiplies again: a head of attention's
// queries, and W_UK behind it, which streams from memory as the weights before it do.
//
// A block has a head: 128 outputs that are absorbed and 64 that are rotated, and 64 of the
// indexer's queries beside those, so two passes over x with 128 weight rows each:
//
//   first   | q_nope [64, 64]  | q_nope [64, 64] |    each by a warpgroup, x on the M side
//   second  | RoPE   [64, 64]  | index  [64, 64] |
//   W_UK    q_latent [64, 2 x 64], four times: q_nope [64, 128], rounded, in shared memory as A
//
// One thread fills a ring of stages of 16 KB: 128 columns of K of 128 weight rows, or 64 rows of N
// of 128 columns of W_UK.  All but x is asked for from before the kernels ahead have ended, and
// W_UK follows right behind the last weights, long before the queries that it meets are there.  x
// stays in shared memory for the second pass: read once a head, it is 12 MB of what the L2 cache
// gives, where tiles of 64 weight rows in blocks of their own read 50.
//
// Blocks share nothing.  Bytes: those of the products, 2 H N 512 of W_UK and 2 T H 512 of q_latent.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/fp8_stage.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/per_device.h"
#include "kernels/cuda/products_and_absorb.h"
#include "kernels/cuda/ptx/copy_box.cuh"
#include "kernels/cuda/ptx/wgmma_bf16.cuh"
#include "kernels/cuda/rope.cuh"
#include "kernels/cuda/small_product.h"
#include "kernels/cuda/weight_map.h"

#include <cstdint>
#include <utility>

namespace dsa::cuda {
namespace {

constexpr int kTokens = 64;
constexpr int kGroups = 2;  // warpgroups of consumers
constexpr int kConsumerWarps = 4 * kGroups;
constexpr int kConsumers = kConsumerWarps * kWarpSize;
constexpr int kThreads = kConsumers + kWarpSize;
constexpr int kNope = 128;
constexpr int kHeadOutputs = kNope + kLatentRopeValues;
constexpr int kPasses = 2;
constexpr int kWeightBytes = kGroups * kSlabBytes;
constexpr int kInputBytes = kTokens * kValuesPerScale;
constexpr int kQueryTileBytes = kTokens * 128;  // 64 of N
constexpr int kQueryBytes = kGroups * kQueryTileBytes;
constexpr int kColumns = 64;  // of the latent, a warpgroup's piece
constexpr int kPieces = kLatentValues / (kGroups * kColumns);
constexpr int kHalves = kNope / 64;  // of N, a stage each
constexpr int kAbsorbStages = kPieces * kHalves;
constexpr int kBlocksMax = 12;  // of K
static_assert(kColumns * kHalves * 64 * sizeof(__nv_bfloat16) == kWeightBytes);

enum NamedBarrier { kConsumersMeet = 1 };

struct Maps {
  CUtensorMap query;
  CUtensorMap index_query;
  CUtensorMap x;
  CUtensorMap w_uk;
};
struct KernelParams {
  Matrix<const float> x_scales;
  Matrix<const float> query_scales;
  Matrix<const float> index_scales;
  AnyMatrix query;
  AnyMatrix index_query;
  AnyTensor3 latent;
  Vector<const std::int32_t> positions;
  RopeTable table;
  int tokens;
  int blocks;  // of K
};

constexpr int kFixedBytes = kTileAlignment + kQueryBytes +
                            kBlocksMax * (kInputBytes + kTokens * 4 + kPasses * kGroups * 4 + 8);
constexpr int kInFlight = 2;  // stages whose products are under way at once
constexpr int kStages = (kBlockSharedBytesMax - kFixedBytes) / (kWeightBytes + 2 * 8);
constexpr int kSharedBytes = kFixedBytes + kStages * (kWeightBytes + 2 * 8);

// Shared memory of a block.
struct Shared {
  unsigned tiles;          // [stage]
  unsigned inputs;         // [block]
  unsigned queries;        // two tiles [64 rows, 64 of N]
  unsigned x_scales;       // [blocks, 64]
  unsigned weight_scales;  // [pass, group, blocks]
  unsigned full;           // 8 bytes a stage: its bytes
  unsigned empty;          // 8 bytes a stage: the consumer warps
  unsigned input_full;     // 8 bytes a block: its bytes

  __device__ explicit Shared(const void* shared) {
    tiles = (ptx::SharedAddress(shared) + kTileAlignment - 1) / kTileAlignment * kTileAlignment;
    inputs = tiles + kStages * kWeightBytes;
    queries = inputs + kBlocksMax * kInputBytes;
    x_scales = queries + kQueryBytes;
    weight_scales = x_scales + kBlocksMax * kTokens * 4;
    full = weight_scales + kPasses * kGroups * kBlocksMax * 4;
    empty = full + 8 * kStages;
    input_full = empty + 8 * kStages;
  }
};

__device__ void LoadWeights(const Maps& maps, const KernelParams& p, const Shared& shared, int head,
                            int turn, int stage, std::uint64_t policy) {
  const unsigned full = shared.full + 8 * stage;
  const unsigned first = shared.tiles + stage * kWeightBytes;
  const unsigned second = first + kSlabBytes;
  ptx::BarrierExpect(full, kWeightBytes);
  if (turn < kPasses * p.blocks) {
    const bool is_first = turn < p.blocks;
    const int column = (is_first ? turn : turn - p.blocks) * kValuesPerScale;
    const int row = head * kHeadOutputs + (is_first ? 0 : kNope);
    ptx::CopyBox(first, &maps.query, full, column, row, policy);
    if (is_first) {
      ptx::CopyBox(second, &maps.query, full, column, row + kSlabRows, policy);
    } else {
      ptx::CopyBox(second, &maps.index_query, full, column, head * kSlabRows, policy);
    }
    return;
  }
  const int part = turn - kPasses * p.blocks;
  const int column = part / kHalves * kGroups * kColumns;
  const int n = part % kHalves * 64;
  ptx::CopyBox(first, maps.w_uk, full, ptx::At3{column, n, head}, policy);
  ptx::CopyBox(second, maps.w_uk, full, ptx::At3{column + kColumns, n, head}, policy);
}

// One thread.
__device__ void Load(const Maps& maps, const KernelParams& p, const Shared& shared, int head) {
  const std::uint64_t policy = ptx::EvictFirst();
  const int turns = kPasses * p.blocks + kAbsorbStages;
  const int ahead = min(kStages, turns);
  for (int turn = 0; turn < ahead; ++turn) {
    LoadWeights(maps, p, shared, head, turn, turn, policy);
  }
  ptx::WaitForPredecessors();
  ptx::CopyEngineFence();  // x was written by threads
  for (int block = 0; block < p.blocks; ++block) {
    const unsigned full = shared.input_full + 8 * block;
    ptx::BarrierExpect(full, kInputBytes);  // rows beyond x come as zeros
    ptx::CopyBox(shared.inputs + block * kInputBytes, maps.x, full,
                 ptx::At2{block * kValuesPerScale, 0});
  }
  Cursor at;
  for (int turn = ahead; turn < turns; ++turn) {
    ptx::BarrierWait(shared.empty + 8 * at.stage, at.phase);
    LoadWeights(maps, p, shared, head, turn, at.stage, policy);
    at.Next(kStages);
  }
}

// sum = a pass of the products, of one warpgroup, as small_product.cuh has it.
__device__ void Accumulate(const Shared& shared, const KernelParams& p, Cursor& at, int pass,
                           int group, float (&sum)[kTokens / 2]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const unsigned weight_scales = shared.weight_scales + (pass * kGroups + group) * kBlocksMax * 4;
  const auto turn = [&]<int... kIndex>(std::integer_sequence<int, kIndex...>, int block) {
    constexpr int kCount = sizeof...(kIndex);
    float partial[kCount][kTokens / 2];
    float scales[kCount][2];
    int stage[kCount];
    (
        [&] {
          stage[kIndex] = at.stage;
          ptx::BarrierWait(shared.full + 8 * at.stage, at.phase);
          at.Next(kStages);
          ptx::BarrierWait(shared.input_full + 8 * (block + kIndex), 0);
          BeginStage<kTokens>(shared.inputs + (block + kIndex) * kInputBytes,
                              shared.tiles + stage[kIndex] * kWeightBytes + group * kSlabBytes,
                              partial[kIndex]);
        }(),
        ...);
    (LoadRowScales(shared.x_scales + (block + kIndex) * kTokens * 4,
                   weight_scales + (block + kIndex) * 4, scales[kIndex]),
     ...);
    (
        [&] {
          ptx::WgmmaWait<kCount - 1 - kIndex>();
          __syncwarp();
          if (lane == 0) {
            ptx::BarrierArrive(shared.empty + 8 * stage[kIndex]);
          }
          AddRowStage(partial[kIndex], scales[kIndex], sum);
        }(),
        ...);
  };
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    sum[i] = 0.0F;
  }
  int block = 0;
  for (; block + kInFlight <= p.blocks; block += kInFlight) {
    turn(std::make_integer_sequence<int, kInFlight>{}, block);
  }
  for (; block < p.blocks; ++block) {
    turn(std::make_integer_sequence<int, 1>{}, block);
  }
}

// A warpgroup's 64 rows by 64 values of N, rounded, as A of the products with W_UK.
__device__ void StoreQueryTile(unsigned tile, const float (&sum)[kTokens / 2]) {
  const int place = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = FirstRow() + 8 * half;
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) {
      ptx::StoreWord(tile + row * 128 + ((j ^ (row % 8)) * 16) + place * 4,
                     Bf16PairOf(sum[4 * j + 2 * half], sum[4 * j + 2 * half + 1]));
    }
  }
}

// The same of 64 RoPE columns, rotated after they are rounded, as the op that stands alone.
__device__ void RotateTile(const KernelParams& p, float (&sum)[kTokens / 2]) {
  const int place = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = FirstRow() + 8 * half;
    const std::int64_t position = row < p.tokens ? p.positions.data[row] : 0;
    const float* const cosines = p.table.cos.Row(position) + place;
    const float* const sines = p.table.sin.Row(position) + place;
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) {
      float& a = sum[4 * j + 2 * half];
      float& b = sum[4 * j + 2 * half + 1];
      a = __bfloat162float(__float2bfloat16_rn(a));
      b = __bfloat162float(__float2bfloat16_rn(b));
      Rotate(cosines[4 * j], sines[4 * j], a, b);
    }
  }
}

__device__ void Consume(const KernelParams& p, const Shared& shared, int head) {
  const int thread = static_cast<int>(threadIdx.x);
  const int group = thread / (kConsumers / kGroups);
  const int lane = thread % kWarpSize;
  for (int i = thread; i < kPasses * kGroups * p.blocks; i += kConsumers) {
    const int part = i / p.blocks;  // of the weights of a stage
    const int block = i % p.blocks;
    const bool is_index = part == kPasses * kGroups - 1;
    const int row = (is_index ? head * kSlabRows : head * kHeadOutputs + part * kSlabRows);
    const Matrix<const float>& scales = is_index ? p.index_scales : p.query_scales;
    ptx::StoreFloat(shared.weight_scales + (part * kBlocksMax + block) * 4,
                    scales.Row(row / kValuesPerScale)[block]);
  }
  ptx::WaitForPredecessors();
  for (int i = thread; i < kTokens * p.blocks; i += kConsumers) {
    const int t = i / p.blocks;
    const int block = i % p.blocks;
    ptx::StoreFloat(shared.x_scales + (block * kTokens + t) * 4,
                    t < p.tokens ? p.x_scales.Row(t)[block] : 0.0F);
  }
  ptx::NamedBarrierSync(kConsumersMeet, kConsumers);

  Cursor at;
  float sum[kTokens / 2];
  const auto store = [&](const AnyMatrix& y, int column) {
    __nv_bfloat16* const first = static_cast<__nv_bfloat16*>(y.data) + column;
    StoreRowsBy16(sum, p.tokens, kSlabRows, [&](int t) { return first + t * y.row_stride; });
  };
  Accumulate(shared, p, at, 0, group, sum);
  StoreQueryTile(shared.queries + group * kQueryTileBytes, sum);
  store(p.query, head * kHeadOutputs + group * kSlabRows);
  Accumulate(shared, p, at, 1, group, sum);
  if (group == 0) {
    RotateTile(p, sum);
    store(p.query, head * kHeadOutputs + kNope);
  } else {
    store(p.index_query, head * kSlabRows);
  }

  ptx::AsyncProxyFence();  // the queries were written by threads
  ptx::NamedBarrierSync(kConsumersMeet, kConsumers);
  __nv_bfloat16* const latent =
      static_cast<__nv_bfloat16*>(p.latent.data) + head * p.latent.head_stride + group * kColumns;
#pragma unroll 1
  for (int piece = 0; piece < kPieces; ++piece) {
    int stage[kHalves];
    ptx::PinRegisters(sum);
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      stage[half] = at.stage;
      ptx::BarrierWait(shared.full + 8 * at.stage, at.phase);
      at.Next(kStages);
      const std::uint64_t a = ptx::SwizzledTile(shared.queries + half * kQueryTileBytes);
      const std::uint64_t b = ptx::SwizzledColumns(
          shared.tiles + stage[half] * kWeightBytes + group * kSlabBytes, kSlabBytes);
      ptx::WgmmaFence();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        ptx::WgmmaBf16Columns64(sum, a + 2 * k, b + 128 * k, half + k > 0);
      }
    }
    ptx::WgmmaCommit();
    ptx::WgmmaWait<0>();
    ptx::PinRegisters(sum);
    __syncwarp();
    if (lane == 0) {
      ptx::BarrierArrive(shared.empty + 8 * stage[0]);
      ptx::BarrierArrive(shared.empty + 8 * stage[1]);
    }
    __nv_bfloat16* const first = latent + piece * kGroups * kColumns;
    StoreRowsBy16(sum, p.tokens, kColumns, [&](int t) { return first + t * p.latent.row_stride; });
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    ProductsAndAbsorbKernel(const __grid_constant__ Maps maps,
                            const __grid_constant__ KernelParams p) {
  extern __shared__ __align__(16) std::uint8_t memory[];
  const Shared shared(memory);
  const int head = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  ptx::AllowSuccessor();
  if (thread == kConsumers) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::BarrierInit(shared.full + 8 * stage, 1);
      ptx::BarrierInit(shared.empty + 8 * stage, kConsumerWarps);
    }
    for (int block = 0; block < p.blocks; ++block) {
      ptx::BarrierInit(shared.input_full + 8 * block, 1);
    }
    ptx::BarrierInitFence();
    ptx::AsyncProxyFence();
  }
  __syncthreads();
  if (thread >= kConsumers) {
    if (thread == kConsumers) {
      Load(maps, p, shared, head);
    }
  } else {
    Consume(p, shared, head);
  }
}

constexpr std::int64_t kAlignment = 16;  // bytes

bool HasAlignedBf16Rows(const AnyMatrix& y) {
  return y.type == DataType::kBf16 && reinterpret_cast<std::uintptr_t>(y.data) % kAlignment == 0 &&
         y.row_stride * 2 % kAlignment == 0;
}

}  // namespace

bool TakesProductsAndAbsorb(const ProductsAndAbsorbParams& params) {
  const BlockScaledLinearParams& query = params.query;
  const BlockScaledLinearParams& index = params.index_query;
  const AbsorbQueryParams& absorb = params.absorb;
  const std::int64_t heads = absorb.w_uk.rows;
  const bool is_of_product = absorb.q_nope.data == query.y.data &&
                             absorb.q_nope.row_stride == query.y.row_stride &&
                             absorb.q_nope.head_stride == kHeadOutputs;
  return query.x.rows > 0 && is_of_product && SmallProductTakes(query) &&
         SmallProductTakes(index) && query.x.cols % kValuesPerScale == 0 &&
         query.x.cols <= kBlocksMax * kValuesPerScale &&
         query.weight.rows == heads * kHeadOutputs && index.weight.rows == heads * kSlabRows &&
         HasAlignedBf16Rows(query.y) && HasAlignedBf16Rows(index.y) &&
         absorb.w_uk.type == DataType::kBf16 && HasAlignedRows(absorb.w_uk) &&
         absorb.w_uk.heads == kNope && absorb.q_latent.type == DataType::kBf16 &&
         HasAlignedRows(absorb.q_latent) && params.rope.x.cols == kLatentRopeValues &&
         params.rope.layout == RopeLayout::kInterleaved;
}

bool IsBetterAtProductsAndAbsorb(const ProductsAndAbsorbParams& params) {
  constexpr std::int64_t kRowsMin = 33;
  constexpr std::int64_t kHeadsMin = 96;
  return params.query.x.rows >= kRowsMin && params.absorb.w_uk.rows >= kHeadsMin &&
         TakesProductsAndAbsorb(params);
}

void ProductsAndAbsorb(const ProductsAndAbsorbParams& params, cudaStream_t stream) {
  const BlockScaledLinearParams& query = params.query;
  const ConstAnyTensor3& w_uk = params.absorb.w_uk;
  const MapAxis axes[] = {{.extent = kLatentValues, .stride = 1, .box = kColumns},
                          {.extent = kNope, .stride = w_uk.head_stride, .box = kNope / kHalves},
                          {.extent = w_uk.rows, .stride = w_uk.row_stride, .box = 1}};
  const Maps maps{.query = WeightMap(query.weight, kSlabRows),
                  .index_query = WeightMap(params.index_query.weight, kSlabRows),
                  .x = WeightMap(query.x, kTokens),
                  .w_uk = Bf16Map(w_uk.data, axes)};
  const KernelParams values{.x_scales = query.x_scales,
                            .query_scales = query.weight_scales,
                            .index_scales = params.index_query.weight_scales,
                            .query = query.y,
                            .index_query = params.index_query.y,
                            .latent = params.absorb.q_latent,
                            .positions = params.rope.positions,
                            .table = params.rope.table,
                            .tokens = static_cast<int>(query.x.rows),
                            .blocks = static_cast<int>(Fp8Blocks(query.x.cols))};
  const auto kernel = ProductsAndAbsorbKernel;
  static PerDevice attribute;
  attribute.Once([&] {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  });
  LaunchDependent(
      kernel,
      {.grid = static_cast<unsigned>(w_uk.rows), .threads = kThreads, .shared_bytes = kSharedBytes},
      stream, maps, values);
}

}  // namespace dsa::cuda
