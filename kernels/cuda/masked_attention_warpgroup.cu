// MaskedAttention of bfloat16 with N = V = 128 by warpgroup products.  One kernel of resident
// blocks goes through the windows that PlanRunsKernel made (masked_attention_runs.cuh):
//
//   gather    latents of the window's keys to dense rows; which tiles of 128 rows by 128 keys have
//             pairs that attend, and which nothing else
//   expand    keys and values of some heads: 128 keys by 256 outputs at a time
//   attend    128 rows of a run with one head, 128 keys at a time; tiles without a pair are skipped
//
// A block is a producer, whose first warp keeps rings of tiles in shared memory filled by the copy
// engine, and two consumer warpgroups of 64 rows.  While one multiplies, the other has its softmax:
// named barriers give the tensor cores in turns.  Within a warpgroup the scores of a tile and the
// values of the tile before it are under way together.
//
// Columns of expanded keys and values lie as lanes hold them, in whole 16 bytes: column 8 j + 2 q +
// i of a product (lane q of a quad) at 32 (j / 4) + 8 q + 2 (j % 4) + i.  That is its own inverse.
// Values: the product over them swaps the columns back, so lanes hold 8 neighbours of the output.
// Keys: the columns of the weight come in swapped order already, by their tensor map, so that a key
// lies in the order of a query.
#include "kernels/cuda/attention_keys.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/masked_attention_producer.cuh"
#include "kernels/cuda/per_device.h"
#include "kernels/cuda/weight_map.h"

namespace dsa::cuda {
namespace warpgroup {
namespace {

// Named barriers: the turns of the two consumer groups, and all consumers.
constexpr int kFirstTurn = 1;
constexpr int kGatherBarrier = 3;
constexpr int kSwapped = 32;    // columns that are swapped among themselves
constexpr float kSlack = 8.0F;  // log2 by which scores may exceed their reference

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

// Of 64 keys from `key` on: bits of those that a row sees, and its mask's word, whose other bits
// mean nothing.  `mask` may be null.
__device__ std::uint64_t SeenBits(int visible, int key) {
  const int left = visible - key;
  return left <= 0 ? 0 : (left >= kMaskBits ? ~0ULL : (1ULL << left) - 1);
}
__device__ std::uint64_t MaskWord(const std::uint64_t* mask, int visible, int key) {
  return mask == nullptr || key >= visible ? ~0ULL : mask[key / kMaskBits];
}

struct Consumer {
  const MaskedAttentionParams& p;
  const MaskedScratch& scratch;
  Ring ring;
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

  __device__ void Gather(const AttentionWindow& window) const {
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
    for (int tile = static_cast<int>(blockIdx.x); tile < window.tiles;
         tile += static_cast<int>(gridDim.x)) {
      FindMasks(window, tile, warp);
    }
    ptx::CopyEngineFence();
  }

  // What the rows of a tile attend to; a warp per tile of keys.
  __device__ void FindMasks(const AttentionWindow& window, int tile, int warp) const {
    const AttentionRun& run = RunOfTile(scratch, window, tile);
    const int first = (tile - run.first_tile) * kTile;
    const int rows = min(kTile, run.rows - first);
    const int key_tiles = (run.keys + kTile - 1) / kTile;
    TileMask* masks = scratch.tile_masks + tile * (scratch.keys_max / kTile);
    int steps = 0;
    for (int key_tile = warp; key_tile < key_tiles; key_tile += kConsumerWarps) {
      bool any = false;
      bool all = true;
#pragma unroll
      for (int i = 0; i < kTile / kWarpSize; ++i) {
        const int own = i * kWarpSize + Lane();
        if (own < rows) {
          const int row = run.first_row + first + own;
          const int visible = p.rows.positions.data[row] + 1;
          const std::uint64_t* mask =
              p.selection.mask.data == nullptr ? nullptr : p.selection.mask.Row(row);
          const auto bits_from = [&](int key) {
            return MaskWord(mask, visible, key) & SeenBits(visible, key);
          };
          const std::uint64_t low = bits_from(key_tile * kTile);
          const std::uint64_t high = bits_from(key_tile * kTile + kMaskBits);
          any = any || (low | high) != 0;
          all = all && (low & high) == ~0ULL;
        }
      }
      any = __any_sync(kAllLanes, any ? 1 : 0) != 0;
      all = __all_sync(kAllLanes, all ? 1 : 0) != 0;
      if (Lane() == 0) {
        masks[key_tile] = all ? TileMask::kAll : (any ? TileMask::kSome : TileMask::kNone);
      }
      steps += any ? 1 : 0;
    }
    const unsigned counter = ring.Counter();
    if (threadIdx.x == 0) {
      asm volatile("st.shared.u32 [%0], 0;" ::"r"(counter) : "memory");
    }
    ptx::NamedBarrierSync(kGatherBarrier, kConsumerThreads);
    if (Lane() == 0) {
      asm volatile("red.shared.add.u32 [%0], %1;" ::"r"(counter), "r"(steps) : "memory");
    }
    ptx::NamedBarrierSync(kGatherBarrier, kConsumerThreads);
    if (threadIdx.x == 0) {
      int total;
      asm volatile("ld.shared.u32 %0, [%1];" : "=r"(total) : "r"(counter) : "memory");
      scratch.tiles[tile] = {.first_row = run.first_row + first,
                             .rows = rows,
                             .first_key = run.first_key,
                             .key_tiles = key_tiles,
                             .steps = total};
    }
  }

  __device__ void Expand(const Share& share) const {
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      *scratch.next_item = 0;  // of the attention that follows
    }
    const int key_tiles = share.window.keys / kTile;
    for (int item = static_cast<int>(blockIdx.x); item < key_tiles * share.heads;
         item += static_cast<int>(gridDim.x)) {
      float keys[64];
      float values[64];
#pragma unroll
      for (int step = 0; step < kExpandSteps; ++step) {
        const int stage = step % kExpandStages;
        const unsigned from = ring.ExpandStage(stage);
        ptx::BarrierWait(ring.ExpandFull(stage), step / kExpandStages & 1U);
        const std::uint64_t a = ptx::SwizzledTile(from + group * (kBoxBytes / kConsumerGroups));
        const std::uint64_t b_keys = ptx::SwizzledTile(from + kBoxBytes);
        const std::uint64_t b_values = ptx::SwizzledTile(from + 2 * kBoxBytes);
        ptx::PinRegisters(keys);
        ptx::PinRegisters(values);
        ptx::WgmmaFence();
#pragma unroll
        for (int k = 0; k < kBox / 16; ++k) {
          ptx::WgmmaBf16(keys, a + 2 * k, b_keys + 2 * k, step > 0 || k > 0);
          ptx::WgmmaBf16(values, a + 2 * k, b_values + 2 * k, step > 0 || k > 0);
        }
        ptx::WgmmaCommit();
        if (step > 0) {
          ptx::WgmmaWait<1>();
          Release(ring.ExpandEmpty((step - 1) % kExpandStages));
        }
      }
      ptx::WgmmaWait<0>();
      ptx::PinRegisters(keys);
      ptx::PinRegisters(values);
      Release(ring.ExpandEmpty((kExpandSteps - 1) % kExpandStages));
      const std::int64_t first =
          std::int64_t{item / key_tiles} * share.window.keys + item % key_tiles * kTile;
      StoreExpanded(keys, static_cast<__nv_bfloat16*>(scratch.expanded_keys) + first * kTile);
      StoreExpanded(values, static_cast<__nv_bfloat16*>(scratch.expanded_values) + first * kTile);
    }
    ptx::CopyEngineFence();
  }

  __device__ int RowOfTile() const {  // the lower of a thread's two, 8 apart
    return group * 64 + static_cast<int>(threadIdx.x) % kGroupThreads / kWarpSize * 16 + Lane() / 4;
  }

  // 16 bytes of each group of 32 columns of one of a thread's rows.
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
  __device__ void StoreExpanded(const float (&d)[64], __nv_bfloat16* tile) const {
    StoreRow(d, 0, 1.0F, tile + RowOfTile() * kTile);
    StoreRow(d, 1, 1.0F, tile + (RowOfTile() + 8) * kTile);
  }

  __device__ void Attend(const Share& share) {
    for (;;) {
      ptx::BarrierWait(ring.QueryFull(), query_phase);
      query_phase ^= 1U;
      Item item;
      asm volatile("ld.shared.v4.s32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(item.first_row), "=r"(item.rows), "=r"(item.head), "=r"(item.steps)
                   : "r"(ring.Item())
                   : "memory");
      if (item.steps == 0) {
        Release(ring.QueryEmpty());
        if (item.rows == 0) {
          return;
        }
      }
      AttendItem(item);
    }
  }

  // What a thread keeps of its two rows.
  struct Rows {
    int visible[2];
    const std::uint64_t* masks[2];
    float maxima[2];
    float sums[2];  // of the thread's own columns
  };

  __device__ void MultiplyKeys(float (&scores)[64]) const {
    const unsigned query = ring.Query() + group * (kBoxBytes / kConsumerGroups);
    const unsigned keys = ring.Key(key.stage);
#pragma unroll
    for (int box = 0; box < kKeyBoxes; ++box) {
      const std::uint64_t a = ptx::SwizzledTile(query + box * kBoxBytes);
      const std::uint64_t b = ptx::SwizzledTile(keys + box * kBoxBytes);
#pragma unroll
      for (int k = 0; k < kBox / 16; ++k) {
        ptx::WgmmaBf16(scores, a + 2 * k, b + 2 * k, box > 0 || k > 0);
      }
    }
    ptx::WgmmaCommit();
  }
  __device__ void MultiplyValues(float (&outputs)[64], const unsigned (&weights)[32]) const {
    const std::uint64_t b = ptx::SwizzledColumns(ring.Value(value.stage), kBoxBytes);
#pragma unroll
    for (int k = 0; k < kTile / 16; ++k) {
      ptx::WgmmaBf16Columns(outputs, weights[4 * k], weights[4 * k + 1], weights[4 * k + 2],
                            weights[4 * k + 3], b + 128 * k);
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
    StepMask mask;
    mask.first_key = (tile & 1U) != 0 ? static_cast<int>(tile / 2) * kTile : -1;
    if (mask.first_key >= 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int word = 0; word < 2; ++word) {
          mask.words[half][word] =
              MaskWord(rows.masks[half], rows.visible[half], mask.first_key + word * kMaskBits);
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
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest[2] = {rows.maxima[half], rows.maxima[half]};
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        largest[0] = fmaxf(largest[0], scores[4 * j + 2 * half]);
        largest[1] = fmaxf(largest[1], scores[4 * j + 2 * half + 1]);
      }
      float row = fmaxf(largest[0], largest[1]);
      row = fmaxf(row, __shfl_xor_sync(kAllLanes, row, 1));
      row = fmaxf(row, __shfl_xor_sync(kAllLanes, row, 2));
      row = (row - rows.maxima[half]) * scale > kSlack ? row : rows.maxima[half];
      // No key yet: nothing to rescale, and every power below is 0.
      factors[half] = row == -INFINITY ? 1.0F : Exp2((rows.maxima[half] - row) * scale);
      const float shift = row == -INFINITY ? 0.0F : row * scale;
      rows.maxima[half] = row;
      float sums[2] = {};
#pragma unroll
      for (int j = 0; j < 16; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[4 * j + 2 * half + i];
          score = Exp2(fmaf(score, scale, -shift));
          sums[i] += score;
        }
      }
      rows.sums[half] = fmaf(rows.sums[half], factors[half], sums[0] + sums[1]);
    }
  }
  __device__ static void PackWeights(const float (&scores)[64], unsigned (&weights)[32]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      weights[i] = Bf16PairOf(scores[2 * i], scores[2 * i + 1]);
    }
  }

  __device__ void AttendItem(const Item& item) {
    const auto scale = static_cast<float>(p.softmax_scale * 1.44269504088896340736);
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
    float outputs[64];
#pragma unroll
    for (float& output : outputs) {
      output = 0.0F;
    }
    if (item.steps > 0) {
      AttendSteps(item.steps, scale, rows, outputs);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = rows.sums[half];
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

  __device__ void AttendSteps(int steps, float scale, Rows& rows, float (&outputs)[64]) {
    const int own_turn = kFirstTurn + group;
    const int other_turn = kFirstTurn + 1 - group;
    float scores[64];
    unsigned weights[32];
    float factors[2];
    StepMask mask = NextKeys(rows);
    ptx::PinRegisters(scores);
    ptx::WgmmaFence();
    MultiplyKeys(scores);
    ptx::WgmmaWait<0>();
    ptx::PinRegisters(scores);
    Release(ring.KeyEmpty(key.stage));
    key.Next();
    if (steps == 1) {
      Release(ring.QueryEmpty());
    }
    ApplyMask(mask, rows, scores);
    Softmax(scale, scores, rows, factors);
    PackWeights(scores, weights);
    for (int step = 1; step < steps; ++step) {
      mask = NextKeys(rows);
      ptx::NamedBarrierSync(own_turn, kConsumerThreads);
      ptx::PinRegisters(scores);
      ptx::PinRegisters(outputs);
      ptx::WgmmaFence();
      MultiplyKeys(scores);
      ptx::BarrierWait(ring.ValueFull(value.stage), value.phase);
      MultiplyValues(outputs, weights);
      ptx::NamedBarrierArrive(other_turn, kConsumerThreads);
      ptx::WgmmaWait<1>();
      ptx::PinRegisters(scores);
      Release(ring.KeyEmpty(key.stage));
      key.Next();
      if (step + 1 == steps) {
        Release(ring.QueryEmpty());
      }
      ApplyMask(mask, rows, scores);
      Softmax(scale, scores, rows, factors);
      ptx::WgmmaWait<0>();
      ptx::PinRegisters(outputs);
      Release(ring.ValueEmpty(value.stage));
      value.Next();
      PackWeights(scores, weights);
      if (__any_sync(kAllLanes, factors[0] != 1.0F || factors[1] != 1.0F ? 1 : 0) != 0) {
#pragma unroll
        for (int i = 0; i < 64; ++i) {
          outputs[i] *= factors[i / 2 % 2];
        }
      }
    }
    ptx::BarrierWait(ring.ValueFull(value.stage), value.phase);
    ptx::PinRegisters(outputs);
    ptx::WgmmaFence();
    MultiplyValues(outputs, weights);
    ptx::WgmmaWait<0>();
    ptx::PinRegisters(outputs);
    Release(ring.ValueEmpty(value.stage));
    value.Next();
  }
};

__global__ __launch_bounds__(kThreads,
                             1) void Kernel(const __grid_constant__ Maps maps,
                                            const __grid_constant__ MaskedAttentionParams p,
                                            const __grid_constant__ MaskedScratch scratch,
                                            int ratio_uk, int ratio_uv) {
  extern __shared__ std::uint8_t shared[];
  const Ring ring(shared);
  if (threadIdx.x == 0) {
    ring.Init();
  }
  __syncthreads();
  const int heads = static_cast<int>(p.q.heads);
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  if (group == kConsumerGroups) {
    ptx::LowerRegisters<kProducerRegisters>();
    Producer producer{p, scratch, maps, ring, ratio_uk, ratio_uv};
    ptx::NamedBarrierArrive(kFirstTurn, kConsumerThreads);  // as if from the second group
    RunWindows(heads, scratch, producer);
    ptx::NamedBarrierSync(kFirstTurn, kConsumerThreads);  // its last one, which nobody waits for
  } else {
    ptx::RaiseRegisters<kConsumerRegisters>();
    Consumer consumer{p, scratch, ring, group};
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
                          {.extent = q.rows, .stride = q.row_stride, .box = kTile}};
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
  warpgroup::Maps maps = {
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
  auto ratio_uk = static_cast<int>(w_uk.row_stride / (warpgroup::kSwapped * w_uk.head_stride));
  auto rows_uv = static_cast<int>(ratio_uv);
  const auto kernel = warpgroup::Kernel;
  static PerDevice attribute;
  attribute.Once([&] {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                warpgroup::Ring::kBytes);
  });
  void* arguments[] = {&maps, const_cast<MaskedAttentionParams*>(&params),
                       const_cast<MaskedScratch*>(&scratch), &ratio_uk, &rows_uv};
  DSA_CUDA_CHECK(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel),
                                             dim3(kMultiprocessors), dim3(warpgroup::kThreads),
                                             arguments, warpgroup::Ring::kBytes, stream));
}

}  // namespace dsa::cuda
