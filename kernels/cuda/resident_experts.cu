// The launches of ResidentExperts and the kernel that prepares them; resident_experts.cuh has the
// other.
#include "common/view_parts.h"
#include "kernels/cuda/expert_tiles.h"
#include "kernels/cuda/gate_choice.cuh"
#include "kernels/cuda/quantize_fp8.cuh"
#include "kernels/cuda/resident_experts.cuh"
#include "kernels/cuda/resident_experts.h"
#include "kernels/cuda/weight_map.h"

#include <algorithm>
#include <functional>

namespace dsa::cuda {
namespace {

using namespace resident_experts;  // NOLINT(google-build-using-namespace): its own kernel

constexpr std::int64_t kPassTokens = 4096;

struct Regions {
  SortedPairs sorted;
  Fp8E4m3* inputs;              // [T, D]
  float* input_scales;          // [T, D / 128]
  Fp8E4m3* inner;               // [P, I]  of the sorted pairs
  float* inner_scales;          // [P, I / 128]
  float4* part_sums;            // [I / kBoxRows, kParts, kPartPacks]
  Fp8E4m3* shared_inner;        // [T, I]  of the shared expert, where it is computed in parts
  float* shared_scales;         // [T, I / 128]
  std::uint8_t* contributions;  // [P, D]  of the sorted pairs, of the type of y
  int* counters;
};

struct PassShape {
  std::int64_t tokens, hidden, width, experts, slots, output_bytes;
  bool splits_shared;  // the shared expert's inner tiles are computed in parts, here
  std::int64_t pairs() const { return tokens * slots; }
  std::int64_t Tiles() const { return std::min(pairs(), pairs() / kTilePairs + experts); }
  std::int64_t InnerTiles() const { return width / kBoxRows; }  // of a tile of pairs
  std::int64_t PartRows() const { return std::min<std::int64_t>(tokens, kPartPairs); }
  std::int64_t OuterTiles() const { return (hidden + kTileRows - 1) / kTileRows; }
};

// Those that are zeroed where the pairs are sorted; parts_done behind them.
std::int64_t CounterCount(const PassShape& shape) {
  return 2 + shape.Tiles() + shape.OuterTiles();
}
Counters CountersAt(int* first, const PassShape& shape, unsigned* rows_ready) {
  return {.tiles_taken = first,
          .sums_taken = first + 1,
          .inner_done = first + 2,
          .outer_done = first + 2 + shape.Tiles(),
          .parts_done = first + CounterCount(shape),
          .rows_ready = rows_ready};
}

Regions TakeRegions(ScratchArena& arena, const PassShape& shape) {
  const std::int64_t pairs = shape.pairs();
  return {.sorted = TakeSortedPairs(arena, shape.Tiles(), pairs),
          .inputs = arena.Take<Fp8E4m3>(shape.tokens * shape.hidden),
          .input_scales = arena.Take<float>(shape.tokens * Fp8Blocks(shape.hidden)),
          .inner = arena.Take<Fp8E4m3>(pairs * shape.width),
          .inner_scales = arena.Take<float>(pairs * Fp8Blocks(shape.width)),
          .part_sums = shape.splits_shared
                           ? arena.Take<float4>(shape.InnerTiles() * kParts * kPartPacks)
                           : nullptr,
          .shared_inner =
              shape.splits_shared ? arena.Take<Fp8E4m3>(shape.PartRows() * shape.width) : nullptr,
          .shared_scales = shape.splits_shared
                               ? arena.Take<float>(shape.PartRows() * Fp8Blocks(shape.width))
                               : nullptr,
          .contributions = arena.Take<std::uint8_t>(pairs * shape.hidden * shape.output_bytes),
          .counters = arena.Take<int>(CounterCount(shape) + shape.InnerTiles())};
}

struct PrepareParams {
  PairPreparation pairs;
  ConstAnyMatrix x;  // to quantize
  QuantizedView quantized;
};

// Half a warp per row and block of 128 columns.
__device__ void QuantizeRows(const PrepareParams& p) {
  const std::int64_t blocks = p.x.cols / kValuesPerScale;
  const std::int64_t task =
      ((blockIdx.x - 1) * std::int64_t{kSortThreads} + threadIdx.x) / kQuantizeLanes;
  const bool has_task = task < p.x.rows * blocks;  // all lanes stay, to exchange maxima
  const std::int64_t row = has_task ? task / blocks : 0;
  const std::int64_t block = has_task ? task % blocks : 0;
  const std::int64_t first =
      block * kValuesPerScale + threadIdx.x % kQuantizeLanes * kQuantizeWidth;
  const auto loaded = LoadPack<kQuantizeWidth>(static_cast<const __nv_bfloat16*>(p.x.data) +
                                               row * p.x.row_stride + first);
  float values[kQuantizeWidth];
#pragma unroll
  for (int i = 0; i < kQuantizeWidth; ++i) {
    values[i] = ToFloat(loaded.values[i]);
  }
  float scale = 0.0F;
  const auto codes = QuantizeBlock(values, p.quantized.format, scale);
  if (!has_task) {
    return;
  }
  if (threadIdx.x % kQuantizeLanes == 0) {
    p.quantized.scales.Row(row)[block] = scale;
  }
  StorePack(p.quantized.values.Row(row) + first, codes);
}

// Block 0 sorts, the others quantize.
__global__ __launch_bounds__(kSortThreads) void PrepareKernel(
    const __grid_constant__ PrepareParams p) {
  StartAfterPredecessors();
  if (blockIdx.x > 0) {
    QuantizeRows(p);
    return;
  }
  PreparePairs<kSortThreads>(p.pairs);
}

Matrix<const Fp8E4m3> AllRows(const StackedWeight& weight) {
  return {.data = static_cast<const Fp8E4m3*>(weight.data),
          .rows = weight.experts * weight.rows,
          .cols = weight.cols,
          .row_stride = weight.cols};
}
Matrix<const float> AllScales(const StackedWeight& weight) {
  const std::int64_t cols = Fp8Blocks(weight.cols);
  return {.data = weight.scales,
          .rows = weight.experts * Fp8Blocks(weight.rows),
          .cols = cols,
          .row_stride = cols};
}
CUtensorMap MapOf(const LinearWeight& weight, int box_rows) {
  return WeightMap({.data = static_cast<const Fp8E4m3*>(weight.weight.data),
                    .rows = weight.weight.rows,
                    .cols = weight.weight.cols,
                    .row_stride = weight.weight.row_stride},
                   box_rows);
}

// Whether LaunchGivenExperts computes them.
bool HasGiven(const ResidentExpertsParams& params) {
  return params.shared_expert != nullptr && params.shared_expert->given != nullptr &&
         params.routed.contributions.data == nullptr;
}

bool UpIsFirst(const StackedWeight& gate, const StackedWeight& up) {
  return std::less<>{}(up.data, gate.data);
}
// ExpertMaps: rows of either in turns, from the one that is first in memory, since an axis has no
// negative stride.
CUtensorMap MapOfBoth(const StackedWeight& gate, const StackedWeight& up) {
  const bool up_is_first = UpIsFirst(gate, up);
  const auto* first = static_cast<const std::uint8_t*>((up_is_first ? up : gate).data);
  const auto* second = static_cast<const std::uint8_t*>((up_is_first ? gate : up).data);
  const MapAxis axes[] = {{.extent = gate.cols, .stride = 1, .box = kValuesPerScale},
                          {.extent = kShareRows, .stride = gate.cols, .box = kShareRows},
                          {.extent = 2, .stride = second - first, .box = 2},
                          {.extent = gate.experts * gate.rows / kShareRows,
                           .stride = kShareRows * gate.cols,
                           .box = 2}};
  return Fp8Map(first, axes);
}

ExpertMaps MapsOf(const ResidentExpertsParams& params) {
  const RoutedExpertsParams& routed = params.routed;
  ExpertMaps maps{};
  const SharedExpert* const shared = params.shared_expert;
  constexpr int kRows = Layout<false>::kCopyRows;
  static_assert(kRows == Layout<true>::kCopyRows);
  if (HasGiven(params)) {
    maps.gate[kRouted] = MapOfBoth(routed.gate, routed.up);
  } else {
    maps.gate[kRouted] = WeightMap(AllRows(routed.gate), kRows);
    maps.up[kRouted] = WeightMap(AllRows(routed.up), kRows);
  }
  maps.down[kRouted] = WeightMap(AllRows(routed.down), kRows);
  if (shared != nullptr) {
    maps.gate[kShared] = MapOf(shared->gate, kRows);
    maps.up[kShared] = MapOf(shared->up, kRows);
    maps.down[kShared] = MapOf(shared->down, kRows);
  }
  return maps;
}

void LaunchPrepare(const PrepareParams& params, bool quantizes, cudaStream_t stream) {
  constexpr std::int64_t kTasks = kSortThreads / kQuantizeLanes;
  const std::int64_t tasks = params.x.rows * (params.x.cols / kValuesPerScale);
  const std::int64_t blocks = quantizes ? (tasks + kTasks - 1) / kTasks : 0;
  LaunchDependent(PrepareKernel,
                  {.grid = static_cast<unsigned>(1 + blocks), .threads = kSortThreads}, stream,
                  params);
}

PairChoice ChoiceOf(const RoutedExpertsParams& routed, const SharedExpert* shared_expert) {
  return {.experts = routed.experts,
          .first_expert = static_cast<std::int32_t>(routed.first_expert),
          .expert_count = static_cast<int>(routed.gate.experts),
          .with_shared = shared_expert != nullptr};
}
// Two blocks of K are the least that a part should have.
bool SplitsShared(std::int64_t hidden, std::int64_t tokens) {
  return Fp8Blocks(hidden) >= 2 * kParts && tokens <= kPartPairs;
}
PassShape ShapeOf(const RoutedExpertsParams& routed, const SharedExpert* shared_expert) {
  return {.tokens = routed.x.rows,
          .hidden = routed.x.cols,
          .width = routed.gate.rows,
          .experts = routed.gate.experts + (shared_expert != nullptr ? 1 : 0),
          .slots = ChoiceOf(routed, shared_expert).slots(),
          .output_bytes = SizeOf(routed.y.type),
          .splits_shared = shared_expert != nullptr && shared_expert->given == nullptr &&
                           SplitsShared(routed.x.cols, routed.x.rows)};
}
// Whether the tensor cores are the bound: an expert has at least one of their tiles in the mean.  A
// token's bits are the same either way.
bool TakesTiles(const ResidentExpertsParams& params, const PassShape& shape) {
  return params.shared_expert == nullptr && shape.pairs() >= kManyTilePairs * shape.experts;
}
PairPreparation PreparationOf(const PairChoice& choice, const PassShape& shape,
                              const Regions& regions, int tile_pairs, unsigned* rows_ready) {
  return {.choice = choice,
          .tile_tokens = tile_pairs,
          .tiles_max = static_cast<int>(shape.Tiles()),
          .sorted = regions.sorted,
          .counters = regions.counters,
          .counter_count = static_cast<int>(CounterCount(shape)),
          .early_counters = regions.counters + CounterCount(shape),
          .early_counter_count = static_cast<int>(shape.InnerTiles()),
          .rows_ready = shape.splits_shared ? rows_ready : nullptr,
          .rows_readers = static_cast<unsigned>(
              std::min<std::int64_t>(shape.InnerTiles() * kParts, Multiprocessors())),
          .pairs_ready = nullptr,
          .pairs_readers = 0};
}

void RunPass(const ResidentExpertsParams& params, const ExpertMaps& maps,
             const DeviceBuffer& scratch, cudaStream_t stream) {
  const RoutedExpertsParams& routed = params.routed;
  const PairChoice choice = ChoiceOf(params.routed, params.shared_expert);
  const PassShape shape = ShapeOf(params.routed, params.shared_expert);
  ScratchArena arena(scratch);
  const Regions regions = TakeRegions(arena, shape);
  arena.CheckFits("RoutedExperts");
  const std::int64_t blocks = Fp8Blocks(shape.hidden);
  const QuantizedView own = {.values = {.data = regions.inputs,
                                        .rows = shape.tokens,
                                        .cols = shape.hidden,
                                        .row_stride = shape.hidden},
                             .scales = {.data = regions.input_scales,
                                        .rows = shape.tokens,
                                        .cols = blocks,
                                        .row_stride = blocks},
                             .format = routed.scale_format};
  const QuantizedView& input = params.quantized_input != nullptr ? *params.quantized_input : own;
  const bool takes_tiles = TakesTiles(params, shape);
  const bool leaves_pairs = routed.contributions.data != nullptr;
  if (!params.is_prepared) {
    DSA_CHECK(!shape.splits_shared && !HasGiven(params),
              "RoutedExperts: {} rows of a shared expert are not prepared", shape.tokens);
    LaunchPrepare({.pairs = PreparationOf(choice, shape, regions,
                                          takes_tiles ? kManyTilePairs : kTilePairs, nullptr),
                   .x = routed.x,
                   .quantized = own},
                  params.quantized_input == nullptr, stream);
  }
  ExpertsParams experts = {
      .choice = choice,
      .sorted = regions.sorted,
      .tiles_max = static_cast<int>(shape.Tiles()),
      .counters = CountersAt(regions.counters, shape, params.rows_ready),
      .x = AsConst(input.values),
      .x_scales = AsConst(input.scales),
      .scales = {},
      .inner = regions.inner,
      .inner_scales = regions.inner_scales,
      .scale_format = routed.scale_format,
      .part_sums = regions.part_sums,
      .up_is_first = UpIsFirst(routed.gate, routed.up),
      .guesses_hit = params.guesses_hit,
      .given = {},
      .contributions = leaves_pairs ? routed.contributions.data : regions.contributions,
      .leaves_pairs = leaves_pairs,
      .weights = routed.weights,
      .shared = nullptr,
      .shared_stride = routed.shared.row_stride,
      .y = routed.y.data,
      .y_stride = routed.y.row_stride,
      .width = static_cast<int>(shape.width)};
  experts.scales[kRouted] = {
      .gate = AllScales(routed.gate), .up = AllScales(routed.up), .down = AllScales(routed.down)};
  if (params.shared_expert != nullptr) {
    experts.scales[kShared] = {.gate = params.shared_expert->gate.scales,
                               .up = params.shared_expert->up.scales,
                               .down = params.shared_expert->down.scales};
    if (params.shared_expert->given != nullptr) {
      experts.given = *params.shared_expert->given;
    } else if (shape.splits_shared) {
      const std::int64_t inner_blocks = Fp8Blocks(shape.width);
      experts.given.y = {.values = {.data = regions.shared_inner,
                                    .rows = shape.tokens,
                                    .cols = shape.width,
                                    .row_stride = shape.width},
                         .scales = {.data = regions.shared_scales,
                                    .rows = shape.tokens,
                                    .cols = inner_blocks,
                                    .row_stride = inner_blocks},
                         .format = routed.scale_format};
    }
  } else {
    experts.shared = routed.shared.data;
  }
  if (takes_tiles) {
    LaunchExpertTiles(maps, experts, routed.y.type, stream);
  } else if (leaves_pairs) {
    LaunchExpertPairs(maps, experts, stream);
  } else if (HasGiven(params)) {
    LaunchGivenExperts(maps, experts, routed.y.type, stream);
  } else if (shape.splits_shared) {
    LaunchSplitExperts(maps, experts, routed.y.type, stream);
  } else if (routed.y.type == DataType::kF32) {
    LaunchExpertParts(maps, experts, stream);
  } else {
    LaunchExperts<__nv_bfloat16, Inner::kWhole>(maps, experts, stream);
  }
}

bool IsAligned(const void* data) {
  constexpr std::uintptr_t kAlignment = 16;
  return reinterpret_cast<std::uintptr_t>(data) % kAlignment == 0;
}
bool IsFp8(const StackedWeight& weight) {
  return weight.type == DataType::kFp8E4m3 && IsAligned(weight.data);
}
bool IsFp8(const LinearWeight& weight) {
  return weight.quantized() && HasAlignedRows(weight.weight);
}

}  // namespace

bool ResidentExpertsTakes(const RoutedExpertsParams& params) {
  return params.x.type == DataType::kBf16 && HasAlignedRows(params.x) && HasAlignedRows(params.y) &&
         (params.shared.data == nullptr || HasAlignedRows(params.shared)) &&
         (params.contributions.data == nullptr || HasAlignedRows(params.contributions)) &&
         IsFp8(params.gate) && IsFp8(params.up) && IsFp8(params.down) &&
         params.x.cols % kValuesPerScale == 0 && params.gate.rows % kValuesPerScale == 0 &&
         params.gate.experts < kSortThreads && params.experts.cols < kWarpSize;
}

bool ResidentExpertsTakes(const RoutedExpertsParams& params, const QuantizedView& quantized_input) {
  return ResidentExpertsTakes(params) && IsAligned(quantized_input.values.data) &&
         quantized_input.values.row_stride % 16 == 0;
}

bool ResidentExpertsTakes(const RoutedExpertsParams& params, const SharedExpert& shared_expert,
                          const QuantizedView& quantized_input) {
  return ResidentExpertsTakes(params, quantized_input) && IsFp8(shared_expert.gate) &&
         IsFp8(shared_expert.up) && IsFp8(shared_expert.down) &&
         shared_expert.gate.weight.rows == params.gate.rows &&
         (shared_expert.given == nullptr ||
          (IsAligned(shared_expert.given->y.values.data) &&
           shared_expert.given->y.values.row_stride % 16 == 0 &&
           shared_expert.given->gate.type == DataType::kBf16 &&
           HasAlignedRows(shared_expert.given->gate) && HasAlignedRows(shared_expert.given->up)));
}

bool SharedExpertFits(const RoutedExpertsParams& params, const SharedExpert& shared_expert) {
  const PassShape shape = ShapeOf(params, &shared_expert);
  return shared_expert.given != nullptr || shape.splits_shared ||
         shape.Tiles() * shape.InnerTiles() <= Multiprocessors();
}

PairPreparation PreparationOf(const ResidentExpertsParams& params, ScratchArena& arena) {
  DSA_CHECK(params.quantized_input != nullptr && params.routed.x.rows <= kPreparedRowsMax,
            "RoutedExperts: {} rows cannot be prepared", params.routed.x.rows);
  const PairChoice choice = ChoiceOf(params.routed, params.shared_expert);
  const PassShape shape = ShapeOf(params.routed, params.shared_expert);
  PairPreparation preparation =
      PreparationOf(choice, shape, TakeRegions(arena, shape), kTilePairs, params.rows_ready);
  if (HasGiven(params)) {
    preparation.pairs_ready = params.rows_ready;
    preparation.pairs_readers = static_cast<unsigned>(GivenExpertsBlocks(params.routed.y.type));
  }
  return preparation;
}

std::int64_t ResidentExpertsScratchBytes(const ScratchLimits& limits) {
  ScratchArena arena;
  TakeRegions(arena, {.tokens = std::min(limits.tokens_max, kPassTokens),
                      .hidden = limits.hidden,
                      .width = limits.expert_width,
                      .experts = limits.experts + 1,
                      .slots = limits.experts_per_token + 1,
                      .output_bytes = LeavesParts(limits) ? 4 : 2,
                      .splits_shared = SplitsShared(limits.hidden, 1)});
  // Beside them the logits of the gate that prepares.
  arena.Take<float>(GateSlices(limits.hidden) * std::min(limits.tokens_max, kPreparedRowsMax) *
                    GateLogitStride(limits.experts));
  return arena.used();
}

void ResidentExperts(const ResidentExpertsParams& params, const DeviceBuffer& scratch,
                     cudaStream_t stream) {
  const ExpertMaps maps = MapsOf(params);
  const RoutedExpertsParams& routed = params.routed;
  for (std::int64_t first = 0; first < routed.x.rows; first += kPassTokens) {
    const std::int64_t tokens = std::min(kPassTokens, routed.x.rows - first);
    ResidentExpertsParams pass = params;
    pass.routed.x = RowsOfAny(routed.x, first, tokens);
    pass.routed.experts = RowsOf(routed.experts, first, tokens);
    pass.routed.weights = RowsOf(routed.weights, first, tokens);
    pass.routed.shared = RowsOfAny(routed.shared, first, tokens);
    pass.routed.y = RowsOfAny(routed.y, first, tokens);
    pass.routed.contributions =
        RowsOfAny(routed.contributions, first * routed.experts.cols, tokens * routed.experts.cols);
    QuantizedView input;
    if (params.quantized_input != nullptr) {
      input = *params.quantized_input;
      input.values = RowsOf(input.values, first, tokens);
      input.scales = RowsOf(input.scales, first, tokens);
      pass.quantized_input = &input;
    }
    RunPass(pass, maps, scratch, stream);
  }
}

}  // namespace dsa::cuda
