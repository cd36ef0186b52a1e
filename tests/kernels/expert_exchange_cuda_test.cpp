// Dispatch and Combine of ranks that are GPUs beside the same ops of threads: the same bits, rows
// that are kept included, whichever way rows go, eager and in graphs, whatever was called before.
#include "kernels/comm/collectives.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/kernels/gpu_exchange.h"
#include "tests/kernels/gpu_ranks.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace dsa::testing {
namespace {

// All that a rank got.
struct Received {
  std::vector<std::byte> rows;
  std::vector<std::int32_t> row_experts;
  std::vector<std::byte> y;
  friend bool operator==(const Received&, const Received&) = default;
};

constexpr int kRounds = 3;

Received RunRank(const std::vector<Exchange>& calls, int rank, Backend& backend) {
  Received all;
  for (int round = 0; round < kRounds; ++round) {
    for (const Exchange& e : calls) {
      Operands operands(backend, e);
      backend.Zero(operands.rows.data(), operands.rows.bytes());
      const bool is_stale = e.fault == Fault::kStaleRouting && rank == 0 && round > 0;
      RankData data(e, rank, round);
      if (is_stale) {
        data.experts = RankData(e, rank, round - 1).experts;
      }
      if (e.fault == Fault::kOtherOrder && rank == 0) {
        std::reverse(data.experts.begin(), data.experts.begin() + e.per_token);
        std::reverse(data.weights.begin(), data.weights.begin() + e.per_token);
      }
      operands.Upload(backend, data);
      backend.Dispatch(operands.ToDispatch(rank));
      backend.Combine(operands.ToCombine(rank));
      Append(backend, operands.rows, all.rows);
      Append(backend, operands.row_experts, all.row_experts);
      Append(backend, operands.y, all.y);
    }
  }
  return all;
}

std::vector<Received> OnThreads(const std::vector<Exchange>& calls) {
  const int ranks = calls.front().ranks;
  ThreadGroup group(ranks, ranks / calls.front().copies);
  std::vector<Received> all(static_cast<std::size_t>(ranks));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      CpuBackend backend(1, CpuSeat{.group = &group, .rank = rank});
      const Status status = backend.ReserveScratch({.tokens_max = 4096,
                                                    .context_max = 64,
                                                    .masked_context_max = 0,
                                                    .hidden = 7168,
                                                    .heads = 1,
                                                    .nope = 64,
                                                    .value = 64,
                                                    .index_heads = 0,
                                                    .index_topk = 0,
                                                    .experts = 1,
                                                    .experts_per_token = 1,
                                                    .expert_width = 64,
                                                    .linear_width_max = 64,
                                                    .logit_rows_max = 1,
                                                    .vocabulary = 8});
      if (status.ok()) {
        all[static_cast<std::size_t>(rank)] = RunRank(calls, rank, backend);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  return all;
}

// Whether every rank got what threads get, in calls one behind the other.
bool ExchangeIsRight(std::vector<Exchange> calls) {
  const int ranks = calls.front().ranks;
  GpuRanks all(ranks, ranks / calls.front().copies);
  std::vector<Received> got(static_cast<std::size_t>(ranks));
  all.Run([&](int rank, CudaBackend& backend) {
    got[static_cast<std::size_t>(rank)] = RunRank(calls, rank, backend);
  });
  for (Exchange& e : calls) {
    e.fault = Fault::kNone;
  }
  CHECK(all.group.failure().empty());
  return got == OnThreads(calls);
}

}  // namespace

TEST_CASE("GPUs exchange rows of experts as threads do", "[collectives][exchange]") {
  const int ranks = GENERATE(1, 2, 3, 4, 5);
  const auto experts = GENERATE(Experts::kEven, Experts::kUneven, Experts::kFirstHasNone);
  const auto routing = GENERATE(Routing::kAny, Routing::kToOne);
  CAPTURE(ranks, static_cast<int>(experts), static_cast<int>(routing));
  if (!Fit(ranks)) {
    return;
  }
  Exchange one{.ranks = ranks, .tokens = 1, .experts = experts, .routing = routing};
  Exchange few = one;
  few.tokens = 9;
  few.hidden = 1024;
  few.counts_live = true;
  Exchange wide = few;  // of no multiple of 16 bytes
  wide.hidden = 1001;
  wide.has_shared = false;
  Exchange many = one;
  many.tokens = 270;
  many.hidden = 128;
  Exchange floats = few;
  floats.type = DataType::kF32;
  floats.per_token = 3;
  floats.hidden = 300;
  CHECK(ExchangeIsRight({one, few, wide, many, floats, few}));
}

// As lines and by shares, and by lines there and by shares back.
TEST_CASE("GPUs exchange rows of DeepSeek-V3's size", "[collectives][exchange]") {
  if (!Fit(2, 2)) {
    return;
  }
  const auto type = GENERATE(DataType::kBf16, DataType::kF32);
  std::vector<Exchange> calls;
  for (const std::int64_t tokens : {64, 128, 8, 257, 64}) {
    calls.push_back({.ranks = 2,
                     .tokens = tokens,
                     .hidden = tokens == 257 ? 2048 : 7168,
                     .type = type,
                     .counts_live = tokens == 64});
  }
  CHECK(ExchangeIsRight(calls));
}

TEST_CASE("GPUs of which several have the same rows exchange them", "[collectives][exchange]") {
  const auto tokens = GENERATE(as<std::int64_t>(), 7, 270);
  if (!Fit(4)) {
    return;
  }
  CHECK(ExchangeIsRight({{.ranks = 4, .tokens = tokens, .hidden = 512, .copies = 2}}));
}

TEST_CASE("GPUs that add experts in another order or by a stale routing are seen",
          "[collectives][exchange]") {
  const Exchange right{.ranks = 2, .tokens = 9, .hidden = 1024};
  Exchange other_order = right;
  other_order.fault = Fault::kOtherOrder;
  Exchange stale = right;
  stale.fault = Fault::kStaleRouting;
  CHECK_FALSE(ExchangeIsRight({other_order}));
  CHECK_FALSE(ExchangeIsRight({stale}));
}

// NaN come as NaN, also those that an empty place has.
TEST_CASE("GPUs send values of every kind", "[collectives][exchange]") {
  constexpr Exchange kOne{
      .ranks = 2, .tokens = 2, .hidden = 64, .type = DataType::kF32, .per_token = 1};
  GpuRanks all(2, 2);
  std::vector<float> got[2];
  all.Run([&](int rank, CudaBackend& backend) {
    Operands operands(backend, kOne);
    RankData data(kOne, rank, 0);
    std::memset(data.x.data(), 0xFF, data.x.size());
    std::memset(data.contributions.data(), 0xFF, data.contributions.size());
    data.live = 2;
    data.experts = {0, 255};
    operands.Upload(backend, data);
    backend.Dispatch(operands.ToDispatch(rank));
    backend.Combine(operands.ToCombine(rank));
    Append(backend, operands.y, got[rank]);
    std::vector<float> rows;
    Append(backend, operands.rows, rows);
    const std::int64_t row = rank == 0 ? 2 : 1;  // that came from the other one
    got[rank].insert(got[rank].end(), rows.begin() + row * 64, rows.begin() + (row + 1) * 64);
  });
  CHECK(all.group.failure().empty());
  for (const std::vector<float>& values : got) {
    CHECK(values.size() == 3 * 64);
    CHECK(std::all_of(values.begin(), values.end(), [](float value) { return value != value; }));
  }
}

// Sixteen exchanges, in each of which the rows of the one before are tripled by experts that are
// elsewhere: what a rank sends too late or overwrites too early comes back wrong.
TEST_CASE("GPUs repeat recorded chains of exchanges", "[collectives][exchange]") {
  const auto tokens = GENERATE(as<std::int64_t>(), 1, 8, 64, 260);
  constexpr int kRanks = 2;
  constexpr int kChain = 16;
  constexpr int kReplays = 25;
  constexpr GraphId kGraph{1};
  if (!Fit(kRanks, kRanks)) {
    return;
  }
  const Exchange e{.ranks = kRanks,
                   .tokens = tokens,
                   .type = DataType::kF32,
                   .per_token = 1,
                   .has_shared = false};
  GpuRanks all(kRanks, kRanks);
  int wrong[kRanks] = {};
  all.Run([&](int rank, CudaBackend& backend) {
    std::vector<Operands> links;
    for (int link = 0; link < kChain; ++link) {
      links.emplace_back(backend, e);
      RankData data(e, rank, link);
      for (std::int64_t t = 0; t < tokens; ++t) {
        data.experts[static_cast<std::size_t>(t)] =
            static_cast<std::int32_t>((t * 37 + link * 61 + rank * 5) % kExperts);
      }
      data.weights.assign(static_cast<std::size_t>(tokens), 3.0F);
      links.back().Upload(backend, data);
    }
    backend.Record(kGraph, [&] {
      for (int link = 0; link < kChain; ++link) {
        const Operands& own = links[static_cast<std::size_t>(link)];
        const Operands& next = links[static_cast<std::size_t>((link + 1) % kChain)];
        backend.Dispatch(own.ToDispatch(rank));
        CombineParams combine = own.ToCombine(rank);
        combine.contributions = own.View(own.rows, e.rows());  // with one choice, a pair is a row
        combine.y = next.View(next.x, tokens);
        backend.Combine(combine);
      }
    });
    all.together.arrive_and_wait();
    std::vector<std::byte> start = RankData(e, rank, 77).x;
    std::vector<float> expected(start.size() / sizeof(float));
    for (int replay = 0; replay < kReplays; ++replay) {
      if (replay % 5 == 0) {
        backend.CopyToDevice(links[0].x.data(), start.data(), start.size());
        std::memcpy(expected.data(), start.data(), start.size());
      }
      backend.Replay(kGraph);
      for (float& value : expected) {
        for (int link = 0; link < kChain; ++link) {
          value *= 3.0F;
        }
      }
      if (replay % 5 >= 3) {
        std::vector<float> got;
        Append(backend, links[0].x, got);
        wrong[rank] += got == expected ? 0 : 1;
      }
    }
  });
  CHECK(all.group.failure().empty());
  CHECK(wrong[0] == 0);
  CHECK(wrong[1] == 0);
}

TEST_CASE("GPUs that exchange other rows end the group, and nobody waits",
          "[collectives][exchange]") {
  GpuRanks all(3, 3);
  all.Run([&](int rank, CudaBackend& backend) {
    const Operands operands(backend, {.ranks = 3, .tokens = rank == 1 ? 3 : 4, .hidden = 64});
    backend.Dispatch(operands.ToDispatch(rank));
    if (all.group.failure().empty()) {
      backend.Combine(operands.ToCombine(rank));
    }
  });
  CHECK(all.group.failure().find("Dispatch [3, 64]") != std::string::npos);
}

// Side by side: rank 1's kernel must end while those of the others, on its device, wait.
TEST_CASE("GPUs that exchange with one that fails are released",
          "[collectives][exchange][side_by_side]") {
  const auto tokens = GENERATE(as<std::int64_t>(), 5, 270);
  const bool fails_between = GENERATE(false, true);
  GpuRanks all(3, 3);
  all.Run([&](int rank, CudaBackend& backend) {
    const Exchange e{.ranks = 3, .tokens = tokens, .hidden = 512};
    Operands operands(backend, e);
    RankData data(e, rank, 0);
    operands.Upload(backend, data);
    backend.Record(GraphId{0}, [&] { backend.Dispatch(operands.ToDispatch(rank)); });
    backend.Record(GraphId{1}, [&] { backend.Combine(operands.ToCombine(rank)); });
    all.together.arrive_and_wait();
    if (rank != 1 || fails_between) {
      backend.Replay(GraphId{0});
    }
    if (rank == 1) {
      backend.Synchronize();
      all.group.Fail("rank 1: planted");
    } else {
      backend.Replay(GraphId{1});
      backend.Synchronize();
    }
  });
  CHECK(all.group.failure() == "rank 1: planted");
}

}  // namespace dsa::testing
