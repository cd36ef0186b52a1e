// Numbers of ranks that cannot be, and what GPUs would hold, said without starting anything.
#include "tests/e2e/process.h"
#include "tests/e2e/tiny_model.h"
#include "tests/paths.h"
#include "tests/temporary_folder.h"

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include <catch2/catch.hpp>

namespace dsa {

TEST_CASE("numbers of ranks that do not fit are refused in one line", "[e2e][ranks]") {
  const auto refused = [](const testing::Arguments& arguments) {
    const testing::Ended ended = testing::RunDsa(arguments, "");
    CHECK(ended.exit_code == 2);
    CHECK(ended.out.empty());
    return ended.err;
  };
  const std::string& model = testing::TinyModel();
  CHECK(refused({"serve", model, "--listen", "127.0.0.1:0", "--tensor-parallel-size", "3"}) ==
        "error: tensor_parallel_size: 3 is none of 1, 2, which divide the model's 4 attention "
        "heads at borders of its blocks of 128 scaled values\n");
  CHECK(refused({"serve", model, "--listen", "127.0.0.1:0", "--tensor-parallel-size", "2",
                 "--device", "cuda:1"}) ==
        "error: device: \"cuda:1\" names 1, but tensor_parallel_size is 2: as many devices as "
        "ranks, or cuda for the first ones\n");
  CHECK(refused({"serve", model, "--listen", "127.0.0.1:0", "--tensor-parallel-size", "2",
                 "--device", "cuda:1,1"})
            .starts_with("error: --device: \"cuda:1,1\" is not one of cpu, cuda, cuda:N "));
  CHECK(refused({"serve", model, "--listen", "127.0.0.1:0", "--expert-parallel"})
            .starts_with("error: expert_parallel: true with tensor_parallel_size: 1: "));
  CHECK(refused({"serve", model, "--listen", "127.0.0.1:0", "--data-parallel-size", "2"})
            .starts_with("error: data_parallel_size: 2 without expert_parallel: "));
  CHECK(
      refused({"serve", model, "--listen", "127.0.0.1:0", "--data-parallel-size", "2",
               "--expert-parallel", "--device", "cuda:1"}) ==
      "error: device: \"cuda:1\" names 1, but tensor_parallel_size 1 of data_parallel_size 2 are 2 "
      "ranks: as many devices as ranks, or cuda for the first ones\n");
  CHECK(refused({"serve", model, "--listen", "127.0.0.1:0", "--data-parallel-size", "33",
                 "--expert-parallel", "--tensor-parallel-size", "2"}) ==
        "error: data_parallel_size: 33 of tensor_parallel_size: 2 are 66 ranks, at most 64\n");
  CHECK(
      refused({"serve", model, "--listen", "127.0.0.1:0", "--tensor-parallel-size", "2",
               "--collectives", "nccl"}) ==
      "error: collectives: \"nccl\" of ranks on device \"cpu\": only several ranks on CUDA have a "
      "choice; auto otherwise\n");
  CHECK(refused({"serve", model, "--listen", "127.0.0.1:0", "--device", "cuda", "--collectives",
                 "peer"}) ==
        "error: collectives: \"peer\" of one rank on device \"cuda\": only several ranks on CUDA "
        "have a choice; auto otherwise\n");
  CHECK(
      refused({"serve", model, "--listen", "127.0.0.1:0", "--device", "cuda",
               "--data-parallel-size", "2", "--expert-parallel", "--collectives", "nccl"}) ==
      "error: collectives: \"nccl\" with data_parallel_size: 2: data ranks exchange rows in memory "
      "that all see; auto or peer\n");
  CHECK(refused({"serve", model, "--tensor-parallel-size", "65"}) ==
        "error: --tensor-parallel-size: \"65\" is not an integer in [1, 64]\n");
}

TEST_CASE("inspect says what GPUs would hold without one", "[e2e][ranks]") {
  const std::string& model = testing::TinyModel();
  const auto inspected = [&](const std::string& gpus, const std::string& memory) {
    return testing::RunDsa({"inspect", model, "--max-model-len", "4096", "--gpus", gpus,
                            "--gpu-memory", memory, "--device-memory-reserve-bytes", "1000000000"},
                           "");
  };
  const testing::Ended two = inspected("2", "2000000000");
  CHECK(two.exit_code == 0);
  CHECK(two.out.find("GPUs            2 of 2.00 GB, 1.00 GB of it reserved") != std::string::npos);
  CHECK(two.out.find("\n  tensor parallel 2: weights ") != std::string::npos);
  CHECK(two.out.find("\n  tensor parallel 2, whole experts: weights ") != std::string::npos);
  CHECK(two.out.find("\n  data parallel 2, experts over all: weights ") != std::string::npos);
  CHECK(two.out.find(" tokens on each data rank: ") != std::string::npos);
  CHECK(two.out.find(" sequences of 8K, ") != std::string::npos);
  // A byte fewer than two blocks: one is for rows of padding.
  const testing::Ended small = inspected("1", "1000000001");
  const std::string missing = small.out.substr(small.out.find("does not fit: ") + 14);
  const std::int64_t bytes = std::atoll(missing.c_str());
  CHECK(bytes > 0);
  const std::string enough = std::to_string(1000000001 + bytes);
  CHECK(inspected("1", enough).out.find("room for 64 tokens") != std::string::npos);
  const std::string short_of_it = std::to_string(1000000000 + bytes);
  CHECK(inspected("1", short_of_it).out.find("does not fit: 1 bytes") != std::string::npos);
  // Three ranks have no heads each; attention is whole on data ranks.  Two blocks more than padding
  // takes, and a byte fewer.
  const testing::Ended three = inspected("3", "1000");
  CHECK(three.exit_code == 0);
  CHECK(three.out.find("tensor parallel") == std::string::npos);
  CHECK(three.out.find("\n  data parallel 3, experts over all: ") != std::string::npos);
  const testing::Ended four = inspected("4", "1000000001");
  CHECK(four.out.find("\n  data parallel 2, experts over all, tensor parallel 2: ") !=
        std::string::npos);
  const std::string of_four = four.out.substr(four.out.rfind("does not fit: ") + 14);
  const std::string fits = std::to_string(1000000001 + std::atoll(of_four.c_str()));
  CHECK(inspected("4", fits).out.find("room for 64 tokens on each data rank: 0 sequences of 8K") !=
        std::string::npos);
  CHECK(testing::RunDsa({"inspect", model, "--gpus", "2"}, "").exit_code == 2);
}

TEST_CASE("a model without routed experts has no data ranks", "[e2e][ranks]") {
  const testing::TemporaryFolder folder;
  std::ifstream whole(testing::TinyModel() + "/config.json");
  std::string config{std::istreambuf_iterator<char>(whole), {}};
  const std::string dense = "\"first_k_dense_replace\": ";
  config.replace(config.find(dense) + dense.size(), 1, "5");  // as many as it has layers
  std::ofstream(folder / "config.json") << config;
  const testing::Ended ended =
      testing::RunDsa({"serve", folder.path(), "--load", "dummy", "--listen", "127.0.0.1:0",
                       "--data-parallel-size", "2", "--expert-parallel"},
                      "");
  CHECK(ended.exit_code == 2);
  const std::string error =
      "error: data_parallel_size: 2: the model has no routed experts to share; it is 1\n";
  CHECK(ended.err.ends_with(error));  // behind what is logged of the configuration
}

TEST_CASE("a layout that the memory does not hold is refused with what is missing",
          "[e2e][ranks]") {
  const testing::Ended ended =
      testing::RunDsa({"serve", testing::TinyModel(), "--listen", "127.0.0.1:0",
                       "--tensor-parallel-size", "2", "--kv-cache-memory-bytes", "10000000000000"},
                      "");
  CHECK(ended.exit_code == 3);
  CHECK_THAT(ended.err, Catch::StartsWith("error: not enough memory: "));
  CHECK(ended.err.find('\n') == ended.err.size() - 1);
}

TEST_CASE("inspect predicts steps of GPUs that are not there", "[e2e][ranks]") {
  const testing::Ended ended = testing::RunDsa(
      {"inspect", testing::SourcePath("configs/models/deepseek-v32"), "--load", "dummy", "--gpus",
       "8", "--gpu-memory", "141000000000", "--max-model-len", "131072"},
      "");
  CHECK(ended.exit_code == 0);
  std::size_t predictions = 0;
  for (std::size_t at = ended.out.find("    predicted on "); at != std::string::npos;
       at = ended.out.find("    predicted on ", at + 1)) {
    ++predictions;
  }
  CHECK(predictions == 10);  // of five layouts on two kinds of GPU
  CHECK(ended.out.find("    predicted on H200, 8192 keys: decode of 1 row ") != std::string::npos);
  CHECK(ended.out.find(" rows per data rank ") != std::string::npos);
}

}  // namespace dsa
