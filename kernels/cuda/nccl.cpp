#include "kernels/cuda/nccl.h"

#include "common/check.h"
#include "kernels/cuda/runtime_library.h"
#include "kernels/device_failure.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <utility>

#include <fmt/format.h>

namespace dsa::cuda {
namespace {

constexpr char kLibrary[] = "libnccl.so.2";

// LL128 is left out: named in a list it is taken where links do not carry its 128 bytes whole, and
// then sums are wrong.
constexpr std::array<NcclVariable, 8> kVariables = {{
    {.name = "NCCL_ALGO", .value = "Ring"},
    {.name = "NCCL_PROTO", .value = "LL,Simple"},
    {.name = "NCCL_MIN_NCHANNELS", .value = "24"},
    {.name = "NCCL_MAX_NCHANNELS", .value = "24"},
    {.name = "NCCL_NVLS_ENABLE", .value = "0"},
    // Ranks connect while the communicators are made, not within a recording.
    {.name = "NCCL_RUNTIME_CONNECT", .value = "0"},
    // A recorded call takes the buffers and the channels of one that is not.
    {.name = "NCCL_GRAPH_REGISTER", .value = "0"},
    {.name = "NCCL_LOCAL_REGISTER", .value = "0"},
}};

std::string FirstLine(std::string_view text) {
  return std::string(text.substr(0, text.find('\n')));
}

std::string ReasonOf(const Nccl& nccl, int result) {
  const char* const last = nccl.get_last_error(nullptr);
  const std::string detail = last == nullptr ? "" : FirstLine(last);
  const std::string reason = FirstLine(nccl.get_error_string(result));
  return detail.empty() ? reason : reason + ": " + detail;
}

template <typename Function>
bool Find(const RuntimeLibrary& library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(FindFunction(library, name));
  return function != nullptr;
}

// The name of the first function that the library lacks; null where it has all.
const char* FindAll(const RuntimeLibrary& library, Nccl& table) {
  struct Entry {
    const char* name;
    bool found;
  };
  const Entry entries[] = {
#define DSA_ENTRY(function, name) Entry{"nccl" name, Find(library, "nccl" name, table.function)}
      DSA_ENTRY(get_version, "GetVersion"),
      DSA_ENTRY(get_error_string, "GetErrorString"),
      DSA_ENTRY(get_last_error, "GetLastError"),
      DSA_ENTRY(get_unique_id, "GetUniqueId"),
      DSA_ENTRY(comm_init_rank, "CommInitRank"),
      DSA_ENTRY(comm_get_async_error, "CommGetAsyncError"),
      DSA_ENTRY(comm_abort, "CommAbort"),
      DSA_ENTRY(comm_destroy, "CommDestroy"),
      DSA_ENTRY(all_reduce, "AllReduce"),
      DSA_ENTRY(all_gather, "AllGather"),
#undef DSA_ENTRY
  };
  for (const Entry& entry : entries) {
    if (!entry.found) {
      return entry.name;
    }
  }
  return nullptr;
}

Error Unavailable(std::string message) {
  return {ErrorCode::kFailedPrecondition, std::move(message)};
}

}  // namespace

std::string NcclVersionText(int version) {
  const int major = version < 10'000 ? 1000 : 10'000;  // until 2.8 it was 2804
  return fmt::format("{}.{}.{}", version / major, version % major / 100, version % 100);
}

std::vector<std::string> NcclCandidates(std::string_view cuda_home) {
  return LibraryCandidates(kLibrary, cuda_home);
}

std::span<const NcclVariable> NcclVariables() {
  return kVariables;
}

Status SetNcclVariables() {
  for (const NcclVariable& variable : kVariables) {
    const char* const given = std::getenv(variable.name);
    if (given != nullptr && std::string_view(given) != variable.value) {
      return Unavailable(fmt::format("{} is \"{}\" in the environment, ranks need \"{}\": unset it",
                                     variable.name, given, variable.value));
    }
  }
  for (const NcclVariable& variable : kVariables) {
    DSA_CHECK(setenv(variable.name, variable.value, 1) == 0, "setenv of {}",
              std::string_view(variable.name));
  }
  return {};
}

Result<Nccl> OpenNccl(const std::vector<std::string>& candidates) {
  DSA_RETURN_IF_ERROR(SetNcclVariables());
  const std::string needed = "NCCL " + NcclVersionText(kNcclVersionMin) + " or newer";
  DSA_ASSIGN_OR_RETURN(const RuntimeLibrary library, OpenRuntimeLibrary(needed, candidates));
  Nccl table{};
  // An older one may lack what is called: then its version says more.
  const char* const missing = FindAll(library, table);
  const bool says_version =
      table.get_version != nullptr && table.get_version(&table.version) == kNcclSuccess;
  if (says_version && table.version < kNcclVersionMin) {
    return Unavailable(fmt::format("{} is NCCL {}, needs {}", library.path,
                                   NcclVersionText(table.version), needed));
  }
  if (missing != nullptr) {
    return Unavailable(library.path + " has no " + missing);
  }
  if (!says_version) {
    return Unavailable(library.path + " does not say which NCCL it is, needs " + needed);
  }
  return table;
}

const Result<Nccl>& LoadNccl() {
  static const Result<Nccl> table = OpenNccl(NcclCandidates(CudaHome()));
  return table;
}

NcclGroup::NcclGroup(const Nccl& nccl, int ranks,
                     std::function<void(std::string_view reason)> on_failure)
    : nccl_(nccl),
      on_failure_(std::move(on_failure)),
      communicators_(static_cast<std::size_t>(ranks)),
      calling_(static_cast<std::size_t>(ranks)) {}

Result<std::unique_ptr<NcclGroup>> NcclGroup::Create(
    const Nccl& nccl, int ranks, const std::function<void(int rank)>& bind,
    std::function<void(std::string_view reason)> on_failure, std::chrono::milliseconds limit) {
  DSA_CHECK(ranks > 0, "NcclGroup: {} ranks", ranks);
  std::unique_ptr<NcclGroup> group(new NcclGroup(nccl, ranks, std::move(on_failure)));
  DSA_RETURN_IF_ERROR(group->MakeAll(bind, limit));
  group->watch_ = std::thread([made = group.get()] { made->Watch(); });
  return group;
}

Status NcclGroup::MakeAll(const std::function<void(int rank)>& bind,
                          std::chrono::milliseconds limit) {
  NcclId id{};
  if (const int result = nccl_.get_unique_id(&id); result != kNcclSuccess) {
    return Unavailable("NCCL: " + ReasonOf(nccl_, result));
  }
  enum class Made { kNot, kYes, kFailed };
  std::vector<Made> made(communicators_.size(), Made::kNot);  // guarded by mutex_, as is `failure`
  std::string failure;
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < communicators_.size(); ++rank) {
    threads.emplace_back([&, rank] {
      bind(static_cast<int>(rank));
      const int result =
          nccl_.comm_init_rank(&communicators_[rank], ranks(), id, static_cast<int>(rank));
      const std::string reason = result == kNcclSuccess ? "" : ReasonOf(nccl_, result);
      const std::lock_guard lock(mutex_);
      made[rank] = result == kNcclSuccess ? Made::kYes : Made::kFailed;
      if (result != kNcclSuccess && failure.empty()) {
        failure = fmt::format("NCCL on rank {}: {}", rank, reason);
      }
      changed_.notify_all();
    });
  }
  {
    std::unique_lock lock(mutex_);
    const auto all_came = [&] {
      return std::find(made.begin(), made.end(), Made::kNot) == made.end();
    };
    if (!changed_.wait_for(lock, limit, all_came)) {  // their threads cannot be joined
      std::vector<std::size_t> missing;
      for (std::size_t rank = 0; rank < made.size(); ++rank) {
        if (made[rank] == Made::kNot) {
          missing.push_back(rank);
        }
      }
      constexpr double kMsPerS = 1000;
      DeviceFailed(fmt::format("NCCL: ranks did not come within {:g} s: {}{}",
                               static_cast<double>(limit.count()) / kMsPerS,
                               fmt::join(missing, ", "), failure.empty() ? "" : "; " + failure));
    }
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  if (failure.empty()) {
    return {};
  }
  for (std::size_t rank = 0; rank < made.size(); ++rank) {
    if (made[rank] == Made::kYes) {
      (void)nccl_.comm_abort(communicators_[rank]);
    }
  }
  return Unavailable(failure);
}

NcclGroup::~NcclGroup() {
  if (!watch_.joinable()) {  // never made
    return;
  }
  bool aborted = false;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    aborted = aborted_;
  }
  changed_.notify_all();
  watch_.join();
  for (std::size_t rank = 0; !aborted && rank < communicators_.size(); ++rank) {
    (void)nccl_.comm_destroy(communicators_[rank]);
  }
}

void NcclGroup::Abort() {
  {
    const std::lock_guard lock(mutex_);
    aborted_ = true;
  }
  changed_.notify_all();
}

void NcclGroup::Watch() {
  constexpr auto kBetweenLooks = std::chrono::seconds(1);
  // A call queues and returns; one that takes longer waits for what only the abort ends.
  constexpr auto kCallLimit = std::chrono::seconds(1);
  std::unique_lock lock(mutex_);
  const auto ends = [this] { return stopping_ || aborted_; };
  while (!changed_.wait_for(lock, kBetweenLooks, ends)) {
    const std::string failure = AsynchronousFailure();
    if (!failure.empty()) {
      lock.unlock();
      on_failure_(failure);
      lock.lock();
      changed_.wait(lock, ends);
    }
  }
  if (!aborted_) {
    return;
  }
  (void)changed_.wait_for(lock, kCallLimit, [this] {
    return std::find(calling_.begin(), calling_.end(), true) == calling_.end();
  });
  lock.unlock();
  for (NcclCommunicator* const communicator : communicators_) {
    (void)nccl_.comm_abort(communicator);
  }
}

std::string NcclGroup::AsynchronousFailure() const {
  for (std::size_t rank = 0; rank < communicators_.size(); ++rank) {
    int result = kNcclSuccess;
    const int asked = nccl_.comm_get_async_error(communicators_[rank], &result);
    result = asked == kNcclSuccess ? result : asked;
    if (result != kNcclSuccess && result != kNcclInProgress) {
      return fmt::format("NCCL on rank {}: {}", rank, ReasonOf(nccl_, result));
    }
  }
  return {};
}

template <typename Queue>
bool NcclGroup::Call(int rank, const char* name, const Queue& queue) {
  DSA_CHECK(rank >= 0 && rank < ranks(), "NcclGroup: rank {} of {}", rank, ranks());
  const auto index = static_cast<std::size_t>(rank);
  {
    const std::lock_guard lock(mutex_);
    if (aborted_) {
      return false;
    }
    calling_[index] = true;
  }
  const int result = queue(communicators_[index]);
  bool aborted = false;
  {
    const std::lock_guard lock(mutex_);
    calling_[index] = false;
    aborted = aborted_;
  }
  changed_.notify_all();
  if (aborted) {
    return false;
  }
  if (result != kNcclSuccess) {
    DeviceFailed(fmt::format("NCCL on rank {}: {}: {}", rank, name, ReasonOf(nccl_, result)));
  }
  return true;
}

bool NcclGroup::AllReduce(int rank, const float* partial, float* sum, std::size_t count,
                          CUstream_st* stream) {
  return Call(rank, "AllReduce", [&](NcclCommunicator* communicator) {
    return nccl_.all_reduce(partial, sum, count, kNcclFloat32, kNcclSum, communicator, stream);
  });
}

bool NcclGroup::AllGather(int rank, const void* part, void* all, std::size_t bytes_each,
                          CUstream_st* stream) {
  return Call(rank, "AllGather", [&](NcclCommunicator* communicator) {
    return nccl_.all_gather(part, all, bytes_each, kNcclInt8, communicator, stream);
  });
}

}  // namespace dsa::cuda
