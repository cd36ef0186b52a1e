// RotateAndAbsorb by warps that another kernel has to spare: queries do not depend on what is
// scored or selected, and a team of 256 threads beside those that score waits for memory as they
// do.
//
// Tiles are dealt out to all teams in turn, and a team goes through its stages without a stop
// between tiles.
#pragma once

#include "kernels/cuda/absorb_tile.cuh"
#include "kernels/cuda/attend_latent.h"
#include "kernels/cuda/ptx/dependency.cuh"
#include "kernels/cuda/ptx/shared_memory.cuh"

#include <cstdint>

namespace dsa::cuda::absorb {

inline constexpr int kTeams = 2;  // of a block of 512 threads

template <int kTokens, int kRing>
class Beside final {
  using T = Tile<kTokens>;
  static constexpr int kRowBytes = kColumns * 2 + 16;  // of a result on its way
  static_assert(kTokens * kRowBytes <= T::kStageBytes);

 public:
  static constexpr int kSharedBytes = kRing * T::kStageBytes;

  // Thread `thread` of team `worker` of `workers`, which meets at a named barrier.
  __device__ Beside(const RotateAndAbsorbParams& p, std::uint8_t* shared, int thread, int barrier,
                    int worker, int workers)
      : p_(p),
        thread_(thread),
        barrier_(barrier),
        ring_(shared),
        stages_((static_cast<int>(p.absorb.q_nope.cols) + kDepth - 1) / kDepth),
        token_tiles_((static_cast<int>(p.absorb.q_nope.rows) + kTokens - 1) / kTokens),
        tiles_(kColumnTiles * token_tiles_ * static_cast<int>(p.absorb.q_nope.heads)),
        first_(worker),
        step_(workers) {}

  // kWaits: for the kernels ahead, behind which its operands are written.
  template <bool kWaits>
  __device__ void Run() {
    Step load = FirstOf(first_);
    Step ahead = load;  // of the weights that no kernel writes
    for (int i = 0; i < kRing - 1; ++i) {
      LoadWeights(i, ahead);
      Next(ahead);
    }
    if constexpr (kWaits) {
      ptx::WaitForPredecessors();
    }
    ptx::AllowSuccessor();
    for (int i = 0; i < kRing - 1; ++i) {
      LoadQueries(i, load);
      ptx::CommitCopies();
      Next(load);
    }
    int slot = 0;
    for (Step step = FirstOf(first_); step.tile < tiles_;) {
      const Place at = step.at;
      typename T::Totals totals = {};
      for (int stage = 0; stage < stages_; ++stage) {
        ptx::WaitForCopies<kRing - 2>();
        Meet();  // everybody's copies are there, and the slot before is read no more
        const int freed = slot == 0 ? kRing - 1 : slot - 1;
        LoadWeights(freed, load);
        LoadQueries(freed, load);
        ptx::CommitCopies();
        Next(load);
        T::Multiply(Slot(slot), Column(), Token(), totals);
        if (stage + 1 < stages_) {
          slot = slot + 1 == kRing ? 0 : slot + 1;
        }
        Next(step);
      }
      const Rotation<kTokens> rotation(p_.rope, at.column_tile, at.first_token, at.head, thread_);
      Store(Slot(slot), at, totals);
      slot = slot + 1 == kRing ? 0 : slot + 1;
      rotation.Store();
    }
    ptx::WaitForCopies<0>();
  }

 private:
  struct Step {
    int tile;
    int stage;
    Place at;
  };
  __device__ Step FirstOf(int tile) const {
    return {.tile = tile, .stage = 0, .at = Place::Of(tile, token_tiles_, kTokens)};
  }
  __device__ void Next(Step& step) const {
    if (++step.stage == stages_) {
      step = FirstOf(step.tile + step_);
    }
  }
  __device__ std::uint8_t* Slot(int slot) const { return ring_ + slot * T::kStageBytes; }
  __device__ void LoadWeights(int slot, const Step& step) const {
    if (step.tile < tiles_) {
      T::LoadWeights(Slot(slot), p_.absorb, step.stage * kDepth, step.at.column_tile * kColumns,
                     step.at.head, thread_);
    }
  }
  __device__ void LoadQueries(int slot, const Step& step) const {
    if (step.tile < tiles_) {
      T::LoadQueries(Slot(slot), p_.absorb, step.stage * kDepth, step.at.first_token, step.at.head,
                     thread_);
    }
  }
  __device__ void Meet() const { ptx::NamedBarrierSync(barrier_, kThreads); }
  __device__ int Column() const { return T::Column(thread_ / kWarpSize); }
  __device__ int Token() const { return T::Token(thread_ / kWarpSize); }

  // Through the slot that was multiplied last to whole rows.
  __device__ void Store(std::uint8_t* slot, const Place& at,
                        const typename T::Totals& totals) const {
    Meet();
    const int lane = thread_ % kWarpSize;
#pragma unroll
    for (int m = 0; m < T::kColumnTiles; ++m) {
#pragma unroll
      for (int t = 0; t < T::kTokenTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int token = Token() + t * 8 + lane % 4 * 2 + i % 2;
          const int column = Column() + m * 16 + lane / 4 + i / 2 * 8;
          *reinterpret_cast<__nv_bfloat16*>(slot + token * kRowBytes + column * 2) =
              __float2bfloat16_rn(totals[m][t][i]);
        }
      }
    }
    Meet();
    constexpr int kLanes = kColumns / 8;  // of a row, 16 bytes each
    const int chunk = thread_ % kLanes;
    auto* const output = static_cast<__nv_bfloat16*>(p_.absorb.q_latent.data) +
                         at.head * p_.absorb.q_latent.head_stride + at.column_tile * kColumns +
                         chunk * 8;
#pragma unroll
    for (int first = 0; first < kTokens; first += kThreads / kLanes) {
      const int t = first + thread_ / kLanes;
      if (t < kTokens && at.first_token + t < p_.absorb.q_latent.rows) {
        *reinterpret_cast<uint4*>(output + (at.first_token + t) * p_.absorb.q_latent.row_stride) =
            *reinterpret_cast<const uint4*>(slot + t * kRowBytes + chunk * 16);
      }
    }
  }

  const RotateAndAbsorbParams& p_;
  int thread_;
  int barrier_;
  std::uint8_t* ring_;
  int stages_;
  int token_tiles_;
  int tiles_;
  int first_;
  int step_;
};

}  // namespace dsa::cuda::absorb
