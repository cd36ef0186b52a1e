// The experts of a prompt: at least 128 pairs each, so that the tensor cores are the bound and not
// the weights' bytes.  Four launches behind the sort:
//
//   gather    rows of x in the order of the sorted pairs, so that the copy engine brings them
//   inner     tiles of 128 pairs x (128 rows of gate and the same 128 of up), SwiGLU, e4m3
//   outer     tiles of 128 pairs x 256 rows of down
//   combine   a token's contributions in the gate's order, the shared expert's last; not where they
//             are left for ranks to add
//
// Pairs lie on the M side of wgmma.m64n128k32, weight rows on the N side: a stage of 128 columns
// brings 48 KB for 8.4 MFLOP, where the resident launch's tiles of 64 pairs bring 40 KB for 4.2.
//
//   warps 0-7   two warpgroups of 64 pairs each: a box's four products of K = 32, then
//               sum += partial * (x scale * w scale), then the other box's.  One multiplies while
//               the other one adds
//   warp 8      one thread: rows and both boxes of weights, by tensor map, four stages ahead and
//               into the next tile
//
// A block takes every 132nd tile.  Eight tiles of pairs and all columns of their expert are as many
// as run at once, so both operands are read from the L2 cache but for the first time.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/expert_tiles.h"
#include "kernels/cuda/fp8_stage.cuh"
#include "kernels/cuda/per_device.h"
#include "kernels/cuda/ptx/copy_box.cuh"
#include "kernels/cuda/ptx/wgmma_fp8_wide.cuh"
#include "kernels/cuda/resident_experts.cuh"
#include "kernels/cuda/swiglu.cuh"
#include "kernels/cuda/weight_map.h"

#include <type_traits>

namespace dsa::cuda::resident_experts {
namespace {

constexpr int kTileConsumerWarps = 8;
constexpr int kTileThreads = (kTileConsumerWarps + 4) * kWarpSize;  // whole warpgroups
constexpr int kTileConsumerRegisters = 240;
constexpr int kTileProducerRegisters = 24;
constexpr int kTileStages = 4;
constexpr int kRowsBytes = kManyTilePairs * kValuesPerScale;
constexpr int kTileStageBytes = kRowsBytes + 2 * kBoxBytes;
constexpr int kTileSharedBytes = kTileAlignment + kTileStages * kTileStageBytes + kTileStages * 16;
constexpr int kTogether = 8;           // tiles of pairs whose columns are computed side by side
constexpr int kSums = kBoxRows / 2;    // of a thread and box
constexpr int kGroups = kBoxRows / 8;  // of 8 columns, of which a thread has two in two rows
constexpr int kRowThreads = 256;
constexpr int kRowWarps = kRowThreads / kWarpSize;
static_assert(kTileSharedBytes <= kBlockSharedBytesMax);

struct TileMaps {
  CUtensorMap rows;
  CUtensorMap weights[2];  // of the two boxes
};
struct TileParams {
  SortedPairs sorted;
  Matrix<const float> row_scales;        // of inner: by token; of outer: by sorted pair
  Matrix<const float> weight_scales[2];  // of the two boxes
  int columns;                           // tiles of a tile of pairs
  int blocks;                            // of K
  int outputs;                           // rows of an expert's weight
  Fp8E4m3* inner;                        // [P, I]
  float* inner_scales;                   // [P, I / 128]
  ScaleFormat scale_format;
  void* contributions;  // [P, D]  of y's type
  bool leaves_pairs;    // by pair, else by sorted pair
};

// A tile of pairs with a tile of outputs.
struct TileTask {
  PairTile pairs;
  int column;
  __device__ TileTask(const TileParams& p, int used, int item) {
    const int group = item / (kTogether * p.columns);
    const int tiles = min(kTogether, used - group * kTogether);
    const int within = item - group * kTogether * p.columns;
    pairs = p.sorted.tiles[group * kTogether + within % tiles];
    column = within / tiles;
  }
};

struct TileRing {
  unsigned stages;
  unsigned full;
  unsigned empty;
  __device__ explicit TileRing(const void* shared)
      : stages((ptx::SharedAddress(shared) + kTileAlignment - 1) / kTileAlignment * kTileAlignment),
        full(stages + kTileStages * kTileStageBytes),
        empty(full + 8 * kTileStages) {}
};

// First row of a box among all experts' rows of its weight.
template <bool kInner>
__device__ int FirstRow(const TileParams& p, const TileTask& task, int box) {
  const int own = kInner ? task.column * kBoxRows : task.column * kTileRows + box * kBoxRows;
  return task.pairs.expert * p.outputs + own;
}

// One thread.
template <bool kInner>
__device__ void LoadTiles(const TileMaps& maps, const TileParams& p, const TileRing& ring) {
  const int used = *p.sorted.tiles_used;
  const int items = used * p.columns;
  Cursor at;
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    const TileTask task(p, used, item);
    for (int k = 0; k < p.blocks; ++k) {
      if (at.turn >= kTileStages) {
        ptx::BarrierWait(ring.empty + 8 * at.stage, at.phase ^ 1U);
      }
      const unsigned full = ring.full + 8 * at.stage;
      const unsigned stage = ring.stages + at.stage * kTileStageBytes;
      const int column = k * kValuesPerScale;
      ptx::BarrierExpect(full, kTileStageBytes);
      ptx::CopyBox(stage, maps.rows, full, ptx::At2{column, task.pairs.first});
#pragma unroll
      for (int box = 0; box < 2; ++box) {
        ptx::CopyBox(stage + kRowsBytes + box * kBoxBytes, maps.weights[box], full,
                     ptx::At2{column, FirstRow<kInner>(p, task, box)});
      }
      at.Next(kTileStages);
    }
  }
}

// The scales that a thread's values of a block of K meet: of its two rows, and of both boxes.
struct TileScales {
  float rows[2];
  float weights[2];
};
struct ScaleSource {
  const float* rows[2];
  const float* weights[2];

  template <bool kInner>
  __device__ static ScaleSource Of(const TileParams& p, const TileTask& task, int pair) {
    ScaleSource source;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      // Rows beyond the tile's are computed and not stored.
      const int place = task.pairs.first + min(pair + 8 * h, task.pairs.count - 1);
      source.rows[h] = p.row_scales.Row(kInner ? p.sorted.tokens[place] : place);
      const int last = (task.pairs.expert + 1) * (p.outputs / kValuesPerScale) - 1;
      source.weights[h] =
          p.weight_scales[h].Row(min(FirstRow<kInner>(p, task, h) / kValuesPerScale, last));
    }
    return source;
  }
  __device__ TileScales At(int k) const {
    return {.rows = {rows[0][k], rows[1][k]}, .weights = {weights[0][k], weights[1][k]}};
  }
};

// sum += partial * scales of one box, once the products have ended.
__device__ inline void AddBox(float (&partial)[kSums], const TileScales& scales, float weight,
                              float (&sum)[kSums]) {
  const float scale[2] = {scales.rows[0] * weight, scales.rows[1] * weight};
  ptx::PinRegisters(partial);
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    sum[i] = fmaf(partial[i], scale[i / 2 % 2], sum[i]);
  }
}

__device__ inline void BeginBox(unsigned rows, unsigned weights, float (&partial)[kSums]) {
  const std::uint64_t a = ptx::SwizzledTile(rows);
  const std::uint64_t b = ptx::SwizzledTile(weights);
  ptx::PinRegisters(partial);
  ptx::WgmmaFence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    ptx::WgmmaFp8<kBoxRows>::Run(partial, a + 2 * k, b + 2 * k, k > 0);
  }
  ptx::WgmmaCommit();
}

// A warpgroup's 64 pairs with both boxes.
__device__ inline void MultiplyTile(const TileRing& ring, Cursor& at, int blocks, int warpgroup,
                                    int lane, const ScaleSource& source, float (&sum)[2][kSums]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    sum[0][i] = 0.0F;
    sum[1][i] = 0.0F;
  }
  TileScales next = source.At(0);
  for (int k = 0; k < blocks; ++k) {
    const TileScales scales = next;
    const unsigned stage = ring.stages + at.stage * kTileStageBytes;
    const unsigned rows = stage + warpgroup * kSlabBytes;
    const unsigned empty = ring.empty + 8 * at.stage;
    float partial[kSums];
    ptx::BarrierWait(ring.full + 8 * at.stage, at.phase);
    at.Next(kTileStages);
    BeginBox(rows, stage + kRowsBytes, partial);
    next = source.At(min(k + 1, blocks - 1));
    ptx::WgmmaWait<0>();
    AddBox(partial, scales, scales.weights[0], sum[0]);
    BeginBox(rows, stage + kRowsBytes + kBoxBytes, partial);
    ptx::WgmmaWait<0>();
    __syncwarp();
    if (lane == 0) {
      ptx::BarrierArrive(empty);
    }
    AddBox(partial, scales, scales.weights[1], sum[1]);
  }
}

// Codes of a row's 128 outputs, divided by its scale.  Of the outputs of group j, eight, a lane of
// four has values 4 j + 2 h and the next; it stores 16 that lie together, from 16 (4 m + q) on.
template <typename Divide>
__device__ inline void StoreCodes(const float (&values)[kSums], int h, const Divide& divide,
                                  bool exists, Fp8E4m3* to, int lane) {
  const auto code = [&](int i) -> unsigned { return ToFp8(divide(values[i])); };
#pragma unroll
  for (int m = 0; m < kGroups / 8; ++m) {
    unsigned words[4];  // of groups 2 (4 m + i) and the next: two codes of each
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int first = 4 * 2 * (4 * m + i) + 2 * h;
      words[i] = code(first) | code(first + 1) << 8 | code(first + 4) << 16 | code(first + 5) << 24;
    }
    TurnWords(words, lane);
    if (exists) {
      *reinterpret_cast<uint4*>(to + 16 * (4 * m + lane % 4)) = make_uint4(
          __byte_perm(words[0], words[1], 0x5410), __byte_perm(words[2], words[3], 0x5410),
          __byte_perm(words[0], words[1], 0x7632), __byte_perm(words[2], words[3], 0x7632));
    }
  }
}

// SwiGLU of gate (sum[0]) and up (sum[1]), quantized over the tile's 128 outputs.
__device__ inline void StoreInnerTile(const TileParams& p, const TileTask& task, int pair, int lane,
                                      float (&sum)[2][kSums]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float amax = 0.0F;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int i = 4 * j + 2 * h; i < 4 * j + 2 * h + 2; ++i) {
        const float value = Rounded<__nv_bfloat16>(
            SwiGluOf(Rounded<__nv_bfloat16>(sum[0][i]), Rounded<__nv_bfloat16>(sum[1][i])));
        sum[0][i] = value;
        amax = fmaxf(amax, fabsf(value));
      }
    }
    amax = fmaxf(amax, __shfl_xor_sync(kAllLanes, amax, 1));
    amax = fmaxf(amax, __shfl_xor_sync(kAllLanes, amax, 2));
    const float scale = BlockScale(amax, p.scale_format);
    const bool exists = pair + 8 * h < task.pairs.count;
    const std::int64_t row = task.pairs.first + pair + 8 * h;
    Fp8E4m3* const inner = p.inner + row * p.outputs + task.column * kBoxRows;
    if (exists && lane % 4 == 0) {
      p.inner_scales[row * p.columns + task.column] = scale;
    }
    if (p.scale_format == ScaleFormat::kPowerOfTwo) {  // the quotient, exactly
      const float reciprocal = ReciprocalOfPower(scale);
      StoreCodes(
          sum[0], h, [&](float value) { return value * reciprocal; }, exists, inner, lane);
    } else {
      StoreCodes(
          sum[0], h, [&](float value) { return value / scale; }, exists, inner, lane);
    }
  }
}

// A row's 128 outputs of one box, of which a lane of four has two of every eight.
__device__ inline void StoreOutputs(const float (&sum)[kSums], int h, bool exists, float* to,
                                    int lane) {
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    if (exists) {
      *reinterpret_cast<float2*>(to + 8 * j + lane % 4 * 2) =
          make_float2(sum[4 * j + 2 * h], sum[4 * j + 2 * h + 1]);
    }
  }
}
__device__ inline void StoreOutputs(const float (&sum)[kSums], int h, bool exists,
                                    __nv_bfloat16* to, int lane) {
#pragma unroll
  for (int m = 0; m < kGroups / 4; ++m) {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const values = &sum[4 * (4 * m + i) + 2 * h];
      words[i] = Bf16PairOf(values[0], values[1]);
    }
    TurnWords(words, lane);
    if (exists) {  // those of group 4 m + q
      *reinterpret_cast<uint4*>(to + 8 * (4 * m + lane % 4)) =
          make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

// An expert's output, as Y.
template <typename Y>
__device__ void StoreOuterTile(const TileParams& p, const TileTask& task, int pair, int lane,
                               const float (&sum)[2][kSums]) {
  int rows[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int place = task.pairs.first + min(pair + 8 * h, task.pairs.count - 1);
    rows[h] = p.leaves_pairs ? p.sorted.pairs[place] : place;
  }
#pragma unroll
  for (int box = 0; box < 2; ++box) {
    const int column = task.column * kTileRows + box * kBoxRows;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int64_t row = rows[h];
      StoreOutputs(sum[box], h, pair + 8 * h < task.pairs.count && column < p.outputs,
                   static_cast<Y*>(p.contributions) + row * p.outputs + column, lane);
    }
  }
}

// Y: of what it stores, e4m3 of the inner activations or contributions.
template <typename Y>
__global__ void __launch_bounds__(kTileThreads, 1)
    ExpertTilesKernel(const __grid_constant__ TileMaps maps, const __grid_constant__ TileParams p) {
  constexpr bool kInner = std::is_same_v<Y, Fp8E4m3>;
  extern __shared__ std::uint8_t dynamic[];
  const TileRing ring(dynamic);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kTileStages; ++stage) {
      ptx::BarrierInit(ring.full + 8 * stage, 1);
      ptx::BarrierInit(ring.empty + 8 * stage, kTileConsumerWarps);
    }
    ptx::BarrierInitFence();
    ptx::AsyncProxyFence();
  }
  __syncthreads();
  ptx::AllowSuccessor();
  if (warp >= kTileConsumerWarps) {
    ptx::LowerRegisters<kTileProducerRegisters>();
    ptx::WaitForPredecessors();
    if (warp == kTileConsumerWarps && lane == 0) {
      ptx::CopyEngineFence();  // rows were written by threads
      LoadTiles<kInner>(maps, p, ring);
    }
  } else {
    ptx::RaiseRegisters<kTileConsumerRegisters>();
    ptx::WaitForPredecessors();
    const int used = *p.sorted.tiles_used;
    const int items = used * p.columns;
    const int pair = warp * 16 + lane / 4;
    Cursor at;
    for (int item = static_cast<int>(blockIdx.x); item < items;
         item += static_cast<int>(gridDim.x)) {
      const TileTask task(p, used, item);
      float sum[2][kSums];
      MultiplyTile(ring, at, p.blocks, warp / 4, lane, ScaleSource::Of<kInner>(p, task, pair), sum);
      if constexpr (kInner) {
        StoreInnerTile(p, task, pair, lane, sum);
      } else {
        StoreOuterTile<Y>(p, task, pair, lane, sum);
      }
    }
  }
}

// A warp copies a token's row to the places of its pairs.
__global__ __launch_bounds__(kRowThreads) void GatherPairsKernel(
    const __grid_constant__ ExpertsParams p, Fp8E4m3* rows) {
  StartAfterPredecessors();
  constexpr int kPackBytes = 16;
  constexpr int kAtOnce = 7;  // of a lane; two turns of 7,168 values
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int token =
      static_cast<int>(blockIdx.x) * kRowWarps + static_cast<int>(threadIdx.x) / kWarpSize;
  if (token >= static_cast<int>(p.x.rows)) {
    return;
  }
  const int slots = p.choice.slots();
  const int own = lane < slots ? p.sorted.places[token * slots + lane] : -1;
  const auto* const from = reinterpret_cast<const uint4*>(p.x.Row(token));
  auto* const to = reinterpret_cast<uint4*>(rows);
  const int packs = static_cast<int>(p.x.cols) / kPackBytes;
  for (int first = lane; first - lane < packs; first += kAtOnce * kWarpSize) {
    uint4 values[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i * kWarpSize < packs) {
        values[i] = from[first + i * kWarpSize];
      }
    }
    for (int slot = 0; slot < slots; ++slot) {
      const std::int64_t place = __shfl_sync(kAllLanes, own, slot);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (place >= 0 && first + i * kWarpSize < packs) {
          to[place * packs + first + i * kWarpSize] = values[i];
        }
      }
    }
  }
}

// A warp adds 256 columns of a token.
template <typename Y>
__global__ __launch_bounds__(kRowThreads) void CombinePairsKernel(
    const __grid_constant__ ExpertsParams p) {
  StartAfterPredecessors();
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int columns = (static_cast<int>(p.x.cols) + kSumColumns - 1) / kSumColumns;
  const int task =
      static_cast<int>(blockIdx.x) * kRowWarps + static_cast<int>(threadIdx.x) / kWarpSize;
  const int token = task / columns;
  if (token < static_cast<int>(p.x.rows)) {
    SumColumns<Y>(p, token, TokenSlots(p, token, lane),
                  task % columns * std::int64_t{kSumColumns} + lane * 8, lane);
  }
}

CUtensorMap RowsMap(const Fp8E4m3* rows, std::int64_t pairs, std::int64_t cols) {
  return WeightMap({.data = rows, .rows = pairs, .cols = cols, .row_stride = cols}, kManyTilePairs);
}

template <typename Y>
void LaunchTiles(const TileMaps& maps, const TileParams& params, cudaStream_t stream) {
  static PerDevice attribute;
  attribute.Once([] {
    return cudaFuncSetAttribute(ExpertTilesKernel<Y>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                kTileSharedBytes);
  });
  LaunchDependent(ExpertTilesKernel<Y>,
                  {.grid = static_cast<unsigned>(Multiprocessors()),
                   .threads = kTileThreads,
                   .shared_bytes = kTileSharedBytes},
                  stream, maps, params);
}

unsigned BlocksOf(std::int64_t warps) {
  return static_cast<unsigned>((warps + kRowWarps - 1) / kRowWarps);
}

}  // namespace

void LaunchExpertTiles(const ExpertMaps& maps, const ExpertsParams& params, DataType y,
                       cudaStream_t stream) {
  const std::int64_t hidden = params.x.cols;
  const std::int64_t pairs = params.choice.pairs();
  const ExpertScales& scales = params.scales[kRouted];
  auto* const rows = static_cast<Fp8E4m3*>(params.contributions);
  const LaunchShape by_token = {.grid = BlocksOf(params.x.rows), .threads = kRowThreads};
  LaunchDependent(GatherPairsKernel, by_token, stream, params, rows);

  TileParams tiles = {.sorted = params.sorted,
                      .row_scales = params.x_scales,
                      .weight_scales = {scales.gate, scales.up},
                      .columns = params.width / kBoxRows,
                      .blocks = static_cast<int>(Fp8Blocks(hidden)),
                      .outputs = params.width,
                      .inner = params.inner,
                      .inner_scales = params.inner_scales,
                      .scale_format = params.scale_format,
                      .contributions = params.contributions,
                      .leaves_pairs = params.leaves_pairs};
  LaunchTiles<Fp8E4m3>(
      {.rows = RowsMap(rows, pairs, hidden), .weights = {maps.gate[kRouted], maps.up[kRouted]}},
      tiles, stream);

  tiles.row_scales = {.data = params.inner_scales,
                      .rows = pairs,
                      .cols = tiles.columns,
                      .row_stride = tiles.columns};
  tiles.weight_scales[0] = scales.down;
  tiles.weight_scales[1] = scales.down;
  tiles.columns = static_cast<int>((hidden + kTileRows - 1) / kTileRows);
  tiles.blocks = params.width / kValuesPerScale;
  tiles.outputs = static_cast<int>(hidden);
  const TileMaps outer = {.rows = RowsMap(params.inner, pairs, params.width),
                          .weights = {maps.down[kRouted], maps.down[kRouted]}};
  const std::int64_t columns = (hidden + kSumColumns - 1) / kSumColumns;
  const LaunchShape by_columns = {.grid = BlocksOf(params.x.rows * columns),
                                  .threads = kRowThreads};
  DispatchFloat(y, [&]<typename Y>(Y) {
    LaunchTiles<Y>(outer, tiles, stream);
    if (!params.leaves_pairs) {
      LaunchDependent(CombinePairsKernel<Y>, by_columns, stream, params);
    }
  });
}

}  // namespace dsa::cuda::resident_experts
