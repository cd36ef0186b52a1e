// Which files of a folder hold the tensors, and what the index says about them.  Internal to
// model/.
#pragma once

#include "common/status.h"

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace dsa {

inline constexpr std::string_view kIndexFile = "model.safetensors.index.json";
inline constexpr std::string_view kSingleFile = "model.safetensors";

struct CheckpointFiles {
  bool has_index = false;
  std::vector<std::string> shards;                        // file names, sorted
  std::vector<std::string> names;                         // tensors, in the index's order
  std::unordered_map<std::string, std::string> shard_of;  // tensor -> shard; never iterated
};

// The shards that the index names, or the single file.  Each is a plain file name and lies inside
// the folder after its links are followed, or in the blobs of the Hugging Face cache whose snapshot
// the folder is.  A .safetensors file that the index does not name is
// refused: it would be silently left out.
Result<CheckpointFiles> FindCheckpointFiles(const std::string& folder);

}  // namespace dsa
