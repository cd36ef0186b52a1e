// The operators at DeepSeek-V3.2's sizes, against the CPU backend on the same operands.  For GPU
// machines: the CPU takes seconds for what takes the device microseconds.
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/ops/absorb_query.h"
#include "kernels/ops/expand_value.h"
#include "kernels/ops/gate.h"
#include "kernels/ops/latent_attention.h"
#include "kernels/ops/masked_attention.h"
#include "kernels/ops/routed_experts.h"
#include "kernels/ops/sample.h"
#include "tests/kernels/paged_cache.h"
#include "tests/kernels/test_backend.h"

#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

namespace dsa::real_sizes_test {
namespace {

using testing::DeviceArray;
using testing::DeviceTensor;

Backend& Reference() {
  static const std::unique_ptr<CpuBackend> backend = [] {
    auto made = std::make_unique<CpuBackend>(16);
    ScratchLimits limits = testing::kTestLimits;
    limits.heads = 128;
    REQUIRE(made->ReserveScratch(limits).ok());
    return made;
  }();
  return *backend;
}

std::vector<double> ToDoubles(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

std::vector<float> RandomBf16(std::int64_t count, float deviation, std::uint32_t seed) {
  return testing::RoundedTo(DataType::kBf16, testing::RandomFloat(count, deviation, seed));
}

ConstAnyTensor3 HeadWeight(const DeviceTensor& w, std::int64_t heads, std::int64_t rows) {
  const AnyMatrix view = w.View();
  return {.data = view.data,
          .type = view.type,
          .rows = heads,
          .heads = rows,
          .cols = 512,
          .row_stride = rows * 512,
          .head_stride = 512};
}

// Random e4m3 codes, none of them NaN.
std::vector<Fp8E4m3> RandomCodes(std::int64_t count, std::uint32_t seed) {
  std::mt19937 engine(seed);
  std::vector<Fp8E4m3> codes(static_cast<std::size_t>(count));
  for (Fp8E4m3& code : codes) {
    code.bits = static_cast<std::uint8_t>(engine());
    code.bits = static_cast<std::uint8_t>((code.bits & 0x7FU) == 0x7FU ? 0U : code.bits);
  }
  return codes;
}

}  // namespace

TEST_CASE("AbsorbQuery and ExpandValue at full size", "[kernels][real_sizes]") {
  const auto tokens = GENERATE(as<std::int64_t>(), 1, 64, 130);
  constexpr std::int64_t kHeads = 128;
  CAPTURE(tokens);
  const auto q_values = RandomBf16(tokens * kHeads * 192, 1.0F, 1);
  const auto latent_values = RandomBf16(tokens * kHeads * 512, 1.0F, 2);
  const auto w_values = RandomBf16(kHeads * 128 * 512, 0.05F, 3);
  const auto run = [&](Backend& backend) {
    const DeviceTensor q(backend, DataType::kBf16, testing::Dense(tokens, kHeads * 192), q_values);
    const DeviceTensor latents(backend, DataType::kBf16, testing::Dense(tokens, kHeads * 512),
                               latent_values);
    const DeviceTensor w(backend, DataType::kBf16, testing::Dense(kHeads * 128, 512), w_values);
    const auto q_latent =
        DeviceTensor::Poisoned(backend, DataType::kBf16, testing::Dense(tokens, kHeads * 512));
    const auto o =
        DeviceTensor::Poisoned(backend, DataType::kBf16, testing::Dense(tokens, kHeads * 128));
    AnyTensor3 nope = q.Heads(kHeads);
    nope.cols = 128;
    backend.AbsorbQuery(
        {.q_nope = nope, .w_uk = HeadWeight(w, kHeads, 128), .q_latent = q_latent.Heads(kHeads)});
    backend.ExpandValue({.o_latent = latents.Heads(kHeads),
                         .w_uv = HeadWeight(w, kHeads, 128),
                         .o = o.Heads(kHeads)});
    return std::pair(q_latent.Download(), o.Download());
  };
  const auto actual = run(testing::TestBackend());
  const auto expected = run(Reference());
  CHECK(testing::RelativeError(actual.first, ToDoubles(expected.first)) < 3e-4);
  CHECK(testing::RelativeError(actual.second, ToDoubles(expected.second)) < 3e-4);
}

TEST_CASE("Gate at full size", "[kernels][real_sizes]") {
  const auto tokens = GENERATE(as<std::int64_t>(), 64, 150);
  constexpr std::int64_t kHidden = 7168;
  constexpr std::int64_t kExperts = 256;
  const auto x_values = RandomBf16(tokens * kHidden, 1.0F, 1);
  const auto w_values = RandomBf16(kExperts * kHidden, 0.02F, 2);
  const auto bias_values = testing::RandomFloat(kExperts, 0.1F, 3);
  const auto run = [&](Backend& backend) {
    const DeviceTensor x(backend, DataType::kBf16, testing::Dense(tokens, kHidden), x_values);
    const DeviceTensor w(backend, DataType::kBf16, testing::Dense(kExperts, kHidden), w_values);
    const DeviceArray<float> bias(backend, bias_values);
    const auto experts = DeviceArray<std::int32_t>::Poisoned(backend, tokens * 8);
    const auto weights = DeviceArray<float>::Poisoned(backend, tokens * 8);
    backend.Gate({.x = x.View(),
                  .weight = w.View(),
                  .bias = bias.AsConstVector(),
                  .groups = 8,
                  .groups_kept = 4,
                  .normalize = true,
                  .scale = 2.5F,
                  .experts = experts.AsMatrix(tokens, 8),
                  .weights = weights.AsMatrix(tokens, 8)});
    return std::pair(experts.Download(), weights.Download());
  };
  const auto actual = run(testing::TestBackend());
  const auto expected = run(Reference());
  CHECK(actual.first == expected.first);
  CHECK(testing::RelativeError(actual.second, ToDoubles(expected.second)) < 5e-6);
}

TEST_CASE("RoutedExperts at full size", "[kernels][real_sizes]") {
  const auto tokens = GENERATE(as<std::int64_t>(), 1, 7, 64);
  constexpr std::int64_t kHidden = 7168;
  constexpr std::int64_t kWidth = 2048;
  constexpr std::int64_t kExperts = 5;
  constexpr std::int64_t kPerToken = 2;
  CAPTURE(tokens);
  const auto x_values = RandomBf16(tokens * kHidden, 1.0F, 1);
  const auto shared_values = RandomBf16(tokens * kHidden, 1.0F, 2);
  static const auto gate_codes = RandomCodes(kExperts * kWidth * kHidden, 3);
  static const auto up_codes = RandomCodes(kExperts * kWidth * kHidden, 4);
  static const auto down_codes = RandomCodes(kExperts * kWidth * kHidden, 5);
  std::vector<float> scales(static_cast<std::size_t>(kExperts * 16 * 56));
  for (std::size_t i = 0; i < scales.size(); ++i) {
    scales[i] = static_cast<float>(2e-4 * (1.0 + 0.1 * static_cast<double>(i % 7)));
  }
  std::vector<std::int32_t> ids;  // the last expert has no rows
  for (std::int64_t t = 0; t < tokens; ++t) {
    ids.push_back(static_cast<std::int32_t>(t % 4));
    ids.push_back(static_cast<std::int32_t>((t * 3 + 1 + t % 4) % 4));
    if (ids.back() == ids[ids.size() - 2]) {
      ids.back() = (ids.back() + 1) % 4;
    }
  }
  const auto weight_values = testing::RandomFloat(tokens * kPerToken, 1.0F, 6);
  const auto run = [&](Backend& backend) {
    const DeviceTensor x(backend, DataType::kBf16, testing::Dense(tokens, kHidden), x_values);
    const DeviceTensor shared(backend, DataType::kBf16, testing::Dense(tokens, kHidden),
                              shared_values);
    const DeviceArray<Fp8E4m3> gate(backend, gate_codes);
    const DeviceArray<Fp8E4m3> up(backend, up_codes);
    const DeviceArray<Fp8E4m3> down(backend, down_codes);
    const DeviceArray<float> weight_scales(backend, scales);
    const DeviceArray<std::int32_t> experts(backend, ids);
    const DeviceArray<float> weights(backend, weight_values);
    const auto y =
        DeviceTensor::Poisoned(backend, DataType::kBf16, testing::Dense(tokens, kHidden));
    const auto stack = [&](const DeviceArray<Fp8E4m3>& codes, std::int64_t rows,
                           std::int64_t cols) {
      return StackedWeight{.data = codes.data(),
                           .type = DataType::kFp8E4m3,
                           .scales = weight_scales.data(),
                           .experts = kExperts,
                           .rows = rows,
                           .cols = cols};
    };
    backend.RoutedExperts({.x = x.View(),
                           .gate = stack(gate, kWidth, kHidden),
                           .up = stack(up, kWidth, kHidden),
                           .down = stack(down, kHidden, kWidth),
                           .experts = experts.AsConstMatrix(tokens, kPerToken),
                           .weights = weights.AsConstMatrix(tokens, kPerToken),
                           .shared = shared.View(),
                           .scale_format = ScaleFormat::kPowerOfTwo,
                           .y = y.View()});
    return y.Download();
  };
  const auto expected = ToDoubles(run(Reference()));
  const auto actual = run(testing::TestBackend());
  // The tensor cores' 14 bits move roundings to bf16, and one in 16 of those a rounding to e4m3,
  // which is 2^-4 of a value.
  CHECK(testing::RelativeError(actual, expected) < 8e-3);
  CHECK(run(testing::TestBackend()) == actual);
}

TEST_CASE("LatentAttention at full size", "[kernels][real_sizes]") {
  const auto heads = GENERATE(as<std::int64_t>(), 8, 64, 128);
  const auto rows_wanted = GENERATE(as<std::int64_t>(), 1, 5, 150);
  const bool is_selected = GENERATE(false, true);
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16);
  CAPTURE(heads, rows_wanted, is_selected, testing::Name(format));
  constexpr std::int64_t kContext = 4096;
  constexpr std::int64_t kSelected = 2048;
  static const testing::PagedLayout layout = testing::ShuffledBlocks(1, kContext / 64, 9);
  const auto make_cache = [](KvFormat wanted) {
    auto cache = testing::EmptyLatents(wanted, layout.blocks);
    for (std::int64_t position = 0; position < kContext; ++position) {
      testing::EncodeLatent(wanted, cache, layout.Slot(0, position),
                            testing::RandomFloat(576, 1.0F, static_cast<std::uint32_t>(position)));
    }
    return cache;
  };
  static const auto fp8_cache = make_cache(KvFormat::kFp8);
  static const auto bf16_cache = make_cache(KvFormat::kBf16);
  testing::RowList rows;
  std::vector<std::int32_t> selected;
  std::vector<std::int32_t> counts;
  std::mt19937 engine(4);
  for (std::int64_t row = 0; row < rows_wanted; ++row) {
    const auto last = static_cast<std::int32_t>(kContext - 1 - row * 17);
    rows.positions.push_back(last);
    rows.sequences.push_back(0);
    std::vector<std::int32_t> keys(static_cast<std::size_t>(last) + 1);
    std::iota(keys.begin(), keys.end(), 0);
    std::shuffle(keys.begin(), keys.end(), engine);
    keys.resize(std::min<std::size_t>(keys.size(), kSelected));
    std::sort(keys.begin(), keys.end());
    counts.push_back(static_cast<std::int32_t>(keys.size()));
    for (std::int32_t& key : keys) {
      key = static_cast<std::int32_t>(layout.Slot(0, key));
    }
    keys.resize(kSelected, -1);
    selected.insert(selected.end(), keys.begin(), keys.end());
  }
  const auto latent_values = RandomBf16(rows_wanted * heads * 512, 0.5F, 1);
  const auto rope_values = RandomBf16(rows_wanted * heads * 64, 0.5F, 2);
  // The last row alone, on the CPU.
  const auto run = [&](Backend& backend, bool last_alone) {
    const std::int64_t count = last_alone ? 1 : rows_wanted;
    const std::int64_t first = rows_wanted - count;
    const auto tail = [&](const auto& values, std::int64_t width) {
      return std::vector(values.begin() + first * width, values.end());
    };
    const testing::RowList own = last_alone ? rows.Only(rows_wanted - 1) : rows;
    const DeviceTensor latent(backend, DataType::kBf16, testing::Dense(count, heads * 512),
                              tail(latent_values, heads * 512));
    const DeviceTensor rope(backend, DataType::kBf16, testing::Dense(count, heads * 64),
                            tail(rope_values, heads * 64));
    const testing::DeviceRows device_rows(backend, own, layout);
    const DeviceArray<std::int32_t> keys(backend, tail(selected, kSelected));
    const DeviceArray<std::int32_t> key_counts(backend, tail(counts, 1));
    const DeviceArray<std::uint8_t> cache(backend,
                                          format == KvFormat::kFp8 ? fp8_cache : bf16_cache);
    const auto o =
        DeviceTensor::Poisoned(backend, DataType::kBf16, testing::Dense(count, heads * 512));
    backend.LatentAttention(
        {.q_latent = latent.Heads(heads),
         .q_rope = rope.Heads(heads),
         .cache = {.data = cache.data(), .blocks = layout.blocks, .format = format},
         .rows = device_rows.View(),
         .selection = is_selected ? KeySelection{.slots = keys.AsConstMatrix(count, kSelected),
                                                 .counts = key_counts.AsConstVector(),
                                                 .mask = {},
                                                 .positions = {}}
                                  : KeySelection{},
         .softmax_scale = 0.05,
         .o_latent = o.Heads(heads)});
    return o.Download();
  };
  const auto actual = run(testing::TestBackend(), false);
  CHECK(std::none_of(actual.begin(), actual.end(), [](float value) { return std::isnan(value); }));
  const auto expected = ToDoubles(run(Reference(), true));
  const std::vector<float> last(actual.end() - heads * 512, actual.end());
  CHECK(testing::RelativeError(last, expected) < 4e-3);
  CHECK(run(testing::TestBackend(), false) == actual);
}

// Keys and values of more heads than scratch holds at a time.
TEST_CASE("MaskedAttention of many heads", "[kernels][masked_attention][real_sizes]") {
  constexpr std::int64_t kTokens = 150;
  constexpr std::int64_t kContext = 1000;
  constexpr std::int64_t kHeads = 72;
  ScratchLimits limits = testing::kTestLimits;
  limits.heads = kHeads;
  auto made = CudaBackend::Make(0);
  REQUIRE(made.ok());
  const std::unique_ptr<CudaBackend> cuda = std::move(made).value();
  REQUIRE(cuda->ReserveScratch(limits).ok());
  const testing::PagedLayout layout = testing::ShuffledBlocks(1, (kContext + 63) / 64, 19);
  auto cache_values = testing::EmptyLatents(KvFormat::kFp8, layout.blocks);
  testing::RowList rows;
  for (std::int64_t position = 0; position < kContext; ++position) {
    testing::EncodeLatent(KvFormat::kFp8, cache_values, layout.Slot(0, position),
                          testing::RandomFloat(576, 1.0F, static_cast<std::uint32_t>(position)));
    if (position >= kContext - kTokens) {
      rows.positions.push_back(static_cast<std::int32_t>(position));
      rows.sequences.push_back(0);
    }
  }
  std::mt19937_64 engine(20);
  std::vector<std::uint64_t> bits(static_cast<std::size_t>(kTokens * layout.blocks_each));
  for (std::size_t i = 0; i < bits.size(); ++i) {
    const auto words = static_cast<std::size_t>(layout.blocks_each);
    const std::int64_t seen =
        rows.positions[i / words] + 1 - static_cast<std::int64_t>(i % words * 64);
    bits[i] = seen >= 64 ? engine() : seen <= 0 ? 0 : engine() & ((std::uint64_t{1} << seen) - 1);
  }
  const auto q_values = RandomBf16(kTokens * kHeads * 192, 1.0F, 21);
  const auto uk_values = RandomBf16(kHeads * 128 * 512, 0.05F, 22);
  const auto uv_values = RandomBf16(kHeads * 128 * 512, 0.05F, 23);
  const auto run = [&](Backend& backend) {
    const DeviceTensor q(backend, DataType::kBf16, testing::Dense(kTokens, kHeads * 192), q_values);
    const DeviceTensor w_uk(backend, DataType::kBf16, testing::Dense(kHeads * 128, 512), uk_values);
    const DeviceTensor w_uv(backend, DataType::kBf16, testing::Dense(kHeads * 128, 512), uv_values);
    const testing::DeviceRows device_rows(backend, rows, layout);
    const DeviceArray<std::uint64_t> mask(backend, bits);
    const DeviceArray<std::uint8_t> cache(backend, cache_values);
    const auto o =
        DeviceTensor::Poisoned(backend, DataType::kBf16, testing::Dense(kTokens, kHeads * 128));
    backend.MaskedAttention(
        {.q = q.Heads(kHeads),
         .w_uk = HeadWeight(w_uk, kHeads, 128),
         .w_uv = HeadWeight(w_uv, kHeads, 128),
         .cache = {.data = cache.data(), .blocks = layout.blocks, .format = KvFormat::kFp8},
         .rows = device_rows.View(),
         .selection = {.slots = {},
                       .counts = {},
                       .mask = mask.AsConstMatrix(kTokens, layout.blocks_each),
                       .positions = {}},
         .softmax_scale = 0.06,
         .o = o.Heads(kHeads)});
    return o.Download();
  };
  const auto actual = run(*cuda);
  CHECK(testing::RelativeError(actual, ToDoubles(run(Reference()))) < 4e-3);
  CHECK(run(*cuda) == actual);
}

TEST_CASE("Sample at full size", "[kernels][real_sizes]") {
  constexpr std::int64_t kVocabulary = 129280;
  constexpr std::int64_t kRows = 64;
  std::mt19937 engine(5);
  std::vector<float> logit_values = testing::RandomFloat(kRows * kVocabulary, 3.0F, 1);
  std::vector<SamplingRow> rows;
  std::vector<LogitAdjustment> adjustments;
  std::vector<std::uint64_t> masks(static_cast<std::size_t>(kVocabulary / 64));
  for (std::uint64_t& word : masks) {
    word = engine() | static_cast<std::uint64_t>(engine()) << 32;
  }
  for (std::int64_t i = 0; i < kRows; ++i) {
    const auto first = static_cast<std::int32_t>(adjustments.size());
    for (std::int32_t id = static_cast<std::int32_t>(i); i % 4 == 1 && id < kVocabulary; id += 9) {
      adjustments.push_back({.id = id, .add = -0.5F, .repetition = 1.2F});
    }
    rows.push_back({.temperature = i % 8 == 7 ? 0.0F : 0.3F * static_cast<float>(1 + i % 5),
                    .min_p = i % 3 == 0 ? 0.02F : 0.0F,
                    .top_p = i % 5 == 0 ? 1.0F : 0.9F,
                    .top_k = i % 7 == 0   ? 50
                             : i % 7 == 1 ? 100000
                                          : 0,
                    .seed = engine(),
                    .position = i,
                    .adjustments_first = first,
                    .adjustments_count = static_cast<std::int32_t>(adjustments.size()) - first,
                    .top_logprobs = static_cast<std::int32_t>(i % 21),
                    .mask = i % 6 == 0 ? 0 : -1});
  }
  struct Outputs {
    std::vector<std::int32_t> tokens, top_ids, faults;
    std::vector<float> logprobs, top_logprobs;
  };
  const auto run = [&](Backend& backend) {
    const DeviceArray<float> logits(backend, logit_values);
    std::vector<std::int32_t> own(kRows);
    std::iota(own.begin(), own.end(), 0);
    const DeviceArray<std::int32_t> logit_rows(backend, own);
    const DeviceArray<SamplingRow> wanted(backend, rows);
    const DeviceArray<LogitAdjustment> changes(backend, adjustments);
    const DeviceArray<std::uint64_t> mask(backend, masks);
    const auto tokens = DeviceArray<std::int32_t>::Poisoned(backend, kRows);
    const auto logprobs = DeviceArray<float>::Poisoned(backend, kRows);
    const auto top_ids = DeviceArray<std::int32_t>::Poisoned(backend, kRows * kTopLogprobsMax);
    const auto top_logprobs = DeviceArray<float>::Poisoned(backend, kRows * kTopLogprobsMax);
    const DeviceArray<std::int32_t> faults(backend, std::vector<std::int32_t>(kRows, 0));
    backend.Sample({.logits = logits.AsConstMatrix(kRows, kVocabulary),
                    .logit_rows = logit_rows.AsConstVector(),
                    .rows = wanted.AsConstVector(),
                    .adjustments = changes.AsConstVector(),
                    .masks = mask.AsConstMatrix(1, kVocabulary / 64),
                    .vocabulary_limit = 128900,
                    .tokens = tokens.AsVector(),
                    .logprobs = logprobs.AsVector(),
                    .top_ids = top_ids.AsMatrix(kRows, kTopLogprobsMax),
                    .top_logprobs = top_logprobs.AsMatrix(kRows, kTopLogprobsMax),
                    .faults = faults.AsVector()});
    return Outputs{.tokens = tokens.Download(),
                   .top_ids = top_ids.Download(),
                   .faults = faults.Download(),
                   .logprobs = logprobs.Download(),
                   .top_logprobs = top_logprobs.Download()};
  };
  const Outputs actual = run(testing::TestBackend());
  const Outputs expected = run(Reference());
  CHECK(actual.tokens == expected.tokens);
  CHECK(actual.top_ids == expected.top_ids);
  CHECK(actual.faults == expected.faults);
  CHECK(testing::RelativeError(actual.logprobs, ToDoubles(expected.logprobs)) < 1e-6);
  CHECK(testing::RelativeError(actual.top_logprobs, ToDoubles(expected.top_logprobs)) < 1e-6);
}

}  // namespace dsa::real_sizes_test
