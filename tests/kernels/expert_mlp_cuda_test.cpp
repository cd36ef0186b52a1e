// ExpertMlp of 17 to 64 rows on the CUDA backend: pairs of blocks, behind a launch that computes
// gate and up of the shared expert beside the layer's gate.
#include "tests/kernels/fused_testing.h"

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::FusedLayer;
using testing::kRealLayer;
using testing::kSmallLayer;

// So many inner tiles that the shared expert's would begin a second wave, and a product of its gate
// and up that the gate can be beside; nine slots a token, so that 64 rows are more pairs than a
// block that chooses has threads.
testing::LayerSizes SmallLayerOfPairs() {
  testing::LayerSizes sizes = kSmallLayer;
  sizes.group = 1;
  sizes.experts = 12;
  sizes.experts_per_token = 8;
  sizes.inner = 1664;
  return sizes;
}

// The first rows alone.
ExpertMlpParams OfRows(ExpertMlpParams params, std::int64_t rows) {
  GatedMlpParams& shared = *params.shared;
  const auto cut = [&](Activation& activation) {
    activation.x.rows = rows;
    activation.fp8.values.rows = rows;
    activation.fp8.scales.rows = rows;
  };
  cut(shared.x);
  cut(shared.inner);
  shared.up_output.rows = rows;
  shared.y.rows = rows;
  params.gate.x.rows = rows;
  params.gate.experts.rows = rows;
  params.gate.weights.rows = rows;
  params.routed.x.rows = rows;
  params.routed.experts.rows = rows;
  params.routed.weights.rows = rows;
  params.routed.shared.rows = rows;
  params.routed.y.rows = rows;
  return params;
}

}  // namespace

// With gate and up of the shared expert computed before, beside the gate: pairs of blocks, and two
// to four blocks that choose.
TEST_CASE("ExpertMlp of 17 to 64 rows agrees with its default body", "[kernels][fused]") {
  testing::LayerSizes sizes = SmallLayerOfPairs();
  sizes.rows = GENERATE(as<std::int64_t>(), 17, 33, 40, 64);
  const bool is_swapped = GENERATE(false, true);  // which of gate and up is first in memory
  CAPTURE(sizes.rows, is_swapped);
  OverrideCheck check(testing::TestBackend());
  FusedLayer layer(testing::TestBackend(), sizes, KvFormat::kFp8);
  ExpertMlpParams params = layer.ExpertMlp();
  if (is_swapped) {
    std::swap(params.routed.gate, params.routed.up);
  }
  check.ExpertMlp(params);
  testing::CheckDifferences(check);
}

// Among experts of other ranks: few rows each, some with none.
TEST_CASE("ExpertMlp of uneven rows agrees with its default body, each row whatever is beside it",
          "[kernels][fused][real_sizes]") {
  testing::LayerSizes sizes = kRealLayer;
  sizes.ranks = GENERATE(as<std::int64_t>(), 1, 4, 32);
  CAPTURE(sizes.ranks);
  Backend& backend = testing::TestBackend();
  FusedLayer layer(backend, sizes, KvFormat::kFp8);
  const ExpertMlpParams all = layer.ExpertMlp();
  OverrideCheck check(backend);
  check.ExpertMlp(all);
  testing::CheckDifferences(check);
  const auto outputs = [&](std::int64_t rows) {
    const ExpertMlpParams params = OfRows(all, rows);
    backend.Zero(params.routed.y.data, static_cast<std::size_t>(rows * sizes.hidden * 2));
    backend.ExpertMlp(params);
    std::vector<std::byte> bytes(static_cast<std::size_t>(rows * sizes.hidden * 2));
    backend.CopyToHost(bytes.data(), params.routed.y.data, bytes.size());
    backend.Synchronize();
    return bytes;
  };
  const std::vector<std::byte> expected = outputs(sizes.rows);
  for (const std::int64_t rows : {17, 20, 33, 50}) {
    CAPTURE(rows);
    const std::vector<std::byte> few = outputs(rows);
    CHECK(std::equal(few.begin(), few.end(), expected.begin()));
  }
}

// Experts that begin before the gate's sort has ended find the sort of the call before: of another
// choice, and of other scratch.  Of the small layer the gate takes longer than the product beside
// it, and of the real one with 256 experts, too.
TEST_CASE("ExpertMlp right behind one that chose otherwise waits for its own choice",
          "[kernels][fused][real_sizes]") {
  testing::LayerSizes real = kRealLayer;
  real.ranks = 32;
  testing::LayerSizes sizes = GENERATE_COPY(SmallLayerOfPairs(), real);
  sizes.rows = GENERATE(as<std::int64_t>(), 16, 17, 40, 64);
  CAPTURE(sizes.hidden, sizes.rows);
  const auto outputs = [&](bool waits) {
    FusedLayer layer(testing::TestBackend(), sizes, KvFormat::kFp8);
    const std::vector calls = {layer.ExpertMlp(), layer.ExpertMlp(), layer.ExpertMlp()};
    for (int turn = 0; turn < 4; ++turn) {
      for (const ExpertMlpParams& call : calls) {
        testing::TestBackend().ExpertMlp(call);
        if (waits) {
          testing::TestBackend().Synchronize();
        }
      }
    }
    testing::TestBackend().Synchronize();
    std::vector<std::vector<std::byte>> bytes;
    for (const ExpertMlpParams& call : calls) {
      const AnyMatrix& y = call.routed.y;
      bytes.emplace_back(static_cast<std::size_t>(y.rows * y.cols * SizeOf(y.type)));
      testing::TestBackend().CopyToHost(bytes.back().data(), y.data, bytes.back().size());
    }
    testing::TestBackend().Synchronize();
    return bytes;
  };
  const auto expected = outputs(true);
  const auto chained = outputs(false);
  CHECK((chained[0] == expected[0]));
  CHECK((chained[1] == expected[1]));
  CHECK((chained[2] == expected[2]));
}

}  // namespace dsa
