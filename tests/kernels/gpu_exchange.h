// What ranks exchange in tests of Dispatch and Combine, as GPUs and as threads.
#pragma once

#include "kernels/backend.h"
#include "kernels/comm/collectives.h"
#include "tests/testing.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

namespace dsa::testing {

enum class Experts { kEven, kUneven, kFirstHasNone };
enum class Routing { kAny, kToOne };
enum class Fault { kNone, kOtherOrder, kStaleRouting };

struct Exchange {
  int ranks;
  std::int64_t tokens;
  std::int64_t hidden = 7168;
  DataType type = DataType::kBf16;
  int copies = 1;
  std::int64_t per_token = 8;
  Experts experts = Experts::kEven;
  Routing routing = Routing::kAny;
  bool counts_live = false;  // padding by live_rows, whose ids are of experts
  bool has_shared = true;
  Fault fault = Fault::kNone;

  std::int64_t senders() const { return ranks / copies; }
  std::int64_t rows() const { return senders() * tokens; }
  std::int64_t pairs() const { return rows() * per_token; }
};

inline constexpr std::int64_t kExperts = 256;

inline ExpertRange RangeOf(const Exchange& e, int rank) {
  const auto border = [&](std::int64_t at) {
    switch (e.experts) {
      case Experts::kEven: return kExperts * at / e.ranks;
      case Experts::kUneven: return at == e.ranks ? kExperts : at * 11;
      case Experts::kFirstHasNone:
        return at == 0 ? 0 : kExperts * (at - 1) / std::max(1, e.ranks - 1);
    }
    return std::int64_t{0};
  };
  if (e.ranks == 1) {
    return {.first = 0, .count = kExperts};
  }
  const std::int64_t first = border(rank);
  return {.first = first, .count = border(rank + 1) - first};
}

// What the ranks have in a round; those of a sender the same.
struct RankData {
  RankData(const Exchange& e, int rank, int round)
      : x(Values(e, e.tokens, 1 + Seed(e, rank, round))),
        shared(Values(e, e.tokens, 2 + Seed(e, rank, round))),
        contributions(Values(e, e.pairs(), static_cast<unsigned>(500 + rank * 31 + round))) {
    std::mt19937 random(3 + Seed(e, rank, round));
    std::vector<std::int32_t> ids(kExperts);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ids[i] = static_cast<std::int32_t>(i);
    }
    live = static_cast<std::int32_t>(random() % static_cast<unsigned>(e.tokens + 1));
    for (std::int64_t t = 0; t < e.tokens; ++t) {
      std::shuffle(ids.begin(), ids.end(), random);
      for (std::int64_t k = 0; k < e.per_token; ++k) {
        const auto to_one = static_cast<std::int32_t>(kExperts - 1 - k);
        const bool is_padding = !e.counts_live && t >= live + 1;
        experts.push_back(is_padding                     ? -1
                          : e.routing == Routing::kToOne ? to_one
                                                         : ids[static_cast<std::size_t>(k)]);
        weights.push_back(0.1F + static_cast<float>(random() % 1000) / 700.0F);
      }
    }
  }

  static unsigned Seed(const Exchange& e, int rank, int round) {
    return static_cast<unsigned>(rank / e.copies * 1000 + round * 10);
  }
  // Of any bits, words that no value has while it is on its way included.
  static std::vector<std::byte> Values(const Exchange& e, std::int64_t rows, unsigned seed) {
    const auto count = static_cast<std::size_t>(rows * e.hidden);
    std::vector<std::byte> bytes(count * static_cast<std::size_t>(SizeOf(e.type)));
    std::mt19937 random(seed);
    for (std::size_t i = 0; i < count; ++i) {
      const float value = static_cast<float>(static_cast<int>(random() % 20'001) - 10'000) / 640.0F;
      if (e.type == DataType::kF32) {
        std::memcpy(bytes.data() + i * sizeof(value), &value, sizeof(value));
      } else {
        const Bf16 narrow = ToBf16(value);
        std::memcpy(bytes.data() + i * sizeof(narrow), &narrow, sizeof(narrow));
      }
    }
    return bytes;
  }

  std::vector<std::byte> x;
  std::vector<std::byte> shared;
  std::vector<std::byte> contributions;
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
  std::int32_t live = 0;
};

// Device memory of a rank.
struct Operands {
  Operands(Backend& backend, const Exchange& exchange) : e(exchange) {
    const auto row_bytes = static_cast<std::size_t>(e.hidden * SizeOf(e.type));
    const auto tokens = static_cast<std::size_t>(e.tokens);
    const auto choices = static_cast<std::size_t>(e.per_token) * 4;
    const auto senders = static_cast<std::size_t>(e.senders());
    x = backend.Allocate(tokens * row_bytes).value();
    y = backend.Allocate(tokens * row_bytes).value();
    rows = backend.Allocate(senders * tokens * row_bytes).value();
    contributions = backend.Allocate(static_cast<std::size_t>(e.pairs()) * row_bytes).value();
    experts = backend.Allocate(tokens * choices).value();
    weights = backend.Allocate(tokens * choices).value();
    row_experts = backend.Allocate(senders * tokens * choices).value();
    live_rows = backend.Allocate(4).value();
  }

  AnyMatrix View(const DeviceBuffer& buffer, std::int64_t count) const {
    return {buffer.data(), e.type, count, e.hidden, e.hidden};
  }
  Vector<const std::int32_t> LiveRows() const {
    return {.data = e.counts_live ? live_rows.As<const std::int32_t>() : nullptr, .size = 1};
  }
  DispatchParams ToDispatch(int rank) const {
    return {.x = View(x, e.tokens),
            .experts = {experts.As<const std::int32_t>(), e.tokens, e.per_token, e.per_token},
            .live_rows = LiveRows(),
            .here = RangeOf(e, rank),
            .copies = e.copies,
            .rows = View(rows, e.rows()),
            .row_experts = {row_experts.As<std::int32_t>(), e.rows(), e.per_token, e.per_token}};
  }
  CombineParams ToCombine(int rank) const {
    return {
        .contributions = View(contributions, e.pairs()),
        .row_experts = {row_experts.As<const std::int32_t>(), e.rows(), e.per_token, e.per_token},
        .experts = {experts.As<const std::int32_t>(), e.tokens, e.per_token, e.per_token},
        .live_rows = LiveRows(),
        .weights = {weights.As<const float>(), e.tokens, e.per_token, e.per_token},
        .here = RangeOf(e, rank),
        .copies = e.copies,
        .shared =
            e.has_shared ? View(y, e.tokens) : AnyMatrix{nullptr, e.type, 0, 0, 0},  // aliases y
        .y = View(y, e.tokens)};
  }
  void Upload(Backend& backend, const RankData& data) {
    const auto copy = [&](const DeviceBuffer& to, const auto& from) {
      backend.CopyToDevice(to.data(), from.data(), from.size() * sizeof(from[0]));
    };
    copy(x, data.x);
    copy(y, data.shared);
    copy(contributions, data.contributions);
    copy(experts, data.experts);
    copy(weights, data.weights);
    backend.CopyToDevice(live_rows.data(), &data.live, sizeof(data.live));
  }

  const Exchange e;
  DeviceBuffer x, y, rows, contributions, experts, weights, row_experts, live_rows;
};

template <typename T>
void Append(Backend& backend, const DeviceBuffer& from, std::vector<T>& to) {
  const std::size_t before = to.size();
  to.resize(before + from.bytes() / sizeof(T));
  backend.Synchronize();  // a copy to pageable memory keeps others from queueing while it waits
  backend.CopyToHost(to.data() + before, from.data(), from.bytes());
  backend.Synchronize();
}

}  // namespace dsa::testing
