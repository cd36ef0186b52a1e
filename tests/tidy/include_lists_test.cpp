#include "tests/tidy/include_lists.h"

#include "tests/tidy/sources.h"

#include <string>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::tidy {

TEST_CASE("each source includes what it uses", "[tidy]") {
  std::vector<Source> sources = Sources();
  std::erase_if(sources, [](const Source& source) { return source.path.rfind("tests/", 0) == 0; });
  CHECK(sources.size() > 300);
  for (const Complaint& complaint : CheckIncludeLists(sources)) {
    INFO(complaint.path << ": " << complaint.what);
    CHECK(false);
  }
}

TEST_CASE("a missing include is seen, and what a file has by itself is not", "[tidy]") {
  const std::vector<Source> headers = {
      {"a/shape.h",
       "#include <vector>\nnamespace dsa {\nstruct Shape {\n  std::vector<int> sizes;\n};\n"
       "enum class Kind : char { kOne };\ninline constexpr int kLimit = 1;\nusing Sizes = int;\n"
       "Shape MakeShape(int size);\nclass Later;\n}\n"},
      {"a/user.h", "#include \"a/shape.h\"\nnamespace dsa {\nstruct Rope { int Turn(); };\n}\n"},
  };
  const auto complaints = [&](const std::string& text) {
    std::vector<Source> sources = headers;
    sources.push_back({"b/file.cpp", text});
    std::string all;
    for (const Complaint& complaint : CheckIncludeLists(sources)) {
      all += complaint.path + ": " + complaint.what + "; ";
    }
    return all;
  };
  CHECK(complaints("void F(const Shape& shape);\n") == "b/file.cpp: Shape without a/shape.h; ");
  CHECK(complaints("Kind kind;\n") == "b/file.cpp: Kind without a/shape.h; ");
  CHECK(complaints("int a = kLimit + 1;\n") == "b/file.cpp: kLimit without a/shape.h; ");
  CHECK(complaints("std::vector<Sizes> a;\n#include <vector>\n") ==
        "b/file.cpp: Sizes without a/shape.h; ");
  CHECK(complaints("auto a = MakeShape(1);\n") == "b/file.cpp: MakeShape without a/shape.h; ");
  CHECK(complaints("int F() { return kLimit; }\n") == "b/file.cpp: kLimit without a/shape.h; ");
  CHECK(complaints("std::sort(a, b);\n") == "b/file.cpp: sort without <algorithm>; ");
  CHECK(complaints("#include <map>\nstd::vector<int> a;\n") ==
        "b/file.cpp: vector without <vector>; ");
  CHECK(complaints("fmt::print(a);\n") == "b/file.cpp: fmt without <fmt/core.h>; ");
  CHECK(complaints("#include <fmt/format.h>\nfmt::print(a);\n").empty());
  CHECK(complaints("std::frobnicate(a);\n") == "b/file.cpp: std::frobnicate is not in the table; ");
  // With the header, through another, and where the name is the file's own or somebody else's.
  CHECK(complaints("#include \"a/shape.h\"\nShape a;\n").empty());
  CHECK(complaints("#include \"a/user.h\"\nstd::vector<Shape> a = MakeShape(kLimit);\n").empty());
  CHECK(complaints("struct Shape;\nvoid F(const Shape& shape);\n").empty());
  CHECK(complaints("template <typename Kind>\nvoid F(Kind kind);\n").empty());
  CHECK(complaints("void F() { grpc::Shape a; a.kLimit = b->MakeShape(1); }\n").empty());
  CHECK(complaints("using proto::Shape;\nShape a;\n").empty());
  CHECK(complaints("enum class Side { kLeft, kLimit };\n").empty());
  CHECK(complaints("// Shape\nauto a = \"Shape\";\nLater* later;\n").empty());
}

}  // namespace dsa::tidy
