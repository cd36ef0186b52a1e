#include "kernels/cpu/cpu_backend.h"

#include "common/check.h"
#include "common/machine.h"
#include "kernels/cpu/scratch.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include <fmt/core.h>

namespace dsa {
namespace {

constexpr std::size_t kAlignment = 256;

Result<void*> AllocateBytes(std::size_t bytes) {
  const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  void* data =
      rounded < bytes ? nullptr : std::aligned_alloc(kAlignment, std::max(rounded, kAlignment));
  if (data == nullptr) {
    return Error{.code = ErrorCode::kFailedPrecondition,
                 .message = fmt::format("not enough memory: {} bytes needed, {} bytes free", bytes,
                                        FindAvailableMemory().bytes)};
  }
  return data;
}

}  // namespace

CpuBackend::CpuBackend(int threads) : CpuBackend(threads, {.group = nullptr, .rank = 0}) {}
CpuBackend::CpuBackend(int threads, CpuSeat seat) : seat_(seat), pool_(threads) {}
CpuBackend::~CpuBackend() = default;

std::string CpuBackend::Name() const {
  return fmt::format("cpu ({} thread{})", pool_.threads(), pool_.threads() == 1 ? "" : "s");
}

Result<DeviceBuffer> CpuBackend::Allocate(std::size_t bytes) {
  DSA_ASSIGN_OR_RETURN(void* const data, AllocateBytes(bytes));
  Touch(data, bytes);
  return DeviceBuffer(this, data, bytes);
}

// Pages that are really there: a machine that lacks them says so now, and no step waits for one.
void CpuBackend::Touch(void* data, std::size_t bytes) {
  constexpr std::int64_t kPageBytes = 4096;
  constexpr std::int64_t kChunkPages = 512;
  const auto pages = static_cast<std::int64_t>(bytes) / kPageBytes;
  auto* const first_byte = static_cast<char*>(data);
  pool_.ParallelFor((pages + kChunkPages - 1) / kChunkPages,
                    [&](std::int64_t first, std::int64_t last, int /*thread*/) {
                      const std::int64_t end = std::min(last * kChunkPages, pages);
                      for (std::int64_t page = first * kChunkPages; page < end; ++page) {
                        first_byte[page * kPageBytes] = 0;
                      }
                    });
}

void CpuBackend::Free(void* data) {
  std::free(data);
}

Result<HostBuffer> CpuBackend::AllocateHost(std::size_t bytes) {
  DSA_ASSIGN_OR_RETURN(void* const data, AllocateBytes(bytes));
  return HostBuffer(this, data, bytes);
}

void CpuBackend::FreeHost(void* data) {
  std::free(data);
}

std::int64_t CpuBackend::AvailableBytes() const {
  return FindAvailableMemory().bytes;
}

std::int64_t CpuBackend::ScratchBytes(const ScratchLimits& limits) const {
  return CpuScratchBytes(limits, pool_.threads());
}

Status CpuBackend::ReserveScratch(const ScratchLimits& limits) {
  DSA_CHECK(scratch_ == nullptr, "ReserveScratch: called twice, tokens_max={}", limits.tokens_max);
  try {
    scratch_ = MakeCpuScratch(limits, pool_.threads());
  } catch (const std::bad_alloc&) {
    return Error{.code = ErrorCode::kFailedPrecondition,
                 .message = fmt::format("not enough memory for the scratch of {} tokens a step: {} "
                                        "bytes needed, {} bytes free",
                                        limits.tokens_max, ScratchBytes(limits), AvailableBytes())};
  }
  return {};
}

const CpuScratch& CpuBackend::ScratchFor(std::int64_t rows) const {
  DSA_CHECK(scratch_ != nullptr, "CpuBackend: an op of {} rows before ReserveScratch", rows);
  DSA_CHECK(rows <= scratch_->limits.tokens_max, "CpuBackend: {} rows, scratch is for {}", rows,
            scratch_->limits.tokens_max);
  return *scratch_;
}

}  // namespace dsa
