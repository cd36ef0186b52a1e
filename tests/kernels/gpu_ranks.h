// Ranks that are GPUs, for tests of what they do together.  Where there are fewer GPUs than ranks
// they share them, which the kernels allow and NCCL does not.
#pragma once

#include "kernels/comm/thread_group.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/testing.h"

#include <barrier>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <future>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::testing {

enum class Through { kPeers, kNccl };

// All blocks of the ranks that share a device must be there at once.
inline constexpr int kRanksPerDevice = 3;

inline int Devices() {
  static const int count = [] {
    int devices = 0;
    while (CudaBackend::Make(devices).ok()) {
      ++devices;
    }
    return devices;
  }();
  return count;
}

// On one H100 and one H200, calls of four ranks and recorded chains of two were seen to stand
// still, on two GPUs never, with up to three ranks on each.  A model's ranks have a GPU each.
inline bool Fit(int ranks, int devices = 1, Through through = Through::kPeers) {
  const int each = through == Through::kNccl ? 1 : kRanksPerDevice;
  const bool fit = Devices() >= devices && ranks <= each * Devices();
  if (!fit) {
    WARN("not run: " << ranks << " ranks on " << Devices() << " GPU");
  }
  return fit;
}

struct GpuRanks {
  explicit GpuRanks(int ranks, int parts = 1, Through through = Through::kPeers)
      : group(ranks, parts), together(ranks) {
    std::vector<CudaBackend*> joined;
    for (int rank = 0; rank < ranks; ++rank) {
      auto made = CudaBackend::Make(rank % Devices());
      REQUIRE(made.ok());
      backends.push_back(std::move(made).value());
      joined.push_back(backends.back().get());
    }
    const Status status = through == Through::kNccl ? CudaBackend::JoinNccl(joined, group)
                                                    : CudaBackend::JoinPeers(joined, group);
    INFO((status.ok() ? "" : status.error().message));
    REQUIRE(status.ok());
  }

  // body(rank, backend) on a thread of each rank; afterwards everything queued has run.  Kernels
  // that wait for each other for ever are released, and the group has failed.
  void Run(const std::function<void(int, CudaBackend&)>& body) {
    constexpr auto kLongest = std::chrono::seconds(20);
    std::promise<void> done;
    std::thread watch([&, ended = done.get_future()] {
      if (ended.wait_for(kLongest) == std::future_status::timeout) {
        group.Fail("kernels wait for each other");
      }
    });
    std::vector<std::thread> threads;
    for (std::size_t rank = 0; rank < backends.size(); ++rank) {
      threads.emplace_back([&, rank] {
        backends[rank]->BindThread();
        body(static_cast<int>(rank), *backends[rank]);
        backends[rank]->Synchronize();
      });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
    done.set_value();
    watch.join();
  }

  ThreadGroup group;
  std::barrier<> together;  // of the ranks' threads: nobody's kernels wait for who still records
  std::vector<std::unique_ptr<CudaBackend>> backends;
};

// A kernel that is loaded while another rank's waits on the same device would wait for it in turn.
// Before the driver starts.
[[maybe_unused]] inline const int kLoadsAtOnce = setenv("CUDA_MODULE_LOADING", "EAGER", 1);

}  // namespace dsa::testing
