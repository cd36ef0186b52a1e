// dsa_collective_bench [RANKS]: AllReduce and AllGather of ranks on a GPU each, beside bare calls
// of NCCL in the same program where its library is found.
//
// A chain of 16 is recorded on each rank and replayed; the time of one is the chain's by the events
// of the slowest rank.  Ours rounds the sum to bfloat16; NCCL leaves float32, and rounding it would
// take another launch.  NCCL is told to leave NVLink multicast alone.
#include "common/check.h"
#include "kernels/comm/collectives.h"
#include "kernels/comm/thread_group.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"

#include <algorithm>
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <dlfcn.h>
#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr int kChain = 16;
constexpr int kReplays = 40;
constexpr std::int64_t kHidden = 7168;
constexpr std::int64_t kVocabulary = 129280;

// The few functions of NCCL that are called here, as its header declares them.
struct Nccl {
  int (*comm_init_all)(void** comms, int count, const int* devices);
  int (*all_reduce)(const void* send, void* receive, std::size_t count, int type, int op,
                    void* comm, cudaStream_t stream);
  int (*get_version)(int* version);
  const char* (*get_error_string)(int status);
};
constexpr int kNcclFloat32 = 7;
constexpr int kNcclSum = 0;

std::optional<Nccl> LoadNccl() {
  void* const library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return std::nullopt;
  }
  const auto find = [&](const char* name, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    DSA_CHECK(function != nullptr, "libnccl.so.2 has no {}", std::string_view(name));
  };
  Nccl nccl{};
  find("ncclCommInitAll", nccl.comm_init_all);
  find("ncclAllReduce", nccl.all_reduce);
  find("ncclGetVersion", nccl.get_version);
  find("ncclGetErrorString", nccl.get_error_string);
  return nccl;
}

void CheckNccl(const Nccl& nccl, int status) {
  DSA_CHECK(status == 0, "NCCL: {}", std::string_view(nccl.get_error_string(status)));
}

template <typename T>
T Must(Result<T>&& result) {
  DSA_CHECK(result.ok(), "{}", std::string_view(result.error().message));
  return std::move(result).value();
}

class Ranks final {
 public:
  explicit Ranks(int ranks) : group_(ranks), together_(ranks) {
    std::vector<CudaBackend*> joined;
    for (int rank = 0; rank < ranks; ++rank) {
      backends_.push_back(Must(CudaBackend::Make(rank)));
      joined.push_back(backends_.back().get());
    }
    const Status status = CudaBackend::JoinPeers(joined, group_);
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

void Bench(Ranks& ranks, const std::optional<Nccl>& nccl, std::vector<void*>& comms) {
  constexpr std::int64_t kRowsMax = 4096;
  std::vector<Buffers> buffers(static_cast<std::size_t>(ranks.count()));
  ranks.OnAll([&](int rank) {
    Buffers& own = buffers[static_cast<std::size_t>(rank)];
    constexpr auto kBytes = static_cast<std::size_t>(kRowsMax * kHidden) * sizeof(float);
    own.partial = Must(ranks.At(rank).Allocate(kBytes));
    own.sum = Must(ranks.At(rank).Allocate(kBytes));
    ranks.At(rank).Zero(own.partial.data(), kBytes);
  });
  for (const std::int64_t rows : {1, 2, 4, 8, 16, 24, 32, 36, 37, 64, 128, 256, 512, 1024, 4096}) {
    const double ours = ranks.Time(kChain, [&](int rank) {
      const Buffers& own = buffers[static_cast<std::size_t>(rank)];
      for (int i = 0; i < kChain; ++i) {
        ranks.At(rank).AllReduce(
            {.partial = {own.partial.data(), DataType::kF32, rows, kHidden, kHidden},
             .sum = {own.sum.data(), DataType::kBf16, rows, kHidden, kHidden}});
      }
    });
    const auto reduce = [&](int rank) {
      const auto index = static_cast<std::size_t>(rank);
      return nccl->all_reduce(buffers[index].partial.data(), buffers[index].sum.data(),
                              static_cast<std::size_t>(rows * kHidden), kNcclFloat32, kNcclSum,
                              comms[index], ranks.At(rank).stream());
    };
    double theirs = 0;
    if (nccl) {
      ranks.OnAll([&](int rank) { CheckNccl(*nccl, reduce(rank)); });  // connects, loads
      theirs = ranks.Time(kChain, [&](int rank) {
        for (int i = 0; i < kChain; ++i) {
          CheckNccl(*nccl, reduce(rank));
        }
      });
    }
    fmt::print("AllReduce  {:5} x {}  {:8.2f} us   NCCL {:8.2f} us\n", rows, kHidden, ours, theirs);
    (void)std::fflush(stdout);
  }
  for (const std::int64_t rows : {1, 8, 64}) {
    const std::int64_t part = kVocabulary / ranks.count();
    const double ours = ranks.Time(1, [&](int rank) {
      const Buffers& own = buffers[static_cast<std::size_t>(rank)];
      ranks.At(rank).AllGather({.part = {own.partial.data(), DataType::kF32, rows, part, part},
                                .whole = {own.sum.data(), DataType::kF32, rows,
                                          part * ranks.count(), part * ranks.count()}});
    });
    fmt::print("AllGather  {:5} x {}  {:8.2f} us\n", rows, part * ranks.count(), ours);
  }
}

int Run(int count) {
  setenv("NCCL_NVLS_ENABLE", "0", 1);
  setenv("NCCL_RUNTIME_CONNECT", "0", 1);  // not while a graph is recorded
  Ranks ranks(count);
  fmt::print("{} x {}\n", count, ranks.At(0).Name());
  const std::optional<Nccl> nccl = LoadNccl();
  std::vector<void*> comms(static_cast<std::size_t>(count));
  if (nccl) {
    std::vector<int> devices;
    for (int device = 0; device < count; ++device) {
      devices.push_back(device);
    }
    CheckNccl(*nccl, nccl->comm_init_all(comms.data(), count, devices.data()));
    int version = 0;
    nccl->get_version(&version);
    fmt::print("NCCL {}\n", version);
  }
  Bench(ranks, nccl, comms);
  return 0;
}

}  // namespace
}  // namespace dsa::bench

int main(int argc, char** argv) {
  return dsa::bench::Run(argc > 1 ? std::atoi(argv[1]) : 2);
}
