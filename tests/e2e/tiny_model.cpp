#include "tests/e2e/tiny_model.h"

#include "common/check.h"
#include "model/random_checkpoint.h"
#include "tests/paths.h"

#include <filesystem>
#include <system_error>

#include <unistd.h>

namespace dsa::testing {
namespace {

struct Folder {
  Folder() : path(BuildPath("e2e-model-" + std::to_string(getpid()))) {
    RandomCheckpointOptions options;
    options.layers = 3;
    options.index_topk = kTinyTopK;
    options.vocabulary = kTinyVocabulary;
    const Status status = WriteRandomCheckpoint(options, path);
    DSA_CHECK(status.ok(), "e2e: {} cannot be written", std::string_view(path));
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  const std::string path;
};

}  // namespace

const std::string& TinyModel() {
  static const Folder folder;
  return folder.path;
}

}  // namespace dsa::testing
