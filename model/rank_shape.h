// What one rank holds of the model.  Ops and buffers have local extents; the one place where the
// partial sums of ranks are added is Backend::AddNorm, and the one where tokens would go to other
// ranks' experts is Backend::ExpertMlp.
//
// Tensor parallelism: each rank has some heads of attention, some of the inner width of every MLP
// and expert, and some of the vocabulary's rows of the head; the rest is whole on every rank, the
// embedding, the indexer and both caches too.  With expert parallelism beside it each rank has some
// of the routed experts, whole, instead of a part of every one.
//
// Data parallelism: each data rank is such a set of tensor ranks, with all of attention and
// sequences and caches of its own.  The routed experts are over the tensor ranks of all data ranks,
// and rows go to them and back (Backend::Dispatch, Combine); the shared expert is whole on every
// rank, since no sum over ranks comes behind it.
#pragma once

#include "model/model_config.h"

#include <cstdint>
#include <vector>

namespace dsa {

// [first, first + count) of rows, columns, heads.
struct Part {
  std::int64_t first;
  std::int64_t count;

  friend bool operator==(const Part&, const Part&) = default;
};

// How a model is split.
struct RankLayout {
  std::int64_t ranks = 1;        // of tensor parallelism, one of TensorParallelSizes
  bool expert_parallel = false;  // whole routed experts on each rank
  std::int64_t data_ranks = 1;   // of data parallelism; with several, expert_parallel

  std::int64_t all_ranks() const { return ranks * data_ranks; }
};

// The place of a rank among all.
struct RankPlace {
  std::int64_t rank = 0;  // in [0, all_ranks); those of a data rank stand next to each other
  RankLayout layout{};

  std::int64_t tensor_rank() const { return rank % layout.ranks; }
};

struct RankShape {
  std::int64_t rank;        // among the tensor ranks of its data rank
  std::int64_t ranks;       // of tensor parallelism
  std::int64_t data_ranks;  // with several, rows are exchanged with the experts of all
  Part heads;               // attention heads; index heads are on every rank
  Part experts;       // routed experts, as even as they go over all ranks; a rank may have none
  Part expert_width;  // inner width of each routed expert, of the dense MLP, of the shared expert:
  Part dense_width;   // whole blocks of 128, as even as they go; a rank may have none
  Part shared_width;
  Part vocabulary;  // rows of the head
  Part layers;
};

// CHECK-fails where the number of ranks is none of TensorParallelSizes, or several data ranks are
// without expert parallelism.
RankShape ShapeOf(const ModelConfig& config, const RankPlace& place);

// One rank that holds everything.
RankShape WholeModel(const ModelConfig& config);

// The numbers of ranks that the model can be split over, in ascending order: they divide the heads,
// and of a quantized model no rank's heads begin inside a block of scales.
std::vector<std::int64_t> TensorParallelSizes(const ModelConfig& config);

}  // namespace dsa
