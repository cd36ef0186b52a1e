// Collectives of a model's ranks on values whose sums are exact in float32.
#include "kernels/comm/collectives.h"
#include "model/rank_shape.h"
#include "server/collective_values.h"
#include "server/exchange_self_test.h"
#include "server/self_test.h"

#include <algorithm>
#include <thread>
#include <vector>

#include <fmt/core.h>

namespace dsa {

Error Differs(std::int64_t rank, std::string_view op, std::int64_t rows, std::int64_t cols,
              std::int64_t wrong) {
  return {ErrorCode::kInternal,
          fmt::format("self-test: {} of [{}, {}] is wrong on rank {}: {} of its values", op, rows,
                      cols, rank, wrong)};
}

namespace {

constexpr std::int64_t kRowsMax = 512;  // more would take memory and show nothing else

// What a rank adds to a sum.
std::vector<std::byte> PartOf(std::int64_t rank, std::int64_t count, DataType type) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(count * SizeOf(type)));
  for (std::int64_t i = 0; i < count; ++i) {
    if (type == DataType::kF64) {
      reinterpret_cast<double*>(bytes.data())[i] = ValueOf(rank, i);
    } else {
      reinterpret_cast<float*>(bytes.data())[i] = ValueOf(rank, i);
    }
  }
  return bytes;
}

struct RankOfTest {
  Backend& backend;
  std::int64_t rank;   // among those that reduce and gather together
  std::int64_t ranks;  // of these
  std::int64_t name;   // among all
};

Status CheckAllReduce(const RankOfTest& of, std::int64_t rows, std::int64_t cols, DataType type) {
  const std::int64_t count = rows * cols;
  const DataType part_type = of.backend.PartialSumType();
  const std::vector<std::byte> part = PartOf(of.rank, count, part_type);
  const auto bytes = static_cast<std::size_t>(count * SizeOf(type));
  DSA_ASSIGN_OR_RETURN(const DeviceBuffer partial, of.backend.Allocate(part.size()));
  DSA_ASSIGN_OR_RETURN(const DeviceBuffer sum, of.backend.Allocate(bytes));
  of.backend.CopyToDevice(partial.data(), part.data(), part.size());
  of.backend.AllReduce({.partial = {partial.data(), part_type, rows, cols, cols},
                        .sum = {sum.data(), type, rows, cols, cols}});
  std::vector<std::byte> result(bytes);
  of.backend.Synchronize();
  of.backend.CopyToHost(result.data(), sum.data(), bytes);
  of.backend.Synchronize();
  const std::int64_t wrong = Wrong(result, type, count, [&](std::int64_t i) {
    float expected = 0.0F;
    for (std::int64_t rank = 0; rank < of.ranks; ++rank) {
      expected += ValueOf(rank, i);
    }
    return expected;
  });
  return wrong == 0 ? Status() : Differs(of.name, "AllReduce", rows, cols, wrong);
}

Status CheckAllGather(const RankOfTest& of, std::int64_t rows, std::int64_t part_cols) {
  const std::int64_t cols = part_cols * of.ranks;
  std::vector<float> part;
  for (std::int64_t i = 0; i < rows * part_cols; ++i) {
    part.push_back(ValueOf(of.rank, i));
  }
  const auto bytes = static_cast<std::size_t>(rows * cols) * sizeof(float);
  DSA_ASSIGN_OR_RETURN(const DeviceBuffer from, of.backend.Allocate(part.size() * sizeof(float)));
  DSA_ASSIGN_OR_RETURN(const DeviceBuffer whole, of.backend.Allocate(bytes));
  of.backend.CopyToDevice(from.data(), part.data(), part.size() * sizeof(float));
  of.backend.AllGather({.part = {from.data(), DataType::kF32, rows, part_cols, part_cols},
                        .whole = {whole.data(), DataType::kF32, rows, cols, cols}});
  std::vector<std::byte> result(bytes);
  of.backend.Synchronize();
  of.backend.CopyToHost(result.data(), whole.data(), bytes);
  of.backend.Synchronize();
  const std::int64_t wrong = Wrong(result, DataType::kF32, rows * cols, [&](std::int64_t i) {
    const std::int64_t col = i % cols;
    return ValueOf(col / part_cols, i / cols * part_cols + col % part_cols);
  });
  return wrong == 0 ? Status() : Differs(of.name, "AllGather", rows, cols, wrong);
}

// A rank that finds a fault goes on: the others would wait for it in the next collective for ever.
Status CheckRank(Backend& backend, const RankPlace& place, const ModelConfig& model,
                 std::int64_t rows_max) {
  backend.BindThread();
  Status first;
  const auto keep = [&](const Status& status) { first = first.ok() ? status : first; };
  const RankLayout& layout = place.layout;
  const RankOfTest of_part{
      .backend = backend, .rank = place.tensor_rank(), .ranks = layout.ranks, .name = place.rank};
  const bool has_part = layout.ranks > 1 || layout.data_ranks == 1;
  for (const std::int64_t rows : {std::int64_t{1}, rows_max, std::int64_t{1}}) {
    if (has_part) {
      keep(CheckAllReduce(of_part, rows, model.hidden, model.activation_type));
    }
    if (layout.data_ranks > 1) {
      keep(CheckExchange(backend, place, model, rows));
    }
  }
  if (has_part) {
    keep(CheckAllGather(of_part, std::min<std::int64_t>(rows_max, 4), 1000));
  }
  return first;
}

}  // namespace

Status RunCollectiveTest(std::span<Backend* const> ranks, const ModelConfig& model,
                         const RankLayout& layout, std::int64_t step_tokens_max) {
  std::vector<Status> results(ranks.size());
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    threads.emplace_back([&, rank] {
      results[rank] =
          CheckRank(*ranks[rank], {.rank = static_cast<std::int64_t>(rank), .layout = layout},
                    model, std::min(step_tokens_max, kRowsMax));
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const Status& result : results) {
    DSA_RETURN_IF_ERROR(result);
  }
  return {};
}

}  // namespace dsa
