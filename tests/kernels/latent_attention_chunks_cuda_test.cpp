// LatentAttention of so many rows that their latents are converted beforehand, against the same
// rows in calls of fewer, which convert them on the way: equal to the last bit.
#include "common/view_parts.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/ops/latent_attention.h"
#include "tests/kernels/attention_testing.h"

#include <algorithm>
#include <memory>

namespace dsa {
namespace {

using testing::AttentionBatch;
using testing::Selection;

constexpr std::int64_t kRows = 560;  // of which calls of 80 are neither split nor a chunk
constexpr std::int64_t kFewRows = 80;
static_assert(kRows % kFewRows == 0);

std::unique_ptr<CudaBackend> BackendOfContext(std::int64_t context_max) {
  testing::TestBackend();  // skips where there is no device
  ScratchLimits limits = testing::kTestLimits;
  limits.tokens_max = kRows;
  limits.context_max = context_max;
  limits.masked_context_max = 0;
  limits.heads = 128;
  auto backend = CudaBackend::Make(0);
  REQUIRE(backend.ok());
  REQUIRE(backend.value()->ReserveScratch(limits).ok());
  return std::move(backend).value();
}

// Positions of rows in no order; most rows are of sequence 1.  Those of sequence 2 are fewer, and
// of sequence 0 there is one, the last, which is not worth its conversion.
std::vector<std::int32_t> VisibleKeys(std::int32_t most) {
  std::vector<std::int32_t> visible;
  for (std::int32_t row = 0; row < kRows; ++row) {
    visible.push_back(1 + row * 37 % most);
  }
  visible.back() = most;
  return visible;
}
AttentionBatch MakeChunk(Selection selection, std::int64_t heads, std::int32_t visible_most,
                         std::int64_t selected) {
  AttentionBatch batch = testing::MakeAttentionBatch({.type = DataType::kBf16,
                                                      .format = KvFormat::kFp8,
                                                      .selection = selection,
                                                      .heads = heads,
                                                      .visible = VisibleKeys(visible_most),
                                                      .selected = selected});
  std::fill(batch.rows.sequences.end() - 40, batch.rows.sequences.end(), 2);
  batch.rows.sequences.back() = 0;
  return batch;
}

class Operands final {
 public:
  Operands(Backend& backend, const AttentionBatch& batch)
      : backend_(backend),
        batch_(batch),
        latent_(backend, batch.type, testing::Dense(kRows, batch.heads * 512),
                testing::RoundedTo(batch.type,
                                   testing::RandomFloat(kRows * batch.heads * 512, 0.5F, 81))),
        q_(backend, batch.type, testing::Dense(kRows, batch.heads * (batch.nope + 64)), batch.q),
        rows_(backend, batch.rows, batch.layout),
        selection_(backend, batch),
        cache_(backend, batch.cache) {}

  // In calls of `each` rows.
  std::vector<std::uint8_t> Run(std::int64_t each) const {
    const std::int64_t cols = batch_.heads * 512;
    const testing::DeviceTensor output = testing::DeviceTensor::Poisoned(
        backend_, batch_.type, {.rows = kRows, .cols = cols, .row_stride = cols + 8});
    for (std::int64_t first = 0; first < kRows; first += each) {
      KeySelection selection = selection_.View();
      if (selection.slots.data != nullptr) {
        selection = {.slots = RowsOf(selection.slots, first, each),
                     .counts = RowsOf(selection.counts, first, each),
                     .mask = {},
                     .positions = {}};
      }
      backend_.LatentAttention(
          {.q_latent = RowsOfAny(latent_.Heads(batch_.heads), first, each),
           .q_rope = RowsOfAny(ColumnsOf(q_.Heads(batch_.heads), batch_.nope, 64), first, each),
           .cache = {.data = cache_.data(),
                     .blocks = batch_.layout.blocks,
                     .format = batch_.format},
           .rows = RowsOf(rows_.View(), first, each),
           .selection = selection,
           .softmax_scale = batch_.softmax_scale,
           .o_latent = RowsOfAny(output.Heads(batch_.heads), first, each)});
    }
    const std::vector<float> values = output.Download();  // checks the padding
    CHECK(std::none_of(values.begin(), values.end(), [](float v) { return v != v; }));
    return output.DownloadBits();
  }

 private:
  Backend& backend_;
  const AttentionBatch& batch_;
  testing::DeviceTensor latent_, q_;
  testing::DeviceRows rows_;
  testing::DeviceSelection selection_;
  testing::DeviceArray<std::uint8_t> cache_;
};

void CheckChunk(Backend& backend, const AttentionBatch& batch) {
  const Operands operands(backend, batch);
  const bool is_equal = operands.Run(kRows) == operands.Run(kFewRows);
  CHECK(is_equal);
}

}  // namespace

TEST_CASE("LatentAttention of a chunk gives the bits of its rows in smaller calls",
          "[kernels][latent_attention][chunk]") {
  const auto selection = GENERATE(Selection::kNone, Selection::kSome);
  const auto heads = GENERATE(as<std::int64_t>(), 37, 66, 128);
  CAPTURE(static_cast<int>(selection), heads);
  const auto backend = BackendOfContext(4096);
  CheckChunk(*backend, MakeChunk(selection, heads, 330, 150));
}

TEST_CASE("LatentAttention of a chunk beyond top-k", "[kernels][latent_attention][chunk]") {
  const auto backend = BackendOfContext(4096);
  CheckChunk(*backend, MakeChunk(Selection::kSome, 128, 2700, 2048));
}

// Nine blocks of room: sequence 1 fits, sequence 2 does not.
TEST_CASE("LatentAttention of a chunk whose latents do not all fit",
          "[kernels][latent_attention][chunk]") {
  const auto backend = BackendOfContext(1);
  CheckChunk(*backend, MakeChunk(Selection::kSome, 66, 330, 150));
}

TEST_CASE("LatentAttention of a chunk with rows without keys",
          "[kernels][latent_attention][chunk]") {
  AttentionBatch batch = MakeChunk(Selection::kSome, 66, 330, 150);
  for (std::size_t row = 0; row < kRows; ++row) {
    if (row == 0 || (row >= 200 && row < 400) || row == kRows - 1) {
      batch.counts[row] = 0;
    }
  }
  const auto backend = BackendOfContext(4096);
  CheckChunk(*backend, batch);
}

}  // namespace dsa
