// `dsa bench position`, the real binary, with the model that ships: the shape of its files and what
// must hold of any measurement.  What steps cost beside each other is measured in this process, by
// the processor time that they take: neither the machine nor its neighbours change that.
#include "server/bench/position_bench.h"

#include "common/json.h"
#include "tests/e2e/process.h"
#include "tests/paths.h"
#include "tests/processor_time.h"
#include "tests/temporary_folder.h"

#include <algorithm>
#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa {
namespace {

using testing::Ended;
using testing::TemporaryFolder;

std::string FileText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<std::string> Fields(const std::string& line) {
  std::vector<std::string> fields;
  std::istringstream stream(line);
  for (std::string field; std::getline(stream, field, ',');) {
    fields.push_back(field);
  }
  return fields;
}

using Line = std::map<std::string, std::string>;

std::vector<Line> CsvLines(const std::string& text) {
  std::istringstream stream(text);
  std::string header;
  std::getline(stream, header);
  const auto names = Fields(header);
  std::vector<Line> lines;
  for (std::string row; std::getline(stream, row);) {
    const auto fields = Fields(row + " ");  // git_sha may be empty, the date is not
    REQUIRE(fields.size() == names.size());
    Line line;
    for (std::size_t i = 0; i < names.size(); ++i) {
      line[names[i]] = fields[i];
    }
    lines.push_back(line);
  }
  return lines;
}

double Number(const Line& line, const std::string& name) {
  return std::stod(line.at(name));
}

std::string Model() {
  return testing::SourcePath("models/dsa-tiny");
}

}  // namespace

TEST_CASE("a quick run draws the curves of DSA and its dense twin", "[bench][position]") {
  const TemporaryFolder folder;
  const std::string output = folder / "out";
  const Ended ended =
      testing::RunDsa({"bench", "position", "--model", Model(), "--quick", "--max-position", "2048",
                       "--gpu-hour-usd", "3.6", "--output", output},
                      "");
  CAPTURE(ended.err, ended.out);
  REQUIRE(ended.exit_code == 0);
  const auto lines = CsvLines(FileText(output + "/position.csv"));
  std::map<std::string, std::vector<Line>> curves;
  for (const Line& line : lines) {
    curves[line.at("phase") + " " + line.at("attn") + " " + line.at("batch")].push_back(line);
    const double us = Number(line, "gpu_us_per_token");
    CHECK(us > 0);
    CHECK(Number(line, "step_ms_p10") <= Number(line, "step_ms_p50"));
    CHECK(Number(line, "step_ms_p50") <= Number(line, "step_ms_p90"));
    CHECK(us == Approx(Number(line, "step_ms_p50") * 1000 / Number(line, "chunk")).epsilon(1e-3));
    CHECK(Number(line, "usd_per_mtok") == Approx(us * 1e-3).epsilon(1e-3));  // 3.6 $ an hour
    CHECK(Number(line, "tok_per_s_per_gpu") == Approx(1e6 / us).epsilon(1e-3));
    CHECK(Number(line, "tokens") == Number(line, "chunk") * Number(line, "steps"));
    CHECK(Number(line, "pos_end") > Number(line, "pos_start"));
    CHECK(Number(line, "pos_mid") ==
          Approx((Number(line, "pos_start") + Number(line, "pos_end")) / 2));
    CHECK(Number(line, "steps") >= 2);
    CHECK(line.at("model") == "dsa-tiny");
    CHECK(line.at("kv_dtype") == "fp8");
    CHECK(line.at("layers") == "5");
  }
  REQUIRE(curves.size() == 6);
  for (const auto& [name, curve] : curves) {
    CAPTURE(name);
    CHECK(curve.size() == 6);
    CHECK(Number(curve.back(), "pos_mid") > 2000);
  }

  const Json json = Json::parse(FileText(output + "/position.json"));
  CHECK(json["complete"] == true);
  CHECK(json["skipped"].empty());
  CHECK(json["points"].size() == lines.size());
  CHECK(json["decomposition"].size() == 8);  // of batch 1 decode also attention alone
  CHECK(json["summary"].size() == 4);
  CHECK_FALSE(json["prompts"].empty());
  CHECK(json["computed_to_copied_step"].get<double>() > 0);
  for (const Json& point : json["points"]) {
    if (point["phase"] == "decode") {  // 5 layers; selected keys, and all index keys to select from
      const double keys = point["pos_mid"];
      const bool selects = point["attn"] == "sparse" && keys > 256;
      const double bytes = selects ? 256 * 656 + keys * 132 : keys * 656;
      CAPTURE(point["attn"], keys);
      CHECK(point["keys_read"]["bytes"].get<double>() ==
            Approx(5 * bytes * point["batch"].get<double>()));
    }
  }
  REQUIRE_FALSE(json["operators"].empty());
  for (const Json& row : json["operators"]) {
    const double share = row["operators_us"].get<double>() / row["step_us"].get<double>();
    CAPTURE(row["attn"], row["position"], share);
    CHECK(share > 0);
    CHECK(share <= 1.0);
    CHECK(row["operators"].contains("latent_attention"));
    // The index keys are always written, the scores needed beyond 256 keys only; the twin has none.
    const bool sparse = row["attn"] == "sparse";
    CHECK(row["operators"].contains("store_indexer_key") == sparse);
    const int position = row["position"];
    if (position != 256) {  // the measured steps go from one to the other
      CHECK(row["operators"].contains("indexer_logits") == (sparse && position > 256));
    }
  }
  CHECK(ended.out.find("; at 20") != std::string::npos);  // and what dense costs there
  CHECK(FileText(output + "/position.gnuplot").find("V3.2-Exp (paper x ") != std::string::npos);
  const bool pictures = std::filesystem::exists(output + "/position.png") &&
                        std::filesystem::exists(output + "/position.svg");
  CHECK(pictures != (ended.err.find("no picture: gnuplot") != std::string::npos));
}

TEST_CASE("steps of DSA work less than dense ones where the context is long", "[bench][position]") {
  using bench::Attention;
  const TemporaryFolder folder;
  bench::PositionOptions options;
  options.model = Model();
  options.threads = 1;
  options.quick = true;
  options.position_max = 4096;
  options.output = folder / "out";
  const testing::ProcessorClock clock;
  const std::atomic<bool> interrupted = false;
  const auto measured = bench::MeasurePositions(options, clock, interrupted);
  REQUIRE(measured.ok());
  const bench::PositionResult& result = measured.value();
  CHECK(result.complete);
  const auto cost = [&](bool decode, Attention attention, std::int64_t batch) {
    const auto curve = bench::CurveOf(result, decode, attention, batch);
    REQUIRE(curve.size() >= 6);
    CHECK(curve.back().position > 4000);
    return std::pair(curve.front().cost_us, curve.back().cost_us);
  };
  // Dense attention reads 4K keys where DSA reads 256.
  const auto dense = cost(true, Attention::kDense, 4);
  CHECK(dense.second > 1.3 * cost(true, Attention::kSparse, 4).second);
  CHECK(cost(false, Attention::kDense, 1).second > 1.3 * cost(false, Attention::kSparse, 1).second);
  CHECK(dense.second > 1.5 * dense.first);
  for (const std::string& sentence : bench::PositionSentences(result)) {
    CAPTURE(sentence);
    CHECK(sentence.find("DSA is cheaper than dense from position") != std::string::npos);
  }
  CHECK(result.computed_to_copied.value_or(0) == Approx(1).margin(0.5));
  int with_operators = 0;
  for (const bench::PositionRow& row : result.rows) {
    CHECK(row.step_us > 0);
    if (row.operators) {
      ++with_operators;
      double sum_us = 0;
      for (const double us : row.operators->times_us) {
        sum_us += us;
      }
      CAPTURE(row.position, bench::NameOf(row.attention));
      CHECK(sum_us > 0.5 * row.operators->step_us);
      CHECK(sum_us <= row.operators->step_us);
      CHECK(row.operators->to_plain == Approx(1).margin(0.7));
    }
  }
  CHECK(with_operators > 10);
}

TEST_CASE("an interrupted run writes what it has, marked as incomplete", "[bench][position]") {
  const TemporaryFolder folder;
  const std::string output = folder / "out";
  testing::Process process({"bench", "position", "--model", Model(), "--output", output},
                           testing::Streams::kTerminal);
  REQUIRE(process.WaitForOut(" s left", 0));  // a point is done
  process.Signal(SIGINT);
  const Ended ended = process.Wait();
  CAPTURE(ended.out);
  CHECK(ended.exit_code == 130);
  CHECK(ended.out.find("interrupted: what was measured is in") != std::string::npos);
  const Json json = Json::parse(FileText(output + "/position.json"));
  CHECK(json["complete"] == false);
  CHECK_FALSE(json["points"].empty());
  REQUIRE_FALSE(json["skipped"].empty());
  CHECK(json["skipped"].back().get<std::string>().find("interrupted") != std::string::npos);
  CHECK(CsvLines(FileText(output + "/position.csv")).size() == json["points"].size());
}

TEST_CASE("a slice of the layers is scaled to all of them, and says so", "[bench][position]") {
  const TemporaryFolder folder;
  const std::string output = folder / "out";
  const Ended ended =
      testing::RunDsa({"bench", "position", "--model", Model(), "--load", "dummy", "--slice",
                       "layers=3", "--quick", "--positions", "0,256,512,768,1024", "--max-batch",
                       "1", "--masked-mha-until", "512", "--output", output},
                      "");
  CAPTURE(ended.err, ended.out);
  REQUIRE(ended.exit_code == 0);
  const Json json = Json::parse(FileText(output + "/position.json"));
  const Json& scaled = json["scaled_to_all_layers"];
  CHECK(json["layers"] == 3);
  CHECK(json["masked_mha_until"] == 512);  // what the steps have run with
  CHECK(scaled["layers"] == 5);
  REQUIRE(scaled["points"].size() == json["points"].size());
  for (std::size_t i = 0; i < scaled["points"].size(); ++i) {
    const double ratio = scaled["points"][i]["step_ms_p50"].get<double>() /
                         json["points"][i]["step_ms_p50"].get<double>();
    // Embedding and head stay as they are; of the 3 layers 2 have experts, of the 5 there are 4.
    // How each operator is scaled: position_fit_test.
    CHECK(ratio > 1.0);
    CHECK(ratio < 2.0);
  }
  CHECK(CsvLines(FileText(output + "/position.csv"))[0].at("layers") == "3");
  const auto line = CsvLines(FileText(output + "/position_scaled.csv"))[0];
  CHECK(line.at("layers") == "5");
  CHECK(line.at("model") == "dsa-tiny (layers=3) scaled to all layers");
  CHECK(FileText(output + "/position.gnuplot").find("scaled from 3 to 5 layers") !=
        std::string::npos);
  CHECK(ended.out.find("scaled from 3 to 5 layers:") != std::string::npos);
}

TEST_CASE("a context is measured to its end", "[bench][position]") {
  const TemporaryFolder folder;
  const std::string output = folder / "out";
  const Ended made = testing::RunDsa(
      {"make-checkpoint", "--output", folder / "model", "--context", "512", "--hidden", "128"}, "");
  REQUIRE(made.exit_code == 0);
  const Ended ended = testing::RunDsa({"bench", "position", "--model", folder / "model", "--quick",
                                       "--positions", "256,512", "--output", output},
                                      "");
  CAPTURE(ended.err, ended.out);
  REQUIRE(ended.exit_code == 0);
  CHECK(Json::parse(FileText(output + "/position.json"))["complete"] == true);
  int at_the_end = 0;
  for (const Line& line : CsvLines(FileText(output + "/position.csv"))) {
    CHECK(Number(line, "pos_end") <= 512);
    at_the_end += line.at("phase") == "decode" && Number(line, "pos_start") > 450 ? 1 : 0;
  }
  CHECK(at_the_end == 4);  // of DSA and its twin, one sequence and four
}

TEST_CASE("positions whose caches do not fit are left out and named", "[bench][position]") {
  const TemporaryFolder folder;
  const std::string output = folder / "out";
  // 32 sequences of 4K take 0.5 GB.
  testing::Process process(
      "ulimit -v 650000",
      {"bench", "position", "--model", Model(), "--quick", "--threads", "2", "--positions",
       "0,64,4096", "--batch", "32", "--max-batch", "32", "--output", output});
  const Ended ended = process.Wait();
  CAPTURE(ended.err, ended.out);
  CHECK(ended.exit_code == 0);
  const std::string reason = "decode, sparse, 4096: 32 sequences of 4240 tokens do not fit into";
  CHECK(ended.out.find("2 points skipped, the first: " + reason) != std::string::npos);
  CHECK(ended.out.find("positions up to 64 do") != std::string::npos);
  const Json json = Json::parse(FileText(output + "/position.json"));
  CHECK(json["complete"] == false);
  REQUIRE(json["skipped"].size() == 2);  // of DSA and of its twin
  CHECK(json["skipped"][0].get<std::string>().starts_with(reason));
  int decode_points = 0;
  int prefill_points = 0;
  for (const Line& line : CsvLines(FileText(output + "/position.csv"))) {
    const bool decode = line.at("phase") == "decode";
    (decode ? decode_points : prefill_points) += 1;
    CHECK((!decode || Number(line, "pos_mid") < 100));
  }
  CHECK(decode_points == 4);
  CHECK(prefill_points == 4);  // these fit; 0 and 64 are of one chunk
}

TEST_CASE("what cannot be measured by position is told in one line", "[bench][position]") {
  const TemporaryFolder folder;
  struct Case {
    testing::Arguments arguments;
    int exit_code;
    const char* message;
  };
  const std::vector<Case> cases = {
      {{"--model", Model(), "--positions", "40000"}, 2, "positions: 40000 is not in [0, 32768]"},
      {{"--model", Model(), "--max-position", "40000"}, 2, "max-position: 40000 is not in"},
      {{"--model", Model(), "--batch", "65"}, 2, "batch: 65"},
      {{"--model", Model(), "--chunk", "100"}, 2, "chunk: 100 is no multiple of the 64"},
      {{"--model", Model(), "--slice", "layers=4"}, 2, "slice: 'layers=4' needs load: dummy"},
      {{"--model", Model(), "--load", "dummy", "--slice", "layers=9"}, 2, "layers=9 of a model"},
      {{"--model", Model(), "--load", "dummy", "--slice", "half"}, 2, "slice: 'half' is not all,"},
      {{"--model", Model(), "--load", "dummy", "--slice", "layers=1"}, 2, "layers=2 at least"},
      {{"--model", Model(), "--device", "tpu"}, 2, "tpu"},
      {{"--model", Model(), "--gpu-hour-usd", "nan"}, 2, "--gpu-hour-usd"},
      {{"--model", Model(), "--positions", "x"}, 2, "--positions"},
      {{"--model", folder / "none"}, 2, "none"},
  };
  for (const Case& one : cases) {
    testing::Arguments arguments = {"bench", "position", "--output", folder / "out"};
    arguments.insert(arguments.end(), one.arguments.begin(), one.arguments.end());
    const Ended ended = testing::RunDsa(arguments, "");
    CAPTURE(one.message, ended.err);
    CHECK(ended.exit_code == one.exit_code);
    CHECK(ended.err.find(one.message) != std::string::npos);
    CHECK(std::count(ended.err.begin(), ended.err.end(), '\n') == 1);
  }
}

}  // namespace dsa
