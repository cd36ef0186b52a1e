// MaskedAttention of bfloat16 with N = V = 128 by warpgroup products.  One kernel of resident
// blocks goes through the windows that PlanRunsKernel made (masked_attention_runs.cuh):
//
//   gather    latents of the window's keys to dense rows; which tiles of 128 rows by 128 keys have
//             pairs that attend, and which nothing else
//   expand    keys and values of some heads: 128 keys by 256 outputs at a time
//   attend    128 rows of a run with one head, 128 keys at a time; tiles without a pair are skipped
//
// Masks are found beside the expansion, and attention begins with the heads that are expanded: no
// barrier over the grid stands between, blocks wait for counters of scratch.  All blocks must be
// there at once, one a multiprocessor.  Two neighbours are a cluster that expands with the same
// weights: each brings half of them for both.
//
// A block is a producer, whose first warp keeps rings of tiles in shared memory filled by the copy
// engine, and two consumer warpgroups of 64 rows.  While one multiplies, the other has its softmax;
// that they find by themselves, turns by named barriers only made them wait.  Within a warpgroup
// the scores of a tile and the values of the tile before it are under way together, across items as
// well.
//
// Columns of expanded keys and values lie as lanes hold them, in whole 16 bytes: column 8 j + 2 q +
// i of a product (lane q of a quad) at 32 (j / 4) + 8 q + 2 (j % 4) + i.  That is its own inverse.
// Values: the product over them swaps the columns back, so lanes hold 8 neighbours of the output.
// Keys: the columns of the weight come in swapped order already, by their tensor map, so that a key
// lies in the order of a query.
#include "kernels/cuda/attention_keys.cuh"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/masked_attention_producer.cuh"
#include "kernels/cuda/per_device.h"
#include "kernels/cuda/weight_map.h"

namespace dsa::cuda {
namespace warpgroup {
namespace {

constexpr int kGatherBarrier = 2;  // named, of all consumers
constexpr int kSwapped = 32;       // columns that are swapped among themselves
constexpr float kSlack = 8.0F;     // log2 by which scores may exceed their reference

__device__ float Exp2(float value) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
  return power;
}

// 16 values of a record of an fp8 cache, or 8 of a bfloat16 one, to bfloat16.
__device__ void CopyLatents(const std::uint8_t* record, KvFormat format, int lane, bool exists,
                            __nv_bfloat16* latents, __nv_bfloat16* ropes) {
  Pack<__nv_bfloat16, 8> packs[2] = {};
  Pack<__nv_bfloat16, 8> rope = {};
  const bool has_rope = lane < kLatentRopeValues / 8;
  if (exists && format == KvFormat::kFp8) {
    const auto raw = *reinterpret_cast<const Pack<std::uint8_t, 16>*>(record + lane * 16);
    const float scale = reinterpret_cast<const float*>(
        record + LatentBlock::Scales(0))[lane * 16 / kValuesPerScale];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      packs[i / 8].values[i % 8] = __float2bfloat16_rn(Fp8ToFloat(raw.values[i]) * scale);
    }
    if (has_rope) {
      rope = *reinterpret_cast<const Pack<__nv_bfloat16, 8>*>(record + LatentBlock::Rope(0) +
                                                              lane * 16);
    }
  } else if (exists) {
    const auto* values = reinterpret_cast<const Pack<__nv_bfloat16, 8>*>(record);
    packs[0] = values[lane * 2];
    packs[1] = values[lane * 2 + 1];
    if (has_rope) {
      rope = values[kLatentValues / 8 + lane];
    }
  }
  auto* target = reinterpret_cast<Pack<__nv_bfloat16, 8>*>(latents);
  target[lane * 2] = packs[0];
  target[lane * 2 + 1] = packs[1];
  if (has_rope) {
    reinterpret_cast<Pack<__nv_bfloat16, 8>*>(ropes)[lane] = rope;
  }
}

struct Consumer {
  const MaskedAttentionParams& p;
  const MaskedScratch& scratch;
  Ring ring;
  unsigned rank;
  int group;
  Cursor key = {};
  Cursor value = {};
  unsigned query_phase = 0;

  __device__ void Release(unsigned barrier) const {
    __syncwarp();
    if (Lane() == 0) {
      ptx::BarrierArrive(barrier);
    }
  }

  __device__ void Gather(const AttentionWindow& window, const Progress& progress) const {
    AwaitCount(scratch.counters + kAttended, progress.attended);
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    for (int row = static_cast<int>(blockIdx.x) * kConsumerWarps + warp; row < window.keys;
         row += static_cast<int>(gridDim.x) * kConsumerWarps) {
      const AttentionRun& run = RunOfKey(scratch, window, row);
      const int position = row - run.first_key;
      const bool exists = position < run.keys;
      const RowKeys keys = {.table = p.rows.block_tables.Row(p.rows.sequences.data[run.first_row]),
                            .slots = nullptr,
                            .count = run.keys};
      const std::int64_t slot = exists ? keys.Slot(position) : 0;
      CopyLatents(p.cache.data + slot * LatentTokenBytes(p.cache.format), p.cache.format, Lane(),
                  exists, static_cast<__nv_bfloat16*>(scratch.latents) + row * kLatentValues,
                  static_cast<__nv_bfloat16*>(scratch.ropes) + row * kLatentRopeValues);
    }
    ptx::CopyEngineFence();
    ptx::NamedBarrierSync(kGatherBarrier, kConsumerThreads);
    if (threadIdx.x < kWarpSize) {
      Announce(scratch.counters + kGathered);
    }
  }

  __device__ void ReleaseExpand(int stage) const {
    __syncwarp();
    if (Lane() < kPair) {
      const unsigned barrier =
          ptx::AddressInBlock(ring.ExpandEmpty(stage), static_cast<unsigned>(Lane()));
      ptx::BarrierArriveInBlock(barrier);
    }
  }

  __device__ void Expand(const Share& share, const Progress& progress) const {
    const ExpandOrder order(share);
    // Values of the pair before, stored while the next is multiplied.
    unsigned packed[32];
    int packed_head = -1;  // of all
    std::int64_t packed_row = 0;
    for (int pair = order.First(); pair < order.items; pair += order.Step()) {
      float sums[2 * kTile / 2];  // of the keys' columns, then of the values'
#pragma unroll
      for (int step = 0; step < kExpandSteps; ++step) {
        const int stage = step % kExpandStages;
        // Said anew in every step: the compiler would keep those of all stages otherwise.
        const unsigned from = ring.ExpandStage(stage);
        const std::uint64_t a =
            UniformDescriptor(ptx::SwizzledTile(from + group * (kBoxBytes / kConsumerGroups)));
        const std::uint64_t b = UniformDescriptor(ptx::SwizzledTile(from + kBoxBytes));
        ptx::BarrierWait(ring.ExpandFull(stage), step / kExpandStages & 1U);
        ptx::PinRegisters(sums);
        ptx::WgmmaFence();
#pragma unroll
        for (int k = 0; k < kBox / 16; ++k) {
          ptx::WgmmaBf16(sums, a + 2 * k, b + 2 * k, step > 0 || k > 0);
        }
        ptx::WgmmaCommit();
        if (packed_head >= 0) {  // beside two steps of products
          if (step == 1) {
            StoreExpanded(packed, scratch.expanded_values, packed_row);
          } else if (step == 4) {
            Announce(scratch.counters + kMaskedCounters + packed_head);
          }
        }
        if (step > 0) {
          ptx::WgmmaWait<1>();
          ReleaseExpand((step - 1) % kExpandStages);
        }
      }
      if (pair == order.First()) {  // what lies there is read no more
        AwaitCount(scratch.counters + kAttended, progress.attended);
      }
      const int2 place = order.TileAndHead(pair, rank);
      packed_head = order.Exists(pair, rank) ? share.first_head + place.y : -1;
      packed_row = std::int64_t{place.y} * share.window.keys + place.x * kTile;
      ptx::WgmmaWait<0>();
      ptx::PinRegisters(sums);
      ReleaseExpand((kExpandSteps - 1) % kExpandStages);
      if (packed_head >= 0) {
        PackRows<0>(sums, packed);
        StoreExpanded(packed, scratch.expanded_keys, packed_row);
      }
      PackRows<64>(sums, packed);
    }
    if (packed_head >= 0) {
      StoreExpanded(packed, scratch.expanded_values, packed_row);
      Announce(scratch.counters + kMaskedCounters + packed_head);
    }
  }

  __device__ int RowOfTile() const {  // the lower of a thread's two, 8 apart
    return group * kGroupRows + static_cast<int>(threadIdx.x) % kGroupThreads / kWarpSize * 16 +
           Lane() / 4;
  }

  template <int kFirst>
  __device__ static void PackRows(const float (&d)[128], unsigned (&packed)[32]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      packed[i] = Bf16PairOf(d[kFirst + 2 * i], d[kFirst + 2 * i + 1]);
    }
  }
  // 16 bytes of each group of 32 columns of one of a thread's rows.
  __device__ static void StoreRow(const unsigned (&packed)[32], int half, __nv_bfloat16* row) {
    auto* target = reinterpret_cast<uint4*>(row) + Lane() % 4;
#pragma unroll
    for (int m = 0; m < kTile / kSwapped; ++m) {
      const int i = 8 * m + half;
      target[m * (kSwapped / 8)] = uint4{packed[i], packed[i + 2], packed[i + 4], packed[i + 6]};
    }
  }
  __device__ static void StoreRow(const float (&d)[64], int half, float factor,
                                  __nv_bfloat16* row) {
    auto* target = reinterpret_cast<uint4*>(row) + Lane() % 4;
#pragma unroll
    for (int m = 0; m < kTile / kSwapped; ++m) {
      const int i = 16 * m + 2 * half;
      target[m * (kSwapped / 8)] = uint4{Bf16PairOf(d[i] * factor, d[i + 1] * factor),
                                         Bf16PairOf(d[i + 4] * factor, d[i + 5] * factor),
                                         Bf16PairOf(d[i + 8] * factor, d[i + 9] * factor),
                                         Bf16PairOf(d[i + 12] * factor, d[i + 13] * factor)};
    }
  }
  __device__ void StoreExpanded(const unsigned (&packed)[32], void* rows,
                                std::int64_t first) const {
    auto* const own = static_cast<__nv_bfloat16*>(rows) + (first + RowOfTile()) * kTile;
    StoreRow(packed, 0, own);
    StoreRow(packed, 1, own + 8 * kTile);
  }

  __device__ Item NextItem() {
    ptx::BarrierWait(ring.QueryFull(group), query_phase);
    query_phase ^= 1U;
    Item item;
    asm volatile("ld.shared.v4.s32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(item.first_row), "=r"(item.rows), "=r"(item.head), "=r"(item.steps)
                 : "r"(ring.Item(group))
                 : "memory");
    return {.first_row = Uniform(item.first_row),
            .rows = Uniform(item.rows),
            .head = Uniform(item.head),
            .steps = Uniform(item.steps)};
  }

  // What a thread keeps of its two rows.
  struct Rows {
    int visible[2];
    const std::uint64_t* masks[2];
    float maxima[2];
    float sums[2];  // of the thread's own columns
  };

  // Of the tiles of the next step.
  __device__ std::uint64_t KeyDescriptor() const {
    return UniformDescriptor(ptx::SwizzledTile(ring.Key(key.stage)));
  }
  __device__ std::uint64_t ValueDescriptor() const {
    return UniformDescriptor(ptx::SwizzledColumns(ring.Value(value.stage), kBoxBytes));
  }
  __device__ void MultiplyKeys(float (&scores)[64], std::uint64_t keys) const {
    const std::uint64_t query = ptx::SwizzledTile(ring.Query(group));
#pragma unroll
    for (int box = 0; box < kKeyBoxes; ++box) {
#pragma unroll
      for (int k = 0; k < kBox / 16; ++k) {
        ptx::WgmmaBf16(scores, query + box * (kQueryBoxBytes / 16) + 2 * k,
                       keys + box * (kBoxBytes / 16) + 2 * k, box > 0 || k > 0);
      }
    }
    ptx::WgmmaCommit();
  }
  __device__ static void MultiplyValues(float (&outputs)[64], const unsigned (&weights)[32],
                                        std::uint64_t values) {
#pragma unroll
    for (int k = 0; k < kTile / 16; ++k) {
      ptx::WgmmaBf16Columns(outputs, weights[4 * k], weights[4 * k + 1], weights[4 * k + 2],
                            weights[4 * k + 3], values + 128 * k);
    }
    ptx::WgmmaCommit();
  }

  // The first key of a step where bits decide, with their words; -1 where every row attends to all.
  // The words are on their way while scores are multiplied: nothing may use them before.
  struct StepMask {
    int first_key;
    std::uint64_t words[2][2];
  };
  // Waits for the keys of the next step.
  __device__ StepMask NextKeys(const Rows& rows) const {
    ptx::BarrierWait(ring.KeyFull(key.stage), key.phase);
    unsigned tile;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(tile) : "r"(ring.KeyTile(key.stage)) : "memory");
    tile = Uniform(tile);
    StepMask mask;
    mask.first_key = (tile & 1U) != 0 ? static_cast<int>(tile / 2) * kTile : -1;
    if (mask.first_key >= 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int word = 0; word < 2; ++word) {
          // Not asked for what a row sees, whose load may be under way.
          const int index = mask.first_key / kMaskBits + word;
          mask.words[half][word] =
              rows.masks[half] == nullptr || index >= static_cast<int>(p.selection.mask.cols)
                  ? ~0ULL
                  : rows.masks[half][index];
        }
      }
    }
    return mask;
  }

  __device__ static void ApplyMask(StepMask& mask, const Rows& rows, float (&scores)[64]) {
    if (mask.first_key < 0) {
      return;
    }
    if (mask.first_key + kTile > min(rows.visible[0], rows.visible[1])) {  // the last steps
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        mask.words[i / 2][i % 2] &=
            SeenBits(rows.visible[i / 2], mask.first_key + i % 2 * kMaskBits);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int word = 0; word < 4; ++word) {  // of 32 bits
        // Bit 8 j + i is column 8 j + 2 q + i of the word.
        const auto bits = static_cast<unsigned>(mask.words[half][word / 2] >> (word % 2 * 32)) >>
                          (Lane() % 4 * 2);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& score = scores[(word * 4 + j) * 4 + half * 2 + i];
            score = (bits & (1U << (j * 8 + i))) != 0 ? score : -INFINITY;
          }
        }
      }
    }
  }

  // Scores to powers of two about a running maximum, which moves only when a score exceeds it by
  // 2^kSlack: sums are rescaled in the first steps and then hardly ever.  `factors`: for what was
  // summed so far.
  __device__ static void Softmax(float scale, float (&scores)[64], Rows& rows,
                                 float (&factors)[2]) {
    float largest[2][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      largest[half][0] = fmaxf(rows.maxima[half], scores[2 * half]);
      largest[half][1] = scores[2 * half + 1];
    }
#pragma unroll
    for (int j = 1; j < 16; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& own = largest[i / 2][i % 2];
        own = fmaxf(own, scores[4 * j + i]);
      }
    }
    float row[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      row[half] = fmaxf(largest[half][0], largest[half][1]);
    }
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        row[half] = fmaxf(row[half], __shfl_xor_sync(kAllLanes, row[half], lanes));
      }
    }
    float shifts[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float& maximum = rows.maxima[half];
      row[half] = (row[half] - maximum) * scale > kSlack ? row[half] : maximum;
      // No key yet: nothing to rescale, and every power below is 0.
      factors[half] = row[half] == -INFINITY ? 1.0F : Exp2((maximum - row[half]) * scale);
      shifts[half] = row[half] == -INFINITY ? 0.0F : row[half] * scale;
      maximum = row[half];
    }
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      scores[i] = Exp2(fmaf(scores[i], scale, -shifts[i / 2 % 2]));
    }
  }
  // To the sums of a thread's columns.
  __device__ static void AddPowers(const float (&powers)[64], const float (&factors)[2],
                                   Rows& rows) {
    float sums[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[i] = powers[i];
    }
#pragma unroll
    for (int j = 1; j < 16; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[i] += powers[4 * j + i];
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      rows.sums[half] = fmaf(rows.sums[half], factors[half], sums[2 * half] + sums[2 * half + 1]);
    }
  }
  __device__ static void PackWeights(const float (&scores)[64], unsigned (&weights)[32]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      weights[i] = Bf16PairOf(scores[2 * i], scores[2 * i + 1]);
    }
  }

  __device__ Rows RowsOf(const Item& item) const {
    Rows rows;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int own = RowOfTile() + half * 8;
      const int row = item.first_row + own;
      const bool exists = own < item.rows;
      rows.visible[half] = exists ? p.rows.positions.data[row] + 1 : 0;
      rows.masks[half] =
          p.selection.mask.data == nullptr || !exists ? nullptr : p.selection.mask.Row(row);
      rows.maxima[half] = -INFINITY;
      rows.sums[half] = 0.0F;
    }
    return rows;
  }

  __device__ void StoreOutputs(const Item& item, const float (&sums)[2],
                               const float (&outputs)[64]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = sums[half];
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      const int own = RowOfTile() + half * 8;
      if (own < item.rows) {
        StoreRow(outputs, half, sum == 0.0F ? 0.0F : __fdividef(1.0F, sum),
                 static_cast<__nv_bfloat16*>(p.o.data) + (item.first_row + own) * p.o.row_stride +
                     item.head * p.o.head_stride);
      }
    }
  }

  // A step: scores of a tile of keys, and outputs of the tile before, which may be the last one of
  // another item.
  __device__ void BeginStep(float (&scores)[64], float (&outputs)[64],
                            const unsigned (&weights)[32], bool has_values) const {
    if (has_values) {
      ptx::BarrierWait(ring.ValueFull(value.stage), value.phase);
    }
    const std::uint64_t keys = KeyDescriptor();
    const std::uint64_t values = ValueDescriptor();
    ptx::PinRegisters(scores);
    ptx::PinRegisters(outputs);
    ptx::WgmmaFence();
    MultiplyKeys(scores, keys);
    MultiplyValues(outputs, weights, values);
  }
  __device__ void EndScores(float (&scores)[64], bool is_last) {
    ptx::WgmmaWait<1>();
    ptx::PinRegisters(scores);
    Release(ring.KeyEmpty(key.stage));
    key.Next();
    if (is_last) {
      Release(ring.QueryEmpty(group));
    }
  }
  __device__ void EndValues(float (&outputs)[64], bool had_values) {
    ptx::WgmmaWait<0>();
    ptx::PinRegisters(outputs);
    if (had_values) {
      Release(ring.ValueEmpty(value.stage));
      value.Next();
    }
  }

  // Items follow each other without a pause: the outputs of an item's last tile of keys come with
  // the scores of the next item's first.
  __device__ void Attend(const Share&, const Progress&) {
    const auto scale = static_cast<float>(p.softmax_scale * 1.44269504088896340736);
    float scores[64];
    float outputs[64];
    unsigned weights[32];
    float factors[2];
    Item last = {};  // its outputs lack a tile of keys, where it has rows
    float last_sums[2] = {};
#pragma unroll
    for (float& output : outputs) {
      output = 0.0F;
    }
#pragma unroll
    for (unsigned& weight : weights) {
      weight = 0;
    }
    for (;;) {
      const Item item = NextItem();
      if (item.steps == 0) {
        Release(ring.QueryEmpty(group));
        if (item.rows == 0) {
          break;
        }
        StoreZeros(item);
        continue;
      }
      Rows rows = RowsOf(item);
      StepMask mask = NextKeys(rows);
      const bool has_values = last.rows > 0;
      // Without values yet, zeros are multiplied with what lies there, and forgotten.
      BeginStep(scores, outputs, weights, has_values);
      EndScores(scores, item.steps == 1);
      ApplyMask(mask, rows, scores);
      Softmax(scale, scores, rows, factors);
      EndValues(outputs, has_values);
      AddPowers(scores, factors, rows);
      PackWeights(scores, weights);
      if (has_values) {
        StoreOutputs(last, last_sums, outputs);
      }
#pragma unroll
      for (float& output : outputs) {
        output = 0.0F;
      }
      for (int step = 1; step < item.steps; ++step) {
        mask = NextKeys(rows);
        BeginStep(scores, outputs, weights, true);
        EndScores(scores, step + 1 == item.steps);
        ApplyMask(mask, rows, scores);
        Softmax(scale, scores, rows, factors);
        EndValues(outputs, true);
        AddPowers(scores, factors, rows);
        PackWeights(scores, weights);
        if (__any_sync(kAllLanes, factors[0] != 1.0F || factors[1] != 1.0F ? 1 : 0) != 0) {
#pragma unroll
          for (int i = 0; i < 64; ++i) {
            outputs[i] *= factors[i / 2 % 2];
          }
        }
      }
      last = item;
      last_sums[0] = rows.sums[0];
      last_sums[1] = rows.sums[1];
    }
    if (last.rows > 0) {
      ptx::BarrierWait(ring.ValueFull(value.stage), value.phase);
      ptx::PinRegisters(outputs);
      ptx::WgmmaFence();
      MultiplyValues(outputs, weights, ValueDescriptor());
      EndValues(outputs, true);
      StoreOutputs(last, last_sums, outputs);
    }
  }

  // Rows of an item that no key is for.
  __device__ void StoreZeros(const Item& item) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int own = RowOfTile() + half * 8;
      if (own < item.rows) {
        auto* target = reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(p.o.data) +
                                                (item.first_row + own) * p.o.row_stride +
                                                item.head * p.o.head_stride);
        for (int i = Lane() % 4; i < kTile / 8; i += 4) {
          target[i] = uint4{};
        }
      }
    }
  }
};

__global__ __launch_bounds__(kThreads,
                             1) void Kernel(const __grid_constant__ Maps maps,
                                            const __grid_constant__ MaskedAttentionParams p,
                                            const __grid_constant__ MaskedScratch scratch,
                                            int ratio_uk, int ratio_uv) {
  extern __shared__ std::uint8_t shared[];
  ptx::AllowSuccessor();
  const Ring ring(shared);
  if (threadIdx.x == 0) {
    ring.Init();
  }
  __syncthreads();
  ptx::ClusterArrive();
  ptx::ClusterWait();
  ptx::WaitForPredecessors();
  const int heads = static_cast<int>(p.q.heads);
  const int group = Uniform(static_cast<int>(threadIdx.x) / kGroupThreads);
  const unsigned rank = ptx::ClusterRank();
  if (group == kConsumerGroups) {
    ptx::LowerRegisters<kProducerRegisters>();
    Producer producer{p, scratch, maps, ring, rank, ratio_uk, ratio_uv};
    RunWindows(heads, scratch, producer);
  } else {
    ptx::RaiseRegisters<kConsumerRegisters>();
    Consumer consumer{p, scratch, ring, rank, group};
    RunWindows(heads, scratch, consumer);
  }
}

// Rows of w_uk [H, 128, 512] in the order that the top of this file tells of: 32 a + 8 q + 2 j + i
// at 32 a + 8 j + 2 q + i.
CUtensorMap MapOfKeyWeight(const ConstAnyTensor3& w) {
  const std::int64_t row = w.head_stride;
  const std::int64_t groups = (w.rows - 1) * w.row_stride / (kSwapped * row) + kTile / kSwapped;
  const MapAxis axes[] = {{.extent = w.cols, .stride = 1, .box = kBox},
                          {.extent = 2, .stride = row, .box = 2},
                          {.extent = 4, .stride = 8 * row, .box = 4},
                          {.extent = 4, .stride = 2 * row, .box = 4},
                          {.extent = groups, .stride = kSwapped * row, .box = kTile / kSwapped}};
  return Bf16Map(w.data, axes);
}

CUtensorMap MapOfRows(const void* data, std::int64_t rows, std::int64_t cols, std::int64_t stride) {
  const MapAxis axes[] = {{.extent = cols, .stride = 1, .box = kBox},
                          {.extent = rows, .stride = stride, .box = kTile}};
  return Bf16Map(data, axes);
}

CUtensorMap MapOfQuery(const ConstAnyTensor3& q) {
  const MapAxis axes[] = {{.extent = q.cols, .stride = 1, .box = kBox},
                          {.extent = q.heads, .stride = q.head_stride, .box = 1},
                          {.extent = q.rows, .stride = q.row_stride, .box = kGroupRows}};
  return Bf16Map(q.data, axes);
}

}  // namespace
}  // namespace warpgroup

bool MaskedWarpgroupTakes(const MaskedAttentionParams& params) {
  constexpr std::int64_t kTile = warpgroup::kTile;
  const auto fits = [](const ConstAnyTensor3& tensor) {
    return tensor.type == DataType::kBf16 && HasAlignedRows(tensor);
  };
  return fits(params.q) && fits(params.o) && fits(params.w_uk) && fits(params.w_uv) &&
         params.cache.format != KvFormat::kF32 &&
         reinterpret_cast<std::uintptr_t>(params.cache.data) % 16 == 0 &&
         params.w_uk.heads == kTile && params.w_uv.heads == kTile &&
         params.w_uk.row_stride % (warpgroup::kSwapped * params.w_uk.head_stride) == 0 &&
         params.w_uv.row_stride % params.w_uv.head_stride == 0 && params.softmax_scale > 0.0;
}

void MaskedWarpgroup(const MaskedAttentionParams& params, const MaskedScratch& scratch,
                     cudaStream_t stream) {
  const ConstAnyTensor3& w_uk = params.w_uk;
  const ConstAnyTensor3& w_uv = params.w_uv;
  const std::int64_t ratio_uv = w_uv.row_stride / w_uv.head_stride;
  const std::int64_t expanded = scratch.keys_max * scratch.heads;
  const warpgroup::Maps maps = {
      .q = warpgroup::MapOfQuery(params.q),
      .w_uk = warpgroup::MapOfKeyWeight(w_uk),
      .w_uv = warpgroup::MapOfRows(w_uv.data, (w_uv.rows - 1) * ratio_uv + warpgroup::kTile,
                                   w_uv.cols, w_uv.head_stride),
      .latents =
          warpgroup::MapOfRows(scratch.latents, scratch.keys_max, kLatentValues, kLatentValues),
      .ropes = warpgroup::MapOfRows(scratch.ropes, scratch.keys_max, kLatentRopeValues,
                                    kLatentRopeValues),
      .keys =
          warpgroup::MapOfRows(scratch.expanded_keys, expanded, warpgroup::kTile, warpgroup::kTile),
      .values = warpgroup::MapOfRows(scratch.expanded_values, expanded, warpgroup::kTile,
                                     warpgroup::kTile)};
  const auto ratio_uk =
      static_cast<int>(w_uk.row_stride / (warpgroup::kSwapped * w_uk.head_stride));
  const auto rows_uv = static_cast<int>(ratio_uv);
  const auto kernel = warpgroup::Kernel;
  static PerDevice attribute;
  attribute.Once([&] {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                warpgroup::Ring::kBytes);
  });
  LaunchDependent(kernel,
                  {.grid = dim3(kMultiprocessors),
                   .threads = warpgroup::kThreads,
                   .shared_bytes = warpgroup::Ring::kBytes,
                   .cluster = warpgroup::kPair},
                  stream, maps, params, scratch, ratio_uk, rows_uv);
}

}  // namespace dsa::cuda
