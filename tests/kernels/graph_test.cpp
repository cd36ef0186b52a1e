// Record and Replay, pinned copies and events.  The law of graphs: a replay gives what running the
// body would give now, whatever the host held when it was recorded.  Bodies that take a number from
// the host break it, and must be seen to.
#include "kernels/ops/embed.h"
#include "kernels/ops/gather_rows.h"
#include "tests/kernels/test_backend.h"

#include <cstdint>
#include <functional>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::testing::graph_test {
namespace {

constexpr std::int64_t kRows = 4;
constexpr std::int64_t kCols = 8;
constexpr std::int64_t kVocabulary = 16;

HostBuffer AllocateHost(std::size_t bytes) {
  auto buffer = TestBackend().AllocateHost(bytes);
  REQUIRE(buffer.ok());
  return std::move(buffer).value();
}

// A step that looks ids up in a table: ids from the host, values back to it.
class LookUp final {
 public:
  LookUp()
      : input(AllocateHost(2 * kIdBytes)),
        output(AllocateHost(kOutputBytes)),
        table_(Table()),
        ids(DeviceArray<std::int32_t>::Poisoned(kRows)),
        values(DeviceArray<float>::Poisoned(kRows * kCols)) {
    std::fill_n(HostIds(), 2 * kRows, 0);
  }

  std::int32_t* HostIds() const { return input.As<std::int32_t>(); }
  void SetIds(const std::vector<std::int32_t>& values_of_ids) const {
    std::copy(values_of_ids.begin(), values_of_ids.end(), HostIds());
  }

  void Upload(std::size_t offset = 0) const {
    TestBackend().Upload(ids.data(), input, offset, kIdBytes);
  }
  void Embed(std::int64_t first, std::int64_t rows) const {
    TestBackend().Embed({.ids = {.data = ids.data() + first, .size = rows},
                         .table = {.data = table_.data(),
                                   .type = DataType::kF32,
                                   .rows = kVocabulary,
                                   .cols = kCols,
                                   .row_stride = kCols},
                         .x = {.data = values.data() + first * kCols,
                               .type = DataType::kF32,
                               .rows = rows,
                               .cols = kCols,
                               .row_stride = kCols}});
  }
  void Download() const { TestBackend().Download(output, 0, values.data(), kOutputBytes); }
  void Clear() const { TestBackend().Zero(values.data(), kOutputBytes); }

  // What the device has written into the output, which starts as -1.
  std::vector<float> Outputs(const std::function<void()>& run) const {
    std::fill_n(output.As<float>(), kRows * kCols, -1.0F);
    run();
    TestBackend().Synchronize();
    return {output.As<float>(), output.As<float>() + kRows * kCols};
  }

  static constexpr std::size_t kIdBytes = kRows * sizeof(std::int32_t);
  static constexpr std::size_t kOutputBytes = kRows * kCols * sizeof(float);

  const HostBuffer input;  // room for two steps' ids
  const HostBuffer output;

 private:
  static std::vector<float> Table() {
    std::vector<float> table(kVocabulary * kCols);
    for (std::size_t i = 0; i < table.size(); ++i) {
      table[i] = static_cast<float>(i);
    }
    return table;
  }
  DeviceArray<float> table_;

 public:
  const DeviceArray<std::int32_t> ids;
  const DeviceArray<float> values;
};

constexpr GraphId kGraph{3};

// Whether a replay of `body`, recorded with one set of ids, follows another.
bool ReplayFollows(const LookUp& step, const std::function<void()>& body) {
  Backend& backend = TestBackend();
  step.SetIds({3, 1, 4, 1});
  backend.Record(kGraph, body);
  step.SetIds({2, 7, 1, 8});
  const std::vector<float> replayed = step.Outputs([&] { backend.Replay(kGraph); });
  return replayed == step.Outputs(body);
}

TEST_CASE("a replay follows what the host holds by then", "[graph]") {
  const LookUp step;
  CHECK(ReplayFollows(step, [&] {
    step.Clear();
    step.Upload();
    step.Embed(0, kRows);
    step.Download();
  }));
}

TEST_CASE("a body that takes a value from the host is seen not to follow", "[graph]") {
  const LookUp step;
  const auto with = [&](const std::function<void()>& middle) {
    return [&step, middle] {
      step.Clear();
      step.Upload();
      middle();
      step.Download();
    };
  };
  // A branch, a row count, a first row and an offset of an upload.
  CHECK_FALSE(ReplayFollows(step, with([&] {
                              if (step.HostIds()[0] == 3) {
                                step.Embed(0, kRows);
                              }
                            })));
  CHECK_FALSE(ReplayFollows(step, with([&] { step.Embed(0, step.HostIds()[0]); })));
  CHECK_FALSE(ReplayFollows(step, with([&] { step.Embed(step.HostIds()[0] - 1, 1); })));
  CHECK_FALSE(ReplayFollows(step, [&] {
    step.Clear();
    step.Upload(static_cast<std::size_t>(step.HostIds()[0] - 2) * sizeof(std::int32_t));
    step.Embed(0, kRows);
    step.Download();
  }));
}

TEST_CASE("recording queues nothing and keeps copies of parameters", "[graph]") {
  Backend& backend = TestBackend();
  const LookUp step;
  step.SetIds({5, 6, 7, 8});
  const auto eager = step.Outputs([&] {
    step.Upload();
    step.Embed(0, kRows);
    step.Download();
  });
  backend.Zero(step.values.data(), LookUp::kOutputBytes);
  const auto recorded = step.Outputs([&] {
    auto rows = kRows;
    const auto body = [&] {
      step.Upload();
      step.Embed(0, rows);
      step.Download();
    };
    backend.Record(kGraph, body);
    rows = 0;
  });
  CHECK(recorded == std::vector<float>(kRows * kCols, -1.0F));
  for (int run = 0; run < 2; ++run) {
    CHECK(step.Outputs([&] { backend.Replay(kGraph); }) == eager);
  }
}

TEST_CASE("a graph recorded again replaces the one before and leaves others alone", "[graph]") {
  Backend& backend = TestBackend();
  constexpr GraphId kOther{0};
  const LookUp step;
  step.SetIds({1, 2, 3, 4});
  const auto body = [&](std::int64_t rows) {
    return [&step, rows] {
      step.Clear();
      step.Upload();
      step.Embed(0, rows);
      step.Download();
    };
  };
  backend.Record(kOther, body(1));
  backend.Record(kGraph, body(2));
  backend.Record(kGraph, body(3));
  CHECK(step.Outputs([&] { backend.Replay(kGraph); }) == step.Outputs(body(3)));
  CHECK(step.Outputs([&] { backend.Replay(kOther); }) == step.Outputs(body(1)));
}

TEST_CASE("results are there when a mark behind them was waited for", "[graph]") {
  Backend& backend = TestBackend();
  const LookUp step;
  // Two uploads in flight, each from its own place.
  step.SetIds({1, 2, 3, 4, 9, 10, 11, 12});
  std::fill_n(step.output.As<float>(), kRows * kCols, -1.0F);
  step.Upload();
  backend.Mark(0);
  step.Upload(LookUp::kIdBytes);
  step.Embed(0, kRows);
  step.Download();
  backend.Mark(kEvents - 1);
  backend.WaitFor(0);
  step.SetIds({0, 0, 0, 0});
  backend.WaitFor(kEvents - 1);
  const float* output = step.output.As<float>();
  CHECK(output[0] == 9.0F * kCols);
  CHECK(output[kRows * kCols - 1] == 12.0F * kCols + kCols - 1);
}

// On CUDA the copy of pinned memory is still to come when a plain asynchronous copy returns.
TEST_CASE("the source of CopyToDevice may be reused at once, pinned or not", "[graph]") {
  Backend& backend = TestBackend();
  constexpr std::size_t kBytes = std::size_t{8} << 20;
  const HostBuffer pinned = AllocateHost(kBytes);
  const auto target = DeviceArray<std::uint8_t>::Poisoned(kBytes);
  std::fill_n(pinned.As<std::uint8_t>(), kBytes, std::uint8_t{1});
  backend.CopyToDevice(target.data(), pinned.data(), kBytes);
  std::fill_n(pinned.As<std::uint8_t>(), kBytes, std::uint8_t{2});
  CHECK(target.Download() == std::vector<std::uint8_t>(kBytes, 1));
}

}  // namespace
}  // namespace dsa::testing::graph_test
