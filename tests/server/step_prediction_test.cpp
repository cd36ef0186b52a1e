// Predicted steps beside measured ones that the table was not made from (bench/results/), and what
// must hold of predictions where nothing was measured.
#include "server/step_prediction.h"

#include "model/model_slice.h"
#include "tests/paths.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <string_view>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

const ModelConfig& Whole() {
  static const ModelConfig whole =
      LoadModelConfig(testing::SourcePath("configs/models/deepseek-v32")).value();
  return whole;
}

ModelConfig Slice(std::string_view slice) {
  return SliceOf(Whole(), ParseModelSlice(slice).value()).value();
}

const GpuTimes& Gpu(std::string_view name) {
  const std::span<const GpuTimes> gpus = MeasuredGpus();
  const auto found = std::find_if(gpus.begin(), gpus.end(),
                                  [name](const GpuTimes& gpu) { return gpu.name == name; });
  REQUIRE(found != gpus.end());
  return *found;
}

StepToPredict Decode(std::int64_t rows, std::int64_t visible) {
  return {.is_prefill = false, .rows = rows, .visible = visible};
}
StepToPredict Prefill(std::int64_t rows, std::int64_t visible) {
  return {.is_prefill = true, .rows = rows, .visible = visible};
}

StepToPredict Hits(StepToPredict step, double experts) {
  step.experts_hit = experts;
  return step;
}

struct MeasuredSlice {
  std::string_view gpu;
  std::string_view slice;
  StepToPredict step;
  double ms;
};

// Within a tenth.
void CheckAgainst(const MeasuredSlice& measured) {
  const double ms =
      PredictStep(Gpu(measured.gpu), Slice(measured.slice), {}, measured.step).total_us / 1e3;
  CAPTURE(measured.gpu, measured.slice, measured.step.is_prefill, measured.step.rows,
          measured.step.visible, measured.ms, ms);
  CHECK(std::abs(ms / measured.ms - 1.0) < 0.1);
}

}  // namespace

TEST_CASE("predicted decode steps are within a tenth of measured slices of other sizes",
          "[prediction]") {
  // 2026-11-28-h200-position/layers8.csv: a whole engine's steps.
  for (const MeasuredSlice& measured : {
           MeasuredSlice{"H200", "ep32,layers=8", Decode(1, 7), 2.1255},
           MeasuredSlice{"H200", "ep32,layers=8", Decode(64, 7), 2.7995},
           MeasuredSlice{"H200", "ep32,layers=8", Decode(1, 1022), 2.1310},
           MeasuredSlice{"H200", "ep32,layers=8", Decode(64, 1022), 3.0750},
           MeasuredSlice{"H200", "ep32,layers=8", Decode(64, 2049), 3.5620},
           MeasuredSlice{"H200", "ep32,layers=8", Decode(1, 4094), 2.3180},
           MeasuredSlice{"H200", "ep32,layers=8", Decode(64, 4094), 3.6220},
           MeasuredSlice{"H200", "ep32,layers=8", Decode(64, 16382), 3.8750},
           MeasuredSlice{"H200", "ep32,layers=8", Decode(64, 32766), 4.2070},
           MeasuredSlice{"H200", "ep32,layers=8", Decode(1, 131070), 2.3620},
           MeasuredSlice{"H200", "ep32,layers=8", Decode(64, 131070), 5.9460},
           // 2026-11-28-h200-position/ep32.csv
           MeasuredSlice{"H200", "ep32", Decode(1, 6), 13.5755},
           MeasuredSlice{"H200", "ep32", Decode(5, 6), 14.0810},
           MeasuredSlice{"H200", "ep32", Decode(5, 8190), 16.0830},
           MeasuredSlice{"H200", "ep32", Decode(5, 32766), 16.3270},
           MeasuredSlice{"H200", "ep32", Decode(5, 131070), 17.5860},
           // 2026-11-28-h200-ranks.md and -operators.md, of one GPU: a row goes to 8 of 256
           MeasuredSlice{"H200", "layers=8", Decode(1, 8192), 2.34},
           // 2026-11-28-h200-sections.md: 256 or 128 experts, of which so many were hit
           MeasuredSlice{"H200", "layers=8", Decode(1, 8192), 2.3010},
           MeasuredSlice{"H200", "layers=8", Hits(Decode(16, 8192), 75.8), 6.0420},
           MeasuredSlice{"H200", "layers=8", Hits(Decode(64, 8192), 134.6), 9.8655},
           MeasuredSlice{"H200", "layers=8", Hits(Prefill(2048, 32768), 196.6), 68.6849},
           // 2026-11-28-h200-operators.md, 2026-11-27-h100-decode-step.md
           MeasuredSlice{"H100", "ep32", Decode(64, 8192), 28.724},
           MeasuredSlice{"H100", "ep32", Decode(1, 8192), 18.569},
       }) {
    CheckAgainst(measured);
  }
}

TEST_CASE("a predicted step with half the experts is within a tenth of the measured one",
          "[prediction]") {
  ModelConfig half = Slice("layers=8");
  half.experts = 128;  // 2026-11-28-h200-sections.md
  const auto ms = [&](const StepToPredict& step) {
    return PredictStep(Gpu("H200"), half, {}, step).total_us / 1e3;
  };
  CHECK(ms(Hits(Decode(8, 8192), 45.0)) == Approx(4.2900).epsilon(0.1));
  CHECK(ms(Hits(Decode(32, 16384), 89.2)) == Approx(7.1117).epsilon(0.1));
  CHECK(ms(Hits(Decode(64, 32768), 104.0)) == Approx(8.7880).epsilon(0.1));
  CHECK(ms(Hits(Prefill(2048, 16384), 125.2)) == Approx(54.8869).epsilon(0.1));
}

// 2026-11-28-h200-operators.md, decode over two H200.  How many experts its 64 rows hit was not
// noted: as many as make one GPU's step what it was.
TEST_CASE("predicted decode steps of two tensor ranks are within a tenth of measured ones",
          "[prediction]") {
  const ModelConfig slice = Slice("layers=8");
  const auto ms = [&](std::int64_t ranks, const StepToPredict& step) {
    return PredictStep(Gpu("H200"), slice, {.ranks = ranks}, step).total_us / 1e3;
  };
  double hit = 8.0;
  while (ms(1, Hits(Decode(64, 8192), hit)) < 10.06) {
    hit += 1.0;
  }
  CHECK(hit < 160.0);
  CHECK(ms(2, Hits(Decode(64, 8192), hit)) == Approx(6.30).epsilon(0.1));
  CHECK(ms(2, Decode(1, 8192)) == Approx(1.72).epsilon(0.1));
}

// 2026-11-28-h200-four.md, the second run.
TEST_CASE("predicted decode steps of four tensor ranks are within a tenth of measured ones",
          "[prediction]") {
  const auto ms = [&](const StepToPredict& step) {
    return PredictStep(Gpu("H200"), Slice("layers=8"), {.ranks = 4}, step).total_us / 1e3;
  };
  CHECK(ms(Hits(Decode(64, 8192), 133.2)) == Approx(4.115).epsilon(0.1));
  CHECK(ms(Decode(1, 8192)) == Approx(1.316).epsilon(0.1));
}

// 2026-11-28-h200-ranks-data.md: experts of a layer that both ranks read together.
TEST_CASE("predicted decode steps of two data ranks are within a tenth of measured ones",
          "[prediction]") {
  const RankLayout two = {.expert_parallel = true, .data_ranks = 2};
  const auto ms = [&](std::int64_t rows, double hit) {
    return PredictStep(Gpu("H200"), Slice("layers=8"), two, Hits(Decode(rows, 2048), hit))
               .total_us /
           1e3;
  };
  CHECK(ms(64, 154.4) == Approx(6.865).epsilon(0.1));
  CHECK(ms(8, 76.8) == Approx(4.222).epsilon(0.1));
  CHECK(ms(1, 15.4) == Approx(2.359).epsilon(0.1));
}

TEST_CASE("predictions follow what a rank has to do", "[prediction]") {
  const auto us = [](const RankLayout& layout, const StepToPredict& step,
                     std::string_view gpu = "H200") {
    return PredictStep(Gpu(gpu), Whole(), layout, step).total_us;
  };
  for (const StepToPredict& step : {Decode(1, 8192), Decode(64, 8192), Prefill(4096, 8192)}) {
    CAPTURE(step.is_prefill, step.rows);
    CHECK(us({.ranks = 2}, step) < us({}, step));
    CHECK(us({.ranks = 4}, step) < us({.ranks = 2}, step));
    CHECK(us({.ranks = 2}, step) > us({}, step) / 2.0);  // what is whole on each, and collectives
    for (const std::int64_t ranks : {1, 2, 4, 8}) {      // less bandwidth is never faster
      CAPTURE(ranks);
      CHECK(us({.ranks = ranks}, step, "H100") > us({.ranks = ranks}, step));
    }
  }
  CHECK(us({}, Decode(64, 131072)) > us({}, Decode(64, 8192)));
  CHECK(us({}, Prefill(4096, 131072)) > us({}, Prefill(4096, 65536)));
  // The experts of all over eight: each GPU reads an eighth, with the rows of all.
  const RankLayout data = {.expert_parallel = true, .data_ranks = 8};
  CHECK(us(data, Decode(64, 8192)) < us({}, Decode(64, 8192)));
  CHECK(us(data, Decode(64, 8192)) > us(data, Decode(8, 8192)));
  StepToPredict few = Decode(64, 8192);
  few.experts_hit = 64.0;  // of 256
  CHECK(us({}, few) < us({}, Decode(64, 8192)) / 2.0);
}

TEST_CASE("a prediction is the sum of its parts", "[prediction]") {
  const StepPrediction step = PredictStep(Gpu("H200"), Whole(), {.ranks = 8}, Decode(64, 8192));
  double sum_us = step.beyond_us + step.collectives_us;
  for (const double section_us : step.section_us) {
    CHECK(section_us > 0.0);
    sum_us += section_us;
  }
  CHECK(std::abs(sum_us / step.total_us - 1.0) < 1e-12);
  CHECK(step.collectives_us ==
        Approx(122.0 * AllReduceUs(8, 64, 7168) + AllGatherUs(8, 64, 129280)));
}

TEST_CASE("collectives of two GPUs are the measured ones, of more they take longer",
          "[prediction]") {
  for (const MeasuredCollective& measured : MeasuredAllReduces()) {
    CHECK(AllReduceUs(2, measured.rows, 7168) == Approx(measured.us));
    CHECK(AllReduceUs(4, measured.rows, 7168) >= measured.us);
    CHECK(AllReduceUs(8, measured.rows, 7168) >= AllReduceUs(4, measured.rows, 7168));
  }
  CHECK(AllReduceUs(1, 64, 7168) == 0.0);
  CHECK(AllGatherUs(2, 8, 129280) == Approx(17.06));
  CHECK(AllGatherUs(8, 8, 129280) > 17.06);
  for (const MeasuredCollective& measured : MeasuredExchanges()) {
    CHECK(ExchangeUs(2, measured.rows, Whole()) == Approx(measured.us));
    CHECK(ExchangeUs(4, measured.rows, Whole()) >= measured.us);
    CHECK(ExchangeUs(8, measured.rows, Whole()) >= ExchangeUs(4, measured.rows, Whole()));
  }
  CHECK(ExchangeUs(8, 64, Whole()) > ExchangeUs(8, 8, Whole()));
  // Two GPUs send 2 * 1/2 * (1 - 1/2^8) rows and 4 contributions of a row; eight 7/8 of 4 and of 8.
  const double traffic = 7.0 / 8.0 * (4.0 + 8.0) / (0.5 * (2.0 * (1.0 - 1.0 / 256.0) + 8.0));
  CHECK(ExchangeUs(8, 1024, Whole()) ==
        Approx(266.16 + (1001.64 - 266.16) / 3072.0 * 1024.0 * (traffic - 1.0)));
}

TEST_CASE("models of other kernels are not predicted", "[prediction]") {
  ModelConfig model = Whole();
  CHECK(CanPredict(model));
  model.quantized = false;
  CHECK_FALSE(CanPredict(model));
  model = Whole();
  model.index_topk = 0;
  CHECK_FALSE(CanPredict(model));
  model = Whole();
  model.hidden = 256;
  CHECK_FALSE(CanPredict(model));
}

}  // namespace dsa
