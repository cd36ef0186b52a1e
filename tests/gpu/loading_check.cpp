// How fast a checkpoint of 8 GB gets onto the GPU, beside a plain read of its files, and how much
// host memory that takes.  The files are new, so both read what the system has cached.
#include "common/check.h"
#include "common/json.h"
#include "kernels/cuda/cuda_backend.h"
#include "model/checkpoint.h"
#include "model/checkpoint_files.h"
#include "model/random_checkpoint.h"
#include "model/safetensors.h"
#include "model/weight_loader.h"
#include "tests/gpu/gpu_checks.h"
#include "tests/process_usage.h"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <sys/wait.h>
#include <unistd.h>

namespace dsa {
namespace {

constexpr std::int64_t kLayers = 23;  // 353 MB each, but for the first
constexpr const char* kLoadingCase = "[.loads_large_checkpoint]";
const std::string kFolder = "build/large-checkpoint";

// A file of the tensors of `source` whose names begin with `from`, which they have as `to`.
std::vector<std::string> WriteRenamed(const SafetensorsFile& source, const std::string& from,
                                      const std::string& to, const std::string& path) {
  Json header = Json::object();
  std::string data;
  std::vector<std::string> names;
  for (const StoredTensor& tensor : source.tensors()) {
    if (!tensor.name.starts_with(from)) {
      continue;
    }
    names.push_back(to + tensor.name.substr(from.size()));
    const auto begin = static_cast<std::int64_t>(data.size());
    header[names.back()] = {{"dtype", SafetensorsName(tensor.type)},
                            {"shape", tensor.shape},
                            {"data_offsets", {begin, begin + tensor.bytes}}};
    data.resize(data.size() + static_cast<std::size_t>(tensor.bytes));
    DSA_CHECK(
        source.file()
            .ReadAt(tensor.offset, data.data() + begin, static_cast<std::size_t>(tensor.bytes))
            .ok(),
        "{}", tensor.name);
  }
  const std::string text = header.dump();
  const std::uint64_t size = text.size();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&size), sizeof(size));
  file << text << data;
  DSA_CHECK(file.good(), "{}", path);
  return names;
}

// A small one, whose expert layer is written again under further numbers: random values for all
// would take minutes.
void MakeCheckpoint() {
  RandomCheckpointOptions options;
  options.shards = 1;
  options.hidden = 7168;
  options.layers = 2;
  options.expert_width = 2048;  // experts of V3.2's size
  options.experts = 8;
  REQUIRE(WriteRandomCheckpoint(options, kFolder).ok());
  Json config = ParseJson(ReadFile(kFolder + "/config.json", 1 << 20).value(), "config").value();
  config["num_hidden_layers"] = kLayers;
  std::ofstream(kFolder + "/config.json") << config.dump(1);
  const std::string index_path = fmt::format("{}/{}", kFolder, kIndexFile);
  Json index = ParseJson(ReadFile(index_path, 1 << 20).value(), "index").value();
  const std::string first = index["weight_map"].begin().value();
  const SafetensorsFile source = SafetensorsFile::Open(kFolder + "/" + first).value();
  std::vector<std::vector<std::string>> names(kLayers);
  std::vector<std::thread> threads;
  for (std::size_t layer = 2; layer < names.size(); ++layer) {
    threads.emplace_back([&, layer] {
      names[layer] = WriteRenamed(source, "model.layers.1.", fmt::format("model.layers.{}.", layer),
                                  fmt::format("{}/layer-{}.safetensors", kFolder, layer));
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (std::size_t layer = 2; layer < names.size(); ++layer) {
    for (const std::string& name : names[layer]) {
      index["weight_map"][name] = fmt::format("layer-{}.safetensors", layer);
    }
  }
  std::ofstream(index_path) << index.dump(1);
}

// Bytes per second of reading all files once, piece by piece, on so many threads.
double ReadPlainly(const Checkpoint& checkpoint, int threads) {
  constexpr std::int64_t kPiece = std::int64_t{16} << 20;
  std::atomic<std::size_t> next = 0;
  std::atomic<std::int64_t> bytes = 0;
  const double start = testing::Now();
  std::vector<std::thread> readers;
  for (int i = 0; i < threads; ++i) {
    readers.emplace_back([&] {
      std::vector<char> piece(kPiece);
      for (std::size_t at = next++; at < checkpoint.files().size(); at = next++) {
        const File& file = checkpoint.files()[at].file();
        for (std::int64_t offset = 0; offset < file.size(); offset += kPiece) {
          const std::int64_t count = std::min(kPiece, file.size() - offset);
          DSA_CHECK(file.ReadAt(offset, piece.data(), static_cast<std::size_t>(count)).ok(), "{}",
                    file.path());
          bytes += count;
        }
      }
    });
  }
  for (std::thread& reader : readers) {
    reader.join();
  }
  return static_cast<double>(bytes) / (testing::Now() - start);
}

}  // namespace

TEST_CASE("the process that loads a large checkpoint", "[.loads_large_checkpoint]") {
  constexpr std::int64_t kHostBytesMax = std::int64_t{2} << 30;
  constexpr double kGiga = 1e9;
  constexpr double kOfPlainRead = 0.8;  // by one thread
  double best = 0;                      // of a plain read
  const Checkpoint checkpoint = Checkpoint::Open(kFolder).value();
  auto cuda = CudaBackend::Make(0);
  REQUIRE(cuda.ok());
  NoProgress progress;
  for (int run = 0; run < 2; ++run) {
    const double one = ReadPlainly(checkpoint, 1);
    const double eight = ReadPlainly(checkpoint, 8);
    const double start = testing::Now();
    const DeviceWeights loaded = LoadWeights(checkpoint, *cuda.value(), progress).value();
    const double seconds = testing::Now() - start;
    const auto bytes =
        static_cast<double>(WeightBytes(checkpoint, WholeModel(checkpoint.config())));
    best = std::max(best, bytes / seconds / one);
    fmt::print(
        "loading  {:.2f} GB in {:.2f} s, {:.2f} GB/s; a plain read {:.2f} GB/s by one thread, "
        "{:.2f} by eight\n",
        bytes / kGiga, seconds, bytes / kGiga / seconds, one / kGiga, eight / kGiga);
  }
  const std::int64_t host_bytes = testing::ProcessStatus(getpid(), "VmHWM");
  fmt::print("loading  {:.0f} MB of host memory at most\n", static_cast<double>(host_bytes) / 1e6);
  CHECK(best >= kOfPlainRead);
  CHECK(host_bytes > 0);
  CHECK(host_bytes <= kHostBytesMax);
}

TEST_CASE("a checkpoint of 8 GB loads at the speed of its files", "[loading]") {
  (void)testing::MustMake("cuda");
  const double start = testing::Now();
  MakeCheckpoint();
  fmt::print("loading  files made in {:.1f} s\n", testing::Now() - start);
  const pid_t child = fork();  // a process of its own, for its memory
  if (child == 0) {
    execl("/proc/self/exe", "loading", kLoadingCase, nullptr);
    _exit(127);
  }
  int status = 0;
  const bool waited = waitpid(child, &status, 0) == child;
  std::filesystem::remove_all(kFolder);
  REQUIRE(waited);
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

}  // namespace dsa
