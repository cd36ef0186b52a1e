// MaskedAttention where each block of its kernel goes through several pieces of work.
#include "kernels/cuda/cuda_backend.h"
#include "tests/kernels/masked_attention_testing.h"
#include "tests/kernels/test_backend.h"

#include <memory>

namespace dsa::masked_attention_test {
namespace {

constexpr std::int64_t kHeads = 160;
constexpr std::int64_t kFewHeads = 20;  // no block has two of their rows' pieces

std::unique_ptr<CudaBackend> BackendOfContext(std::int64_t masked_context_max) {
  testing::TestBackend();  // skips where there is no device
  ScratchLimits limits = testing::kTestLimits;
  limits.masked_context_max = masked_context_max;
  limits.heads = kHeads;
  auto backend = CudaBackend::Make(0);
  REQUIRE(backend.ok());
  REQUIRE(backend.value()->ReserveScratch(limits).ok());
  return std::move(backend).value();
}

AttentionBatch HeadsOf(const AttentionBatch& batch, std::int64_t first, std::int64_t count) {
  AttentionBatch part = batch;
  part.heads = count;
  const auto weights = [&](const std::vector<float>& all, std::int64_t rows) {
    return std::vector<float>(all.begin() + first * rows * 512,
                              all.begin() + (first + count) * rows * 512);
  };
  part.w_uk = weights(batch.w_uk, batch.nope);
  part.w_uv = weights(batch.w_uv, batch.value);
  part.q.clear();
  const std::int64_t width = batch.nope + 64;
  for (std::int64_t row = 0; row < batch.rows.size(); ++row) {
    const auto query = batch.q.begin() + (row * batch.heads + first) * width;
    part.q.insert(part.q.end(), query, query + count * width);
  }
  return part;
}

}  // namespace

// All heads at a time or some, of all rows or of some, with rows that see nothing between others:
// nothing may be left of the work before, and nothing be used before it is there.
TEST_CASE("MaskedAttention of wide heads gives a head the same bits beside any others",
          "[kernels][masked_attention]") {
  const std::unique_ptr<CudaBackend> wide = BackendOfContext(8192);
  const std::unique_ptr<CudaBackend> narrow = BackendOfContext(700);
  for (const Pattern pattern : {Pattern::kNone, Pattern::kHalf, Pattern::kRuns}) {
    const AttentionBatch batch = MakeWideBatch(KvFormat::kFp8, pattern, kHeads);
    const std::vector<float> together = Run(*wide, batch);
    for (int again = 0; again < 3; ++again) {
      CHECK(Run(*wide, batch) == together);
      CHECK(Run(*narrow, batch) == together);
    }
    const std::int64_t width = kHeads * batch.value;
    for (std::int64_t head = 0; head < kHeads; head += kFewHeads) {
      CAPTURE(static_cast<int>(pattern), head);
      const std::vector<float> few = Run(*wide, HeadsOf(batch, head, kFewHeads));
      std::vector<float> own;
      for (std::int64_t row = 0; row < batch.rows.size(); ++row) {
        const auto first = together.begin() + row * width + head * batch.value;
        own.insert(own.end(), first, first + kFewHeads * batch.value);
      }
      CHECK(few == own);
    }
  }
}

}  // namespace dsa::masked_attention_test
