// The sources keep the rules of tests/tidy/rules.h, and each rule fires on text that breaks it.
#include "tests/paths.h"
#include "tests/tidy/rules.h"
#include "tests/tidy/sources.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include <catch2/catch.hpp>

namespace dsa::tidy {
namespace {

namespace fs = std::filesystem;

template <typename Check>
void RequireNone(Check check) {
  for (const Source& source : Sources()) {
    for (const Complaint& complaint : check(source)) {
      INFO(complaint.path << ":" << complaint.line << ": " << complaint.what);
      CHECK(false);
    }
  }
}

// The packages a list or a Dockerfile's list names.
std::set<std::string> Packages(const std::string& text) {
  std::set<std::string> packages;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    line = line.substr(0, line.find('#'));
    std::istringstream words(line);
    for (std::string word; words >> word;) {
      packages.insert(word);
    }
  }
  return packages;
}

}  // namespace

TEST_CASE("folders include only what is below them", "[tidy]") {
  RequireNone([](const Source& source) { return CheckIncludes(source, Graph()); });
}

// All that `pattern`'s first group matches.
std::set<std::string> AllMatches(const std::string& text, const char* pattern) {
  const std::regex wanted(pattern);
  std::set<std::string> found;
  for (std::sregex_iterator it(text.begin(), text.end(), wanted), end; it != end; ++it) {
    found.insert((*it)[1]);
  }
  return found;
}

// Names that stand in backticks, alone or first, such as "`stop`" and "`thinking: {type}`".
std::set<std::string> NamesIn(const std::string& text) {
  return AllMatches(text, "`([a-z_]+)[`:.]");
}

TEST_CASE("every route and field of HTTP is documented, and nothing else", "[tidy]") {
  std::string code;
  for (const auto& entry : fs::directory_iterator(testing::SourcePath("server/http/openai"))) {
    code += ReadText(entry.path());
  }
  const std::string docs = ReadText(testing::SourcePath("docs/http.md"));
  const std::string routes = docs.substr(0, docs.find("## Fields"));
  const std::string fields =
      docs.substr(docs.find("## Fields"), docs.find("## Answers") - docs.find("## Fields"));
  std::set<std::string> taken = AllMatches(code, R"re(\bTake[A-Za-z]*\("([a-z_]+)"\))re");
  taken.merge(AllMatches(code, R"re(Documented\{"([a-z_]+)")re"));
  CHECK(taken.size() > 70);
  const std::set<std::string> named = NamesIn(docs);
  for (const std::string& field : taken) {
    INFO(field << " is read by server/http/openai and not in docs/http.md");
    CHECK(named.count(field) == 1);
  }
  // Of the first column: a row's end, a bar, and what stands before the next bar.
  std::string first_columns;
  for (const std::string& column : AllMatches(fields, R"re(\n(\| [^|]*) \|)re")) {
    first_columns += column;
  }
  const std::string readers = code + ReadText(testing::SourcePath("tokenizer/chat_json.cpp"));
  for (const std::string& field : NamesIn(first_columns)) {
    INFO(field << " is in docs/http.md and nothing reads it");
    CHECK(readers.find('"' + field + '"') != std::string::npos);
  }
  for (const std::string& route :
       AllMatches(code, R"re(\{?"(/[a-z0-9/_]+)"(?:, "(?:GET|POST)"|;))re")) {
    INFO(route << " is served and not documented");
    CHECK(routes.find(' ' + route) != std::string::npos);
  }
  for (const std::string& route : AllMatches(routes, "`(?:GET|POST) (/[a-z0-9/_]+)`")) {
    INFO(route << " is documented and not served");
    CHECK(code.find('"' + route + '"') != std::string::npos);
  }
}

TEST_CASE("the API depends on no kernel, however far", "[tidy]") {
  for (const Complaint& complaint : CheckReach(Sources())) {
    INFO(complaint.path << ": " << complaint.what);
    CHECK(false);
  }
  std::vector<Source> sources = {{"server/api/call.cpp", "#include \"server/engine/engine.h\"\n"},
                                 {"server/engine/engine.h", "#include \"scheduler/request.h\"\n"},
                                 {"scheduler/request.h", ""},
                                 {"server/engine/executor.h", "#include \"kernels/backend.h\"\n"}};
  CHECK(CheckReach(sources).empty());
  sources[2].text = "#include \"server/engine/executor.h\"\n";
  const std::vector<Complaint> complaints = CheckReach(sources);
  REQUIRE(complaints.size() == 1);
  CHECK(complaints[0].path == "server/api/call.cpp");
  CHECK(complaints[0].what ==
        "depends on server/engine/engine.h scheduler/request.h server/engine/executor.h "
        "kernels/backend.h");
}

TEST_CASE("an op's header is read by its users alone", "[tidy]") {
  for (const Complaint& complaint : CheckOpReach(Sources())) {
    INFO(complaint.path << ": " << complaint.what);
    CHECK(false);
  }
  std::vector<Source> sources = Sources();
  const auto backend = std::find_if(sources.begin(), sources.end(), [](const Source& source) {
    return source.path == "kernels/backend.h";
  });
  REQUIRE(backend != sources.end());
  backend->text += "#include \"kernels/fused/activation.h\"\n";
  const std::vector<Complaint> complaints = CheckOpReach(sources);
  REQUIRE(complaints.size() == 5);  // all but ops.h, which knows no backend
  CHECK(complaints[0].path == "kernels/backend.h");
  CHECK(complaints[0].what == "depends on kernels/fused/activation.h");
  sources.erase(backend);
  CHECK(CheckOpReach(sources).front().what == "is not there");
}

TEST_CASE("libraries stay in the folders they belong to", "[tidy]") {
  RequireNone(CheckLibraries);
}

TEST_CASE("files and functions keep their size", "[tidy]") {
  RequireNone(CheckSizes);
}

TEST_CASE("banned words do not occur", "[tidy]") {
  RequireNone(CheckBannedWords);
}

TEST_CASE("headers say what they are for", "[tidy]") {
  RequireNone(CheckHead);
}

TEST_CASE("protos name their Go package and import each other from the root", "[tidy]") {
  const fs::path root = testing::SourcePath("");
  static const std::regex import(R"re(^import "([^"]+)";$)re");
  static const std::regex go_package(R"re(^option go_package = "[^"]*/[^"]*";$)re");
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(root / "proto")) {
    if (entry.path().extension() != ".proto") {
      continue;
    }
    ++files;
    INFO(entry.path().string());
    int go_packages = 0;
    std::istringstream lines(ReadText(entry.path()));
    for (std::string line; std::getline(lines, line);) {
      go_packages += std::regex_match(line, go_package) ? 1 : 0;
      std::smatch match;
      if (std::regex_match(line, match, import)) {
        const std::string path = match[1];
        INFO(path);
        CHECK((path.rfind("google/protobuf/", 0) == 0 || fs::exists(root / path)));
      }
    }
    CHECK(go_packages == 1);
  }
  CHECK(files > 7);
}

TEST_CASE("the top level holds what architecture.md argues for, and nothing else", "[tidy]") {
  const std::set<std::string> allowed = {
      "server",        "kernels",     "scheduler",      "cache",
      "proto",         "configs",     "tests",          "docker",
      "common",        "model",       "tokenizer",      "bench",
      "docs",          "cmake",       "tools",          "clients",
      "models",        "build",       ".git",           ".ci",
      ".cache",        ".carry",      "CMakeLists.txt", "CMakePresets.json",
      "Makefile",      "README.md",   "LICENSE",        "NOTICE",
      ".clang-format", ".clang-tidy", ".editorconfig",  ".gitignore",
      ".dockerignore"};
  for (const auto& entry : fs::directory_iterator(testing::SourcePath(""))) {
    INFO(entry.path().filename().string());
    CHECK(allowed.count(entry.path().filename().string()) == 1);
  }
}

TEST_CASE("the image and the Makefile install from the same package lists", "[tidy]") {
  const fs::path root = testing::SourcePath("");
  const std::string dockerfile = ReadText(root / "docker/Dockerfile");
  const std::string makefile = ReadText(root / "Makefile");
  CHECK(Packages(ReadText(root / "docker/packages-build.txt")).count("g++") == 1);
  CHECK(dockerfile.find("docker/packages-build.txt") != std::string::npos);
  CHECK(makefile.find("docker/packages-build.txt") != std::string::npos);
  // The images are built without tests, whose packages their systems have in other versions.
  CHECK(dockerfile.find("packages-test.txt") == std::string::npos);
  // No package is installed by name beside the lists.
  for (const std::string& text : {dockerfile, makefile}) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      INFO(line);
      const bool installs = line.find("apt-get install") != std::string::npos;
      CHECK((!installs || line.find("packages-") != std::string::npos));
    }
  }
}

TEST_CASE("each rule fires on text that breaks it", "[tidy]") {
  const auto includes = [](const char* path, const char* text) {
    return CheckIncludes({path, text}, Graph()).size();
  };
  CHECK(includes("kernels/a.h", "#include \"cache/b.h\"\n") == 1);
  CHECK(includes("kernels/a.h", "#include \"common/b.h\"\n#include \"kernels/c.h\"\n") == 0);
  CHECK(includes("server/engine/a.h", "#include \"proto/chat.pb.h\"\n") == 1);
  CHECK(includes("server/engine/a.h", "#include \"server/api/b.h\"\n") == 1);
  CHECK(includes("server/api/a.h", "#include \"kernels/b.h\"\n") == 1);
  CHECK(includes("server/api/a.h", "#include \"server/engine/b.h\"\n") == 0);
  CHECK(includes("server/api/a.h", "#include \"server/grpc/b.h\"\n") == 1);
  CHECK(includes("server/api/a.h", "#include \"proto/chat.pb.h\"\n") == 1);
  CHECK(includes("server/http/a.h", "#include \"server/grpc/b.h\"\n") == 1);
  CHECK(includes("server/http/a.h", "#include \"proto/chat.pb.h\"\n") == 1);
  CHECK(includes("server/grpc/v1/a.h", "#include \"server/grpc/b.h\"\n") == 0);
  CHECK(includes("scheduler/a.h", "  #  include \"model/b.h\"\n") == 1);

  CHECK(CheckLibraries({"server/engine/a.cpp", "#include <grpcpp/grpcpp.h>\n"}).size() == 1);
  CHECK(CheckLibraries({"server/grpc/a.cpp", "#include <grpcpp/grpcpp.h>\n"}).empty());
  CHECK(CheckLibraries({"server/api/a.cpp", "#include <grpcpp/grpcpp.h>\n"}).size() == 1);
  CHECK(CheckLibraries({"server/api/a.h", "#include <google/protobuf/message.h>\n"}).size() == 1);
  CHECK(CheckLibraries({"server/a.cpp", "#include <grpc/grpc.h>\n"}).size() == 1);
  CHECK(CheckLibraries({"server/http/a.cpp", "#include <grpc/grpc.h>\n"}).size() == 1);
  CHECK(CheckLibraries({"server/http/a.cpp", "#include <boost/asio.hpp>\n"}).size() == 1);
  CHECK(CheckLibraries({"model/a.cpp", "#include <spdlog/spdlog.h>\n"}).size() == 1);
  CHECK(CheckLibraries({"model/a.h", "#include <nlohmann/json.hpp>\n"}).size() == 1);
  CHECK(CheckLibraries({"model/a.cpp", "#include <cuda_runtime_api.h>\n"}).size() == 1);

  std::string long_file;
  for (int i = 0; i < 501; ++i) {
    long_file += "int a" + std::to_string(i) + ";\n";
  }
  CHECK(CheckSizes({"model/a.cpp", long_file}).size() == 1);
  CHECK(CheckSizes({"kernels/cuda/a.cu", long_file}).empty());
  std::string long_function = "namespace dsa {\n\nvoid Foo(int a,\n         int b) {\n";
  for (int i = 0; i < 70; ++i) {
    long_function += "  a += b;\n";
  }
  CHECK(CheckSizes({"model/a.cpp", long_function + "}\n\n}\n"}).size() == 1);

  const auto banned = [](const char* text) {
    return CheckBannedWords({"model/a.cpp", text}).size();
  };
  CHECK(banned("std::cout << 1;\n") == 1);
  CHECK(banned("  printf(\"x\");\n") == 1);
  CHECK(banned("fmt::print(\"printf(\"); // printf(\n") == 0);
  CHECK(banned("std::fprintf(stderr, x); snprintf(a, b);\n") == 0);
  CHECK(banned("int x = rand();\n") == 1);
  CHECK(banned("volatile int x;\n") == 1);
  CHECK(banned("asm volatile(\"trap;\");\n") == 0);
  CHECK(banned("auto v = getenv(\"A\");\n") == 1);
  CHECK(banned("try {} catch (...) {}\n") == 1);
  CHECK(banned("delete pointer;\n") == 1);
  CHECK(banned("Foo(const Foo&) = delete;\n") == 0);
  CHECK(banned("// FIX"
               "ME later\n") == 1);
  CHECK(banned("cudaMalloc(&p, 1);\n") == 1);
  CHECK(banned("int x = srand(1) + std::random_shuffle(a, b);\n") == 1);
  CHECK(banned("stream << std::endl;\n") == 1);
  CHECK(banned("void* x = mmap(0, 1);\n") == 1);
  CHECK(banned("void* x = alloca(1);\n") == 1);
  CHECK(banned("throw x;\n") == 1);
  CHECK(banned("delete[] x;\n") == 1);
  CHECK(banned("std::this_thread::sleep_for(x);\n") == 1);
  CHECK(banned("thread.detach();\n") == 1);
  CHECK(banned("// XX"
               "X\n") == 1);
  CHECK(banned("// TO"
               "DO\n") == 1);

  CHECK(CheckHead({"model/a.h", "#pragma once\n"}).size() == 1);
  CHECK(CheckHead({"model/a.h", "// What for.\n"}).size() == 1);
  const std::string mixed = "a \"b\\\"c\" R\"x(d)\")x\" 1'000 'e' // f\ng";
  std::string code = CodeOnly(mixed);
  CHECK(code.size() == mixed.size());
  code.erase(std::remove(code.begin(), code.end(), ' '), code.end());
  CHECK(code == "aR1'000\ng");
}

}  // namespace dsa::tidy
