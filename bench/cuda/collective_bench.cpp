// dsa_collective_bench [RANKS [exchange]]: AllReduce and AllGather of ranks on a GPU each, through
// their memory and over NCCL, beside the bare calls of NCCL with the same communicators, where its
// library is found; Dispatch and Combine of as many ranks with rows of their own, or those
// alone.
//
// A chain of 16 is recorded on each rank and replayed; the time of one is the chain's by the events
// of the slowest rank.  Sums of float32 are what NCCL leaves; those of bfloat16 are what a model
// asks for, which over NCCL takes another launch.
#include "common/check.h"
#include "kernels/comm/collectives.h"
#include "kernels/comm/thread_group.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/nccl.h"

#include <algorithm>
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr int kChain = 16;
constexpr int kReplays = 40;
constexpr std::int64_t kHidden = 7168;
constexpr std::int64_t kVocabulary = 129280;

template <typename T>
T Must(Result<T>&& result) {
  DSA_CHECK(result.ok(), "{}", std::string_view(result.error().message));
  return std::move(result).value();
}

enum class Through { kPeers, kNccl };

class Ranks final {
 public:
  Ranks(Through through, int ranks, int parts = 1) : group_(ranks, parts), together_(ranks) {
    std::vector<CudaBackend*> joined;
    for (int rank = 0; rank < ranks; ++rank) {
      backends_.push_back(Must(CudaBackend::Make(rank)));
      joined.push_back(backends_.back().get());
    }
    const Status status = through == Through::kPeers ? CudaBackend::JoinPeers(joined, group_)
                                                     : CudaBackend::JoinNccl(joined, group_);
    DSA_CHECK(status.ok(), "{}", std::string_view(status.error().message));
  }

  int count() const { return static_cast<int>(backends_.size()); }
  CudaBackend& At(int rank) { return *backends_[static_cast<std::size_t>(rank)]; }

  // Median us of one of `count` calls that queue(rank) records.
  double Time(int count, const std::function<void(int)>& queue) {
    std::vector<std::vector<float>> times(backends_.size());
    OnAll([&](int rank) {
      CudaBackend& backend = At(rank);
      backend.Record(GraphId{0}, [&] { queue(rank); });
      cudaEvent_t begin = nullptr;
      cudaEvent_t end = nullptr;
      DSA_CUDA_CHECK(cudaEventCreate(&begin));
      DSA_CUDA_CHECK(cudaEventCreate(&end));
      for (int replay = 0; replay < kReplays; ++replay) {
        together_.arrive_and_wait();
        backend.Replay(GraphId{0});  // brings the ranks together on the devices
        DSA_CUDA_CHECK(cudaEventRecord(begin, backend.stream()));
        backend.Replay(GraphId{0});
        DSA_CUDA_CHECK(cudaEventRecord(end, backend.stream()));
        backend.Synchronize();
        float ms = 0;
        DSA_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
        times[static_cast<std::size_t>(rank)].push_back(ms * 1e3F / static_cast<float>(count));
      }
      DSA_CUDA_CHECK(cudaEventDestroy(begin));
      DSA_CUDA_CHECK(cudaEventDestroy(end));
    });
    std::vector<float> slowest = times.front();
    for (const std::vector<float>& of_rank : times) {
      std::transform(slowest.begin(), slowest.end(), of_rank.begin(), slowest.begin(),
                     [](float a, float b) { return std::max(a, b); });
    }
    std::sort(slowest.begin(), slowest.end());
    return slowest[slowest.size() / 2];
  }

  void OnAll(const std::function<void(int)>& body) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < count(); ++rank) {
      threads.emplace_back([&, rank] {
        At(rank).BindThread();
        body(rank);
        At(rank).Synchronize();
      });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
  }

 private:
  ThreadGroup group_;
  std::barrier<> together_;
  std::vector<std::unique_ptr<CudaBackend>> backends_;
};

struct Buffers {
  DeviceBuffer partial;
  DeviceBuffer sum;
};

// Operands on every rank; zero.
std::vector<Buffers> MakeBuffers(Ranks& ranks) {
  constexpr std::int64_t kRowsMax = 4096;
  std::vector<Buffers> buffers(static_cast<std::size_t>(ranks.count()));
  ranks.OnAll([&](int rank) {
    Buffers& own = buffers[static_cast<std::size_t>(rank)];
    constexpr auto kBytes = static_cast<std::size_t>(kRowsMax * kHidden) * sizeof(float);
    own.partial = Must(ranks.At(rank).Allocate(kBytes));
    own.sum = Must(ranks.At(rank).Allocate(kBytes));
    ranks.At(rank).Zero(own.partial.data(), kBytes);
  });
  return buffers;
}

double TimeAllReduce(Ranks& ranks, const std::vector<Buffers>& buffers, std::int64_t rows,
                     DataType type) {
  const auto queue = [&](int rank) {
    const Buffers& own = buffers[static_cast<std::size_t>(rank)];
    ranks.At(rank).AllReduce(
        {.partial = {own.partial.data(), DataType::kF32, rows, kHidden, kHidden},
         .sum = {own.sum.data(), type, rows, kHidden, kHidden}});
  };
  ranks.OnAll(queue);  // loads
  return ranks.Time(kChain, [&](int rank) {
    for (int i = 0; i < kChain; ++i) {
      queue(rank);
    }
  });
}

double TimeAllGather(Ranks& ranks, const std::vector<Buffers>& buffers, std::int64_t rows) {
  const std::int64_t part = kVocabulary / ranks.count();
  const std::int64_t whole = part * ranks.count();
  const auto queue = [&](int rank) {
    const Buffers& own = buffers[static_cast<std::size_t>(rank)];
    ranks.At(rank).AllGather({.part = {own.partial.data(), DataType::kF32, rows, part, part},
                              .whole = {own.sum.data(), DataType::kF32, rows, whole, whole}});
  };
  ranks.OnAll(queue);
  return ranks.Time(1, queue);
}

// NCCL's calls and nothing else, on the streams of ranks that meet otherwise.
struct BareNccl {
  Ranks& ranks;
  const std::vector<Buffers>& buffers;
  cuda::NcclGroup& group;

  double Time(int count, const std::function<bool(int rank, const Buffers& own)>& queue) const {
    const auto checked = [&](int rank) {
      DSA_CHECK(queue(rank, buffers[static_cast<std::size_t>(rank)]), "NCCL: rank {}", rank);
    };
    ranks.OnAll(checked);
    return ranks.Time(count, [&](int rank) {
      for (int i = 0; i < count; ++i) {
        checked(rank);
      }
    });
  }
  double TimeAllReduce(std::int64_t rows) const {
    return Time(kChain, [&](int rank, const Buffers& own) {
      return group.AllReduce(rank, own.partial.As<float>(), own.sum.As<float>(),
                             static_cast<std::size_t>(rows * kHidden), ranks.At(rank).stream());
    });
  }
  // Of columns that lie as NCCL leaves them, rank by rank.
  double TimeAllGather(std::int64_t rows) const {
    const auto bytes =
        static_cast<std::size_t>(rows * (kVocabulary / ranks.count())) * sizeof(float);
    return Time(1, [&](int rank, const Buffers& own) {
      return group.AllGather(rank, own.partial.data(), own.sum.data(), bytes,
                             ranks.At(rank).stream());
    });
  }
};

constexpr std::int64_t kReducedRows[] = {1,  2,  4,   8,   16,  24,   32,  36,
                                         37, 64, 128, 256, 512, 1024, 4096};
constexpr std::int64_t kGatheredRows[] = {1, 8, 64};

void BenchPeers(int count) {
  Ranks ranks(Through::kPeers, count);
  const std::vector<Buffers> buffers = MakeBuffers(ranks);
  fmt::print("{} x {}\nthrough their memory\n", count, ranks.At(0).Name());
  for (const std::int64_t rows : kReducedRows) {
    fmt::print("AllReduce  {:5} x {}  {:8.2f} us to bfloat16\n", rows, kHidden,
               TimeAllReduce(ranks, buffers, rows, DataType::kBf16));
    (void)std::fflush(stdout);
  }
  for (const std::int64_t rows : kGatheredRows) {
    fmt::print("AllGather  {:5} x {}  {:8.2f} us\n", rows, kVocabulary,
               TimeAllGather(ranks, buffers, rows));
  }
}

void BenchNccl(int count, const cuda::Nccl& nccl) {
  Ranks ranks(Through::kNccl, count);
  const std::vector<Buffers> buffers = MakeBuffers(ranks);
  const auto bare_group = Must(cuda::NcclGroup::Create(
      nccl, count, [&](int rank) { ranks.At(rank).BindThread(); },
      [](std::string_view reason) { DSA_CHECK(false, "{}", reason); }));
  const BareNccl bare = {.ranks = ranks, .buffers = buffers, .group = *bare_group};
  fmt::print("NCCL {}\n", cuda::NcclVersionText(nccl.version));
  for (const std::int64_t rows : kReducedRows) {
    const double alone = bare.TimeAllReduce(rows);
    const double ours = TimeAllReduce(ranks, buffers, rows, DataType::kF32);
    const double rounded = TimeAllReduce(ranks, buffers, rows, DataType::kBf16);
    fmt::print(
        "AllReduce  {:5} x {}  {:8.2f} us alone  {:8.2f} us ours, {:.3f}x  {:8.2f} us to "
        "bfloat16\n",
        rows, kHidden, alone, ours, ours / alone, rounded);
    (void)std::fflush(stdout);
  }
  for (const std::int64_t rows : kGatheredRows) {
    const double alone = bare.TimeAllGather(rows);
    fmt::print("AllGather  {:5} x {}  {:8.2f} us alone  {:8.2f} us ours, in its place\n", rows,
               kVocabulary, alone, TimeAllGather(ranks, buffers, rows));
  }
  // The last recording of each rank is none of the bare calls': their group can end before it.
}

// Rows of each rank, of which each goes to 8 of 256 experts, whole ones on each rank.
class ExchangeBench final {
 public:
  ExchangeBench(Ranks& ranks, std::int64_t rows)
      : ranks_(ranks), rows_(rows), operands_(static_cast<std::size_t>(ranks.count())) {
    ranks.OnAll([&](int rank) {
      CudaBackend& backend = ranks.At(rank);
      Operands& own = operands_[static_cast<std::size_t>(rank)];
      const std::int64_t all = rows * ranks.count();
      own.x = Must(backend.Allocate(Bytes(rows * kHidden * 2)));
      own.rows = Must(backend.Allocate(Bytes(all * kHidden * 2)));
      own.contributions = Must(backend.Allocate(Bytes(all * kChosen * kHidden * 2)));
      own.y = Must(backend.Allocate(Bytes(rows * kHidden * 2)));
      own.experts = Must(backend.Allocate(Bytes(rows * kChosen * 4)));
      own.weights = Must(backend.Allocate(Bytes(rows * kChosen * 4)));
      own.row_experts = Must(backend.Allocate(Bytes(all * kChosen * 4)));
      own.row_weights = Must(backend.Allocate(Bytes(all * kChosen * 4)));
      std::vector<std::int32_t> experts;
      std::mt19937 random(static_cast<unsigned>(rank));
      std::vector<std::int32_t> ids(kExperts);
      std::iota(ids.begin(), ids.end(), 0);
      for (std::int64_t t = 0; t < rows; ++t) {
        std::shuffle(ids.begin(), ids.end(), random);
        experts.insert(experts.end(), ids.begin(), ids.begin() + kChosen);
      }
      backend.CopyToDevice(own.experts.data(), experts.data(), experts.size() * 4);
      for (const DeviceBuffer* const zero : {&own.x, &own.rows, &own.contributions, &own.weights}) {
        backend.Zero(zero->data(), zero->bytes());
      }
    });
  }

  // `parts`: experts leave sums of float32, and weights go along.
  void Dispatch(int rank, bool parts) {
    const Operands& own = operands_[static_cast<std::size_t>(rank)];
    const std::int64_t all = rows_ * ranks_.count();
    DispatchParams params = {
        .x = View(own.x, rows_),
        .experts = {own.experts.As<const std::int32_t>(), rows_, kChosen, kChosen},
        .here = RangeOf(rank),
        .rows = View(own.rows, all),
        .row_experts = {own.row_experts.As<std::int32_t>(), all, kChosen, kChosen}};
    if (parts) {
      params.weights = {own.weights.As<const float>(), rows_, kChosen, kChosen};
      params.row_weights = {own.row_weights.As<float>(), all, kChosen, kChosen};
    }
    ranks_.At(rank).Dispatch(params);
  }
  void Combine(int rank, bool parts) {
    const Operands& own = operands_[static_cast<std::size_t>(rank)];
    const std::int64_t all = rows_ * ranks_.count();
    CombineParams params = {
        .contributions = View(own.contributions, all * kChosen),
        .row_experts = {own.row_experts.As<const std::int32_t>(), all, kChosen, kChosen},
        .experts = {own.experts.As<const std::int32_t>(), rows_, kChosen, kChosen},
        .weights = {own.weights.As<const float>(), rows_, kChosen, kChosen},
        .here = RangeOf(rank),
        .shared = View(own.x, rows_),
        .y = View(own.y, rows_)};
    if (parts) {
      params.parts = {own.contributions.data(), DataType::kF32, all, kHidden, kHidden};
    }
    ranks_.At(rank).Combine(params);
  }

 private:
  static constexpr std::int64_t kExperts = 256;
  static constexpr std::int64_t kChosen = 8;
  struct Operands {
    DeviceBuffer x, rows, contributions, y, experts, weights, row_experts, row_weights;
  };

  static std::size_t Bytes(std::int64_t bytes) { return static_cast<std::size_t>(bytes); }
  static AnyMatrix View(const DeviceBuffer& buffer, std::int64_t rows) {
    return {buffer.data(), DataType::kBf16, rows, kHidden, kHidden};
  }
  ExpertRange RangeOf(int rank) const {
    const std::int64_t each = kExperts / ranks_.count();
    return {.first = rank * each, .count = each};
  }

  Ranks& ranks_;
  std::int64_t rows_;
  std::vector<Operands> operands_;
};

void BenchExchange(int count) {
  Ranks ranks(Through::kPeers, count, count);
  for (const std::int64_t rows : {1, 8, 16, 32, 64, 128, 256, 257, 1024, 4096}) {
    ExchangeBench bench(ranks, rows);
    const auto time = [&](bool there, bool back, bool parts) {
      return ranks.Time(kChain, [&](int rank) {
        for (int i = 0; i < kChain; ++i) {
          if (there) {
            bench.Dispatch(rank, parts);
          }
          if (back) {
            bench.Combine(rank, parts);
          }
        }
      });
    };
    const bool has_parts =
        CanCombineParts({.tokens = rows, .hidden = kHidden, .experts_per_token = 8});
    fmt::print(
        "Dispatch and Combine  {:5} x {} per rank  {:8.2f} us, as parts {:8.2f}; Dispatch "
        "{:8.2f}\n",
        rows, kHidden, time(true, true, false), has_parts ? time(true, true, true) : 0.0,
        time(true, false, false));
    (void)std::fflush(stdout);
  }
}

int Run(int count, bool exchange_alone) {
  if (!exchange_alone) {
    BenchPeers(count);
  }
  BenchExchange(count);
  if (exchange_alone) {
    return 0;
  }
  const Result<cuda::Nccl>& nccl = cuda::LoadNccl();
  if (nccl.ok()) {
    BenchNccl(count, nccl.value());
  } else {
    fmt::print("{}\n", nccl.error().message);
  }
  return 0;
}

}  // namespace
}  // namespace dsa::bench

int main(int argc, char** argv) {
  const bool exchange_alone = argc > 2 && std::string_view(argv[2]) == "exchange";
  return dsa::bench::Run(argc > 1 ? std::atoi(argv[1]) : 2, exchange_alone);
}
