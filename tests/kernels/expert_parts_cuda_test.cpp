// Parts of sums of experts, where ranks that are GPUs exchange few rows.
#include "kernels/comm/collectives.h"
#include "tests/kernels/gpu_exchange.h"
#include "tests/kernels/gpu_ranks.h"

#include <algorithm>
#include <vector>

namespace dsa::testing {
namespace {

constexpr int kRounds = 3;

}  // namespace

// Few rows whose experts leave sums: added in the order of ranks, the shared expert's last, rounded
// once; weights go along.
TEST_CASE("GPUs add parts of experts in the order of ranks", "[collectives][exchange]") {
  const int ranks = GENERATE(1, 2, 3, 4);
  const int copies = GENERATE(1, 2);
  const auto tokens = GENERATE(as<std::int64_t>(), 1, 7, 64);
  if (!Fit(ranks) || ranks % copies != 0 || (ranks == copies && ranks > 1)) {
    return;
  }
  const Exchange e{.ranks = ranks,
                   .tokens = tokens,
                   .hidden = tokens == 64 ? 7168 : 1000,
                   .copies = copies,
                   .experts = Experts::kUneven,
                   .counts_live = tokens == 7};
  GpuRanks all(ranks, ranks / copies);
  std::vector<int> wrong(static_cast<std::size_t>(ranks));
  const auto part_of = [&](int rank, std::int64_t row, std::int64_t d, int round) {
    const std::int64_t i = row * e.hidden + d + rank * 77 + round * 31;
    return static_cast<float>(i % 1009) * (i % 3 == 0 ? 0x1p20F : 0.37F) * (i % 2 == 0 ? 1 : -1);
  };
  all.Run([&](int rank, CudaBackend& backend) {
    const auto values = static_cast<std::size_t>(e.rows() * e.hidden);
    const DeviceBuffer parts = backend.Allocate(values * sizeof(float)).value();
    const DeviceBuffer row_weights =
        backend.Allocate(static_cast<std::size_t>(e.rows() * e.per_token) * 4).value();
    for (int round = 0; round < kRounds; ++round) {
      Operands operands(backend, e);
      const RankData data(e, rank, round);
      operands.Upload(backend, data);
      std::vector<float> own(values);
      for (std::size_t i = 0; i < values; ++i) {
        const auto at = static_cast<std::int64_t>(i);
        own[i] = part_of(rank, at / e.hidden, at % e.hidden, round);
      }
      backend.CopyToDevice(parts.data(), own.data(), values * sizeof(float));
      DispatchParams dispatch = operands.ToDispatch(rank);
      dispatch.weights = operands.ToCombine(rank).weights;
      dispatch.row_weights = {row_weights.As<float>(), e.rows(), e.per_token, e.per_token};
      backend.Dispatch(dispatch);
      CombineParams combine = operands.ToCombine(rank);
      combine.parts = {parts.data(), DataType::kF32, e.rows(), e.hidden, e.hidden};
      backend.Combine(combine);
      std::vector<Bf16> y;
      std::vector<std::int32_t> came;
      std::vector<float> weights;
      Append(backend, operands.y, y);
      Append(backend, operands.row_experts, came);
      Append(backend, row_weights, weights);
      int& faults = wrong[static_cast<std::size_t>(rank)];
      std::vector<RankData> sent;
      for (int sender = 0; sender < static_cast<int>(e.senders()); ++sender) {
        sent.emplace_back(e, sender * copies, round);
      }
      for (std::int64_t row = 0; row < e.rows(); ++row) {
        const std::vector<float>& of_sender = sent[static_cast<std::size_t>(row / tokens)].weights;
        for (std::int64_t k = 0; k < e.per_token; ++k) {
          const auto pair = static_cast<std::size_t>(row * e.per_token + k);
          const float weight = of_sender[static_cast<std::size_t>(row % tokens * e.per_token + k)];
          faults += came[pair] >= 0 && weights[pair] != weight ? 1 : 0;
        }
      }
      const std::int64_t sender = rank / copies;
      const auto* const shared = reinterpret_cast<const Bf16*>(data.shared.data());
      for (std::int64_t t = 0; t < tokens; ++t) {
        std::vector<int> adding;
        for (int other = 0; other < ranks; ++other) {
          const ExpertRange range = RangeOf(e, other);
          const auto first = data.experts.begin() + t * e.per_token;
          if ((!e.counts_live || t < data.live) &&
              std::any_of(first, first + e.per_token, [&](std::int32_t id) {
                return id >= range.first && id < range.first + range.count;
              })) {
            adding.push_back(other);
          }
        }
        for (std::int64_t d = 0; d < e.hidden; ++d) {
          float sum = 0.0F;
          for (const int other : adding) {
            sum += part_of(other, sender * tokens + t, d, round);
          }
          const auto at = static_cast<std::size_t>(t * e.hidden + d);
          faults += ToFloat(y[at]) == ToFloat(ToBf16(sum + ToFloat(shared[at]))) ? 0 : 1;
        }
      }
    }
  });
  CHECK(all.group.failure().empty());
  CHECK(std::all_of(wrong.begin(), wrong.end(), [](int count) { return count == 0; }));
}

}  // namespace dsa::testing
