// SelectKeys as a model calls it, and its two kernels behind prepared queries, which is what the
// peers' figures of "scores and top-k" hold.
#include "bench/cuda/device_bench.h"
#include "common/view.h"
#include "kernels/batch_view.h"
#include "kernels/cuda/index_scores.h"
#include "kernels/cuda/index_selection.h"
#include "kernels/fused/select_keys.h"
#include "kernels/kv_layout.h"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr std::int64_t kSelected = 2048;

struct Case {
  std::int64_t rows;
  std::int64_t context;  // keys in the cache of each sequence
  std::int64_t heads = 64;
  std::int64_t rows_each = 1;  // the last positions of each sequence
  std::int64_t group = 1;
  std::int64_t score_rows = 0;  // scored at a time; 0: all
  bool is_prompt = false;       // rows that share their keys as a prompt's do
};

// Of the size that preparation gives them, of both signs: a histogram of scores covers the size
// that scores have, and others are selected by another way.
DeviceBuffer PreparedWeights(const DeviceBench& bench, std::int64_t count) {
  std::mt19937 engine(3);
  std::normal_distribution<float> normal(0.0F, 0x1p-14F);
  std::vector<float> weights(static_cast<std::size_t>(count));
  std::generate(weights.begin(), weights.end(), [&] { return normal(engine); });
  return bench.Upload(weights.data(), 4 * count);
}

class Operands final {
 public:
  Operands(const DeviceBench& bench, const Case& shape)
      : shape_(shape),
        sequences_(shape.rows / shape.rows_each),
        blocks_(shape.context / kTokensPerBlock),
        score_rows_(shape.score_rows > 0 ? shape.score_rows : shape.rows),
        keys_(bench.RandomIndexerKeys(sequences_ * blocks_)),
        q_(bench.Random(DataType::kBf16, shape.rows, shape.heads * kIndexerValues)),
        head_weights_(bench.Random(DataType::kF32, shape.rows, shape.heads)),
        rope_(bench.Random(DataType::kF32, shape.context, kIndexerRopeValues / 2)),
        queries_(bench.Random(DataType::kFp8E4m3, shape.rows, shape.heads * kIndexerValues)),
        weights_(bench.Random(DataType::kF32, shape.rows, shape.heads)),
        scores_(bench.Random(DataType::kF32, score_rows_, shape.context)),
        slots_(bench.Random(DataType::kF32, shape.rows, kSelected)),
        counts_(bench.Random(DataType::kF32, 2, shape.rows)),  // and the faults
        prepared_(bench.Random(DataType::kFp8E4m3, shape.rows,
                               cuda::PreparedQueryBytes(cuda::PaddedIndexHeads(shape.heads)))),
        prepared_weights_(PreparedWeights(bench, shape.rows * cuda::PaddedIndexHeads(shape.heads))),
        work_(bench.Allocate(cuda::ScoreWorkInts(shape.rows) * 4)) {
    std::vector<std::int32_t> positions;
    std::vector<std::int32_t> sequences;
    for (std::int64_t row = 0; row < shape.rows; ++row) {
      sequences.push_back(static_cast<std::int32_t>(row / shape.rows_each));
      positions.push_back(
          static_cast<std::int32_t>(shape.context - shape.rows_each + row % shape.rows_each));
    }
    std::vector<std::int32_t> tables(static_cast<std::size_t>(sequences_ * blocks_));
    for (std::size_t i = 0; i < tables.size(); ++i) {
      tables[i] = static_cast<std::int32_t>(i * 7919 % tables.size());  // a prime: each once
    }
    positions_ = bench.Upload(positions.data(), 4 * shape.rows);
    sequences_of_rows_ = bench.Upload(sequences.data(), 4 * shape.rows);
    tables_ = bench.Upload(tables.data(), 4 * sequences_ * blocks_);
    bench.backend().Synchronize();
  }

  // Query and key pairs, each of 2 x 128 x heads operations.
  double pairs() const {
    const double mean =
        static_cast<double>(shape_.context) - static_cast<double>(shape_.rows_each - 1) / 2.0;
    return static_cast<double>(shape_.rows) * mean;
  }
  Work work() const {
    return {.bytes = static_cast<double>(sequences_ * shape_.context) *
                     static_cast<double>(IndexerTokenBytes(KvFormat::kFp8)),
            .flops = pairs() * static_cast<double>(shape_.heads) * kIndexerValues * 2.0};
  }
  PagedRows rows() const {
    return {.positions = {.data = positions_.As<const std::int32_t>(), .size = shape_.rows},
            .sequences = {.data = sequences_of_rows_.As<const std::int32_t>(), .size = shape_.rows},
            .block_tables = {.data = tables_.As<const std::int32_t>(),
                             .rows = sequences_,
                             .cols = blocks_,
                             .row_stride = blocks_},
            .group = shape_.group,
            .has_runs = shape_.rows_each > shape_.group};
  }
  IndexerCacheView cache() const {
    return {
        .data = keys_.As<std::uint8_t>(), .blocks = sequences_ * blocks_, .format = KvFormat::kFp8};
  }
  SelectKeysParams Call() const {
    return {.q = HeadsOf(q_.view, shape_.heads),
            .head_weights = head_weights_.view,
            .table = {.cos = rope_.As<const float>(), .sin = rope_.As<const float>()},
            .layout = RopeLayout::kHalfSplit,
            .cache = cache(),
            .rows = rows(),
            .k = kSelected,
            .slots = slots_.As<std::int32_t>(),
            .mask = {},
            .counts = counts(),
            .faults = faults(),
            .queries = HeadsOf(queries_.view, shape_.heads),
            .weights = weights_.As<float>(),
            .scores = scores_.As<float>()};
  }
  cuda::IndexScoresParams Scores() const {
    return {.queries = prepared_.buffer.As<std::uint8_t>(),
            .weights = prepared_weights_.As<const float>(),
            .padded_heads = cuda::PaddedIndexHeads(shape_.heads),
            .cache = cache(),
            .rows = rows(),
            .unit_rows = static_cast<int>(shape_.is_prompt ? kRowGroupMax : shape_.group),
            .k = kSelected,
            .scores = scores_.As<float>(),
            .work = work_.As<std::int32_t>()};
  }
  SelectTopKParams Selection() const {
    return {.scores = scores_.As<const float>(),
            .rows = rows(),
            .k = kSelected,
            .slots = slots_.As<std::int32_t>(),
            .mask = {},
            .positions = {},
            .counts = counts(),
            .faults = faults()};
  }
  const DeviceBuffer& work_memory() const { return work_; }

 private:
  Vector<std::int32_t> counts() const {
    return {.data = counts_.buffer.As<std::int32_t>(), .size = shape_.rows};
  }
  Vector<std::int32_t> faults() const {
    return {.data = counts_.buffer.As<std::int32_t>() + shape_.rows, .size = shape_.rows};
  }

  Case shape_;
  std::int64_t sequences_;
  std::int64_t blocks_;
  std::int64_t score_rows_;
  DeviceBuffer keys_;
  DeviceOperand q_, head_weights_, rope_, queries_, weights_, scores_, slots_, counts_, prepared_;
  DeviceBuffer prepared_weights_;
  DeviceBuffer work_;
  DeviceBuffer positions_, sequences_of_rows_, tables_;
};

void BenchCase(const DeviceBench& bench, const Case& shape) {
  CudaBackend& backend = bench.backend();
  const Operands operands(bench, shape);
  std::string name = fmt::format("T={} context={}K", shape.rows, shape.context / 1024);
  if (shape.heads != 64) {
    name += fmt::format(" H={}", shape.heads);
  }
  if (shape.group > 1) {
    name += fmt::format(" group={}", shape.group);
  }
  const Work work = operands.work();
  bench.Row("select_keys", name, work, [&] { backend.SelectKeys(operands.Call()); });
  if (shape.score_rows > 0) {
    return;
  }
  const DeviceBuffer& memory = operands.work_memory();
  const auto clear = [&] { backend.Zero(memory.data(), memory.bytes()); };
  const auto score = [&] { cuda::IndexScores(operands.Scores(), backend.stream()); };
  const auto select = [&] {
    const auto* work_memory = memory.As<const std::int32_t>();
    if (!cuda::IndexSelectionOfFew(operands.Selection(), work_memory, backend.stream())) {
      cuda::IndexSelection(operands.Selection(), work_memory,
                           cuda::IndexSelectionCluster(shape.rows, shape.context),
                           backend.stream());
    }
  };
  bench.PreparedRow("  scores and selection", name, work, clear, [&] {
    score();
    select();
  });
  bench.PreparedRow("  scores", name, work, clear, score);
  bench.PreparedRow(
      "  selection", name,
      {.bytes = 4.0 * operands.pairs() + 4.0 * static_cast<double>(shape.rows * kSelected),
       .flops = 0.0},
      [&] {
        clear();
        score();
      },
      select);
}

}  // namespace

void BenchSelectKeys(DeviceBench& bench) {
  for (const Case& shape :
       {Case{.rows = 1, .context = 8192},
        {.rows = 1, .context = 32768},
        {.rows = 1, .context = 131072},
        {.rows = 8, .context = 8192},
        {.rows = 8, .context = 32768},
        {.rows = 8, .context = 131072},
        {.rows = 64, .context = 8192},
        {.rows = 64, .context = 32768},
        {.rows = 64, .context = 131072},
        {.rows = 256, .context = 8192},
        {.rows = 64, .context = 32768, .heads = 16},
        {.rows = 64, .context = 32768, .rows_each = 2, .group = 2},
        {.rows = 128, .context = 32768, .rows_each = 4, .group = 4},
        {.rows = 2048, .context = 8192, .rows_each = 2048, .is_prompt = true},
        {.rows = 256, .context = 65536, .rows_each = 256, .is_prompt = true},
        {.rows = 128, .context = 131072, .rows_each = 128, .is_prompt = true}}) {
    BenchCase(bench, shape);
  }
  for (const std::int64_t context : {8192, 65536, 131072}) {  // scores of 64 MiB
    const std::int64_t score_rows =
        std::min<std::int64_t>(2048, (std::int64_t{64} << 20) / (4 * context));
    BenchCase(bench,
              {.rows = 2048, .context = context, .rows_each = 2048, .score_rows = score_rows});
  }
}

}  // namespace dsa::bench
