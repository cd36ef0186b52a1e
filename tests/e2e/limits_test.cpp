// `dsa serve` under limits of files, descriptors, memory and threads: it serves or says in one line
// what is missing, and no client takes what others need.
#include "proto/token.grpc.pb.h"
#include "tests/e2e/process.h"
#include "tests/e2e/tiny_model.h"
#include "tests/paths.h"
#include "tests/temporary_folder.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <fstream>
#include <future>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

namespace dsa {
namespace {

using testing::Arguments;
using testing::Ended;
using testing::Process;
using testing::RunDsa;
using testing::TinyModel;

TEST_CASE("a file as large as it may be is a full disk, for the log and for an answer", "[e2e]") {
  const testing::TemporaryFolder folder;
  const std::string address = "unix:" + folder / "socket";
  Process server("ulimit -f 1; exec 2>" + folder / "log",
                 {"serve", "--model", TinyModel(), "--listen", address, "--threads", "1",
                  "--max-model-len", "256", "--max-num-seqs", "1", "--log-level", "debug"});
  const auto asked = [&] {
    return RunDsa({"healthcheck", "--address", address}, "").exit_code == 0;
  };
  const auto limit = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (!asked() && std::chrono::steady_clock::now() < limit) {
    poll(nullptr, 0, 50);
  }
  CHECK(RunDsa({"chat", "--address", address, "--max-tokens", "2", "hi"}, "").exit_code == 0);
  for (int i = 0; i < 3; ++i) {
    CHECK(RunDsa({"complete", "--address", address, "--ids", "5,6", "--max-tokens", "2"}, "")
              .exit_code == 0);
  }
  struct stat log {};
  REQUIRE(stat((folder / "log").c_str(), &log) == 0);
  CHECK(log.st_size == 512);  // as much as it takes
  server.Signal(SIGTERM);
  CHECK(server.Wait().exit_code == 0);
  const Ended refused = Process("ulimit -f 0; exec >" + folder / "out", {"version"}).Wait();
  CHECK(refused.exit_code == 1);
  CHECK(refused.err == "error: standard output: File too large\n");
}

TEST_CASE("connections fit the limit of descriptors, or serve refuses", "[e2e]") {
  const Arguments base = {"serve",           "--model", TinyModel(),      "--listen", "127.0.0.1:0",
                          "--max-model-len", "256",     "--max-num-seqs", "1"};
  Process adapted("ulimit -n 128", base);
  REQUIRE(adapted.WaitForErr("\"configuration\""));
  CHECK(adapted.err().find("\"max_connections\":21") != std::string::npos);
  adapted.Signal(SIGTERM);
  CHECK(adapted.Wait().exit_code == 0);
  Arguments asked = base;
  asked.insert(asked.end(), {"--max-connections", "22"});
  const Ended refused = Process("ulimit -n 128", asked).Wait();
  CHECK(refused.exit_code == 3);
  CHECK(refused.err ==
        "error: max_connections: 22 need 130 descriptors, but the limit of open "
        "files is 128 (ulimit -Hn)\n");
  // A soft limit is raised, as far as this machine lets it.
  rlimit files{};
  REQUIRE(getrlimit(RLIMIT_NOFILE, &files) == 0);
  const rlim_t most = std::min<rlim_t>(1024, (files.rlim_max - 64) / 3);
  Process raised("ulimit -Sn 128", base);
  REQUIRE(raised.WaitForErr("\"configuration\""));
  CHECK(raised.err().find(fmt::format("\"max_connections\":{},", most)) != std::string::npos);
}

#ifndef __SANITIZE_ADDRESS__  // which takes more than the sizes below
// A control group of a limited memory, where this process may make one.
class MemoryGroup final {
 public:
  explicit MemoryGroup(std::int64_t bytes) {
    for (const auto& [root, limit] : {std::pair("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                                      std::pair("/sys/fs/cgroup", "memory.max")}) {
      folder_ = fmt::format("{}/dsa_serve_test_{}", root, getpid());
      if (mkdir(folder_.c_str(), 0755) == 0) {
        std::ofstream file(folder_ + "/" + limit);
        made_ = static_cast<bool>(file << bytes << std::flush);
        if (made_) {
          return;
        }
        rmdir(folder_.c_str());
      }
    }
  }
  ~MemoryGroup() {
    for (int i = 0; i < 100 && rmdir(folder_.c_str()) != 0; ++i) {
      poll(nullptr, 0, 10);  // until the last process has left
    }
  }
  MemoryGroup(const MemoryGroup&) = delete;
  MemoryGroup& operator=(const MemoryGroup&) = delete;

  bool made() const { return made_; }
  // For a shell that then becomes the process.
  std::string Enter() const { return "echo $$ >" + folder_ + "/cgroup.procs"; }

 private:
  std::string folder_;
  bool made_ = false;
};

TEST_CASE("serve starts in a control group or says that its limit is too low", "[e2e]") {
  constexpr std::int64_t kMiB = std::int64_t{1} << 20;
  const Arguments serve = {"serve",    "--model",        TinyModel(),
                           "--listen", "127.0.0.1:0",    "--max-model-len",
                           "256",      "--max-num-seqs", "1"};
  {
    const MemoryGroup small(150 * kMiB);
    if (!small.made()) {
      WARN("no control group can be made here");
      return;
    }
    const Ended ended = Process(small.Enter(), serve).Wait();
    CHECK(ended.exit_code == 3);
    const std::size_t at = ended.err.find("error: not enough memory: ");
    INFO(ended.err);
    REQUIRE(at != std::string::npos);
    CHECK(ended.err.find(" available (cgroup limit)", at) != std::string::npos);
    CHECK(ended.err.find('\n', at) == ended.err.size() - 1);
  }
  const MemoryGroup enough(700 * kMiB);
  Process process(enough.Enter(), serve);
  REQUIRE(process.WaitForErr("\"configuration\""));
  CHECK(process.err().find("\"bound\":\"cgroup limit\"") != std::string::npos);
  process.Signal(SIGTERM);
  CHECK(process.Wait().exit_code == 0);
}

#ifndef __SANITIZE_THREAD__
// Twice six at once, which are refused for their tokens or for want of room, and then one alone.
void SendSixTexts(const Process& server) {
  const std::size_t at = server.err().find("\"port\":") + 7;
  const std::string address = fmt::format("127.0.0.1:{}", std::stoi(server.err().substr(at)));
  v1::TokenizeRequest request;
  while (request.text().size() < 15'600'000) {
    *request.mutable_text() += "a few words, and 12 more; ";
  }
  const auto stub =
      v1::TokenService::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  const auto ask = [&] {
    grpc::ClientContext rpc;
    rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
    v1::TokenizeResponse response;
    return stub->Tokenize(&rpc, request, &response).error_code();
  };
  for (int round = 0; round < 2; ++round) {
    std::vector<std::future<grpc::StatusCode>> codes;
    for (int i = 0; i < 6; ++i) {
      codes.push_back(std::async(std::launch::async, ask));
    }
    for (std::future<grpc::StatusCode>& code : codes) {
      const grpc::StatusCode got = code.get();
      CHECK((got == grpc::StatusCode::INVALID_ARGUMENT ||
             got == grpc::StatusCode::RESOURCE_EXHAUSTED));
    }
  }
  CHECK(ask() == grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_CASE("six texts of 15.6 MB end no server in the least control group that it takes", "[e2e]") {
  const std::string options =
      R"(; set -- "$@" --threads 2 --max-model-len 4096 --max-num-seqs 4 --max-queued-requests 8)"
      " --max-num-batched-tokens 256 --kv-cache-memory-bytes 20000000";
  const Arguments serve = {"serve", "--model", testing::SourcePath("models/dsa-tiny"), "--listen",
                           "127.0.0.1:0"};
  // MiB that it asks for in a group of `mib` that does not suffice; 0: it serves there.
  const auto refused_in = [&](std::int64_t mib) {
    const MemoryGroup group(mib << 20);
    if (!group.made()) {
      return std::int64_t{-1};
    }
    Process server(group.Enter() + options, serve);
    if (server.WaitForErr("\"configuration\"")) {
      SendSixTexts(server);
      server.Signal(SIGTERM);
      CHECK(server.Wait().exit_code == 0);
      return std::int64_t{0};
    }
    const Ended refused = server.Wait();
    CHECK(refused.exit_code == 3);
    INFO(refused.err);
    constexpr std::string_view kBefore = "; a limit of ";
    const std::size_t at = refused.err.find(kBefore);
    REQUIRE(at != std::string::npos);
    CHECK(refused.err.find(" MiB would suffice;", at) != std::string::npos);
    return std::int64_t{std::stol(refused.err.substr(at + kBefore.size()))};
  };
  const std::int64_t enough = refused_in(330);
  if (enough < 0) {
    WARN("no control group can be made here");
    return;
  }
  REQUIRE(enough > 330);
  CHECK(refused_in(enough) == 0);
  constexpr std::int64_t kMargin = 32;  // of the answer, and what one start takes more than another
  CHECK(refused_in(enough - kMargin) > 0);
}
#endif
#endif

#ifndef __SANITIZE_ADDRESS__  // which reserves terabytes of addresses
TEST_CASE("with too little memory or too few threads serve says so in one line", "[e2e]") {
  const Arguments serve = {"serve",    "--model",        TinyModel(),
                           "--listen", "127.0.0.1:0",    "--max-model-len",
                           "256",      "--max-num-seqs", "1"};
  const auto refuses = [](const Ended& ended) {
    CHECK(ended.exit_code == 3);
    const std::size_t at = ended.err.find("error: ");
    REQUIRE(at != std::string::npos);
    INFO(ended.err);
    CHECK(ended.err.find('\n', at) == ended.err.size() - 1);  // and what was logged before
    return ended.err.substr(at);
  };
  bool by_memory = false;
  // First threads are missing, then memory, then nothing.
  for (int kib = 150'000; kib <= 800'000; kib += kib < 450'000 ? 25'000 : 175'000) {
    CAPTURE(kib);
    Process process(fmt::format("ulimit -v {}", kib), serve);
    if (process.WaitForErr("\"configuration\"")) {
      process.Signal(SIGTERM);
      CHECK(process.Wait().exit_code == 0);
    } else {
      const std::string line = refuses(process.Wait());
      by_memory = by_memory || line.find("available (address-space limit)") != std::string::npos;
    }
  }
  CHECK(by_memory);
  CHECK(refuses(Process("ulimit -s 128", serve).Wait()) ==
        "error: the limit of stacks is 128 KiB, at least 256 are needed: see ulimit -s\n");
  // The limit of processes does not bind root.
  const std::string limit =
      geteuid() == 0 ? R"(set -- setpriv --reuid 64321 --clear-groups prlimit --nproc=3 "$@")"
                     : R"(set -- prlimit --nproc=1 "$@")";
  const Ended without = Process(limit, serve).Wait();
  if (without.exit_code == 126 || without.exit_code == 127) {
    WARN("another user cannot run this build");
  } else {
    CHECK(refuses(without).find("thread") != std::string::npos);
  }
}
#endif

}  // namespace
}  // namespace dsa
