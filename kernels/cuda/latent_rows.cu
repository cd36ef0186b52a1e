// Which sequences of a batch are converted, and their conversion.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/latent_records.cuh"
#include "kernels/cuda/latent_rows.h"

namespace dsa::cuda {
namespace {

constexpr int kPlanThreads = kConvertedSequencesMax;
constexpr int kConvertThreads = 256;
constexpr int kConvertBlocks = 8;  // per multiprocessor
constexpr int kRecordsAtOnce = 4;  // of a warp
// A key costs 1,808 bytes of traffic, about 0.5 ns; a row gains 150 ns or more.
constexpr int kKeysPerRow = 256;

// How many rows each sequence has and how many keys they see: one atomic operation per warp and
// sequence.
__device__ void CountRows(const PagedRows& rows, int* row_counts, int* key_counts) {
  const auto total = static_cast<int>(rows.sequences.size);
  for (int row = static_cast<int>(threadIdx.x); row < total; row += kPlanThreads) {
    const int sequence = rows.sequences.data[row];
    const unsigned peers = __match_any_sync(__activemask(), sequence);
    const int keys = __reduce_max_sync(peers, rows.positions.data[row] + 1);
    if ((peers & ((1U << threadIdx.x % kWarpSize) - 1U)) == 0) {
      atomicAdd(row_counts + sequence, __popc(peers));
      atomicMax(key_counts + sequence, keys);
    }
  }
}

// One block, a thread for each sequence.
__global__ void __launch_bounds__(kPlanThreads)
    PlanKernel(const __grid_constant__ PagedRows rows, const __grid_constant__ LatentRows latents) {
  __shared__ int row_counts[kPlanThreads];
  __shared__ int key_counts[kPlanThreads];
  __shared__ int ends[kPlanThreads];  // of the blocks up to a sequence's last
  const int thread = static_cast<int>(threadIdx.x);
  StartAfterPredecessors();
  row_counts[thread] = 0;
  key_counts[thread] = 0;
  __syncthreads();
  CountRows(rows, row_counts, key_counts);
  __syncthreads();
  const int keys = key_counts[thread];
  const int blocks =
      row_counts[thread] * kKeysPerRow >= keys ? (keys + kTokensPerBlock - 1) / kTokensPerBlock : 0;
  ends[thread] = blocks;
  __syncthreads();
  for (int offset = 1; offset < kPlanThreads; offset *= 2) {
    const int lower = thread >= offset ? ends[thread - offset] : 0;
    __syncthreads();
    ends[thread] += lower;
    __syncthreads();
  }
  const bool fits = blocks > 0 && ends[thread] <= latents.blocks_max;
  const int first = fits ? ends[thread] - blocks : -1;
  latents.first_blocks[thread] = first;
  row_counts[thread] = first;
  key_counts[thread] = fits ? ends[thread] : 0;
  __syncthreads();
  // The sequences that fit are those of the first blocks, but for one that does not and whoever is
  // behind it.
  const auto sequences = static_cast<int>(rows.block_tables.rows);
  int last = 0;
  for (int sequence = 0; sequence < sequences; ++sequence) {
    const int from = row_counts[sequence];
    if (from < 0) {
      continue;
    }
    last = key_counts[sequence];
    const std::int32_t* table = rows.block_tables.Row(sequence);
    for (int i = from + thread; i < last; i += kPlanThreads) {
      const int block = table[i - from];
      latents.places[block] = i;
      latents.sources[i] = block;
    }
  }
  if (thread == 0) {
    *latents.block_count = last;
  }
}

// 16 bytes of a row, from a record.
__device__ uint4 RowPiece(const std::uint8_t* record, int piece) {
  constexpr int kLatentPieces = kLatentValues / 8;
  if (piece >= kLatentPieces) {
    return HalvesOfBf16(*reinterpret_cast<const uint4*>(record + LatentBlock::Rope(0) +
                                                        (piece - kLatentPieces) * 16));
  }
  const uint2 codes = *reinterpret_cast<const uint2*>(record + piece * 8);
  const float scale = reinterpret_cast<const float*>(
      record + LatentBlock::Scales(0))[piece / (kValuesPerScale / 8)];
  return ScaledHalves(codes.x, codes.y, HalvesOf(scale, scale));
}

// A warp converts kRecordsAtOnce records at once.
__global__ void __launch_bounds__(kConvertThreads)
    ConvertKernel(const std::uint8_t* cache, const __grid_constant__ LatentRows latents) {
  constexpr int kPieces = kLatentRowBytes / 16;
  constexpr int kRounds = (kPieces + kWarpSize - 1) / kWarpSize;
  static_assert(kTokensPerBlock % kRecordsAtOnce == 0);
  StartAfterPredecessors();
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warps = static_cast<int>(gridDim.x) * (kConvertThreads / kWarpSize);
  const int own = static_cast<int>(blockIdx.x * kConvertThreads + threadIdx.x) / kWarpSize;
  const int records = *latents.block_count * kTokensPerBlock;
  for (int first = own * kRecordsAtOnce; first < records; first += warps * kRecordsAtOnce) {
    const std::int64_t slot =
        std::int64_t{latents.sources[first / kTokensPerBlock]} * kTokensPerBlock +
        first % kTokensPerBlock;
    const std::uint8_t* from = cache + slot * LatentBlock::kTokenBytes;
    std::uint8_t* to = latents.rows + std::int64_t{first} * kLatentRowBytes;
    uint4 pieces[kRecordsAtOnce][kRounds];
#pragma unroll
    for (int i = 0; i < kRecordsAtOnce; ++i) {
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        const int piece = round * kWarpSize + lane;
        if (piece < kPieces) {
          pieces[i][round] = RowPiece(from + i * LatentBlock::kTokenBytes, piece);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kRecordsAtOnce; ++i) {
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        const int piece = round * kWarpSize + lane;
        if (piece < kPieces) {
          *reinterpret_cast<uint4*>(to + i * kLatentRowBytes + piece * 16) = pieces[i][round];
        }
      }
    }
  }
}

}  // namespace

LatentRows TakeLatentRows(ScratchArena& arena, std::int64_t blocks_max) {
  const bool is_used = blocks_max > 0;
  LatentRows latents{};
  latents.rows = arena.Take<std::uint8_t>(blocks_max * kTokensPerBlock * kLatentRowBytes);
  latents.places = arena.Take<int>(is_used ? kConvertedCacheBlocks : 0);
  latents.sources = arena.Take<int>(blocks_max);
  latents.first_blocks = arena.Take<int>(is_used ? kConvertedSequencesMax : 0);
  latents.block_count = arena.Take<int>(is_used ? 1 : 0);
  latents.blocks_max = static_cast<int>(blocks_max);
  return latents;
}

void ConvertLatents(const PagedRows& rows, const std::uint8_t* cache, const LatentRows& latents,
                    cudaStream_t stream) {
  LaunchDependent(PlanKernel, {.grid = 1, .threads = kPlanThreads}, stream, rows, latents);
  LaunchDependent(ConvertKernel,
                  {.grid = kMultiprocessors * kConvertBlocks, .threads = kConvertThreads}, stream,
                  cache, latents);
}

}  // namespace dsa::cuda
