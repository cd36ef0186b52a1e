#include "model/checkpoint_files.h"

#include "common/file.h"
#include "common/json.h"
#include "model/safetensors.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <system_error>

#include <fmt/core.h>

namespace dsa {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kIndexBytesMax = 128 << 20;
constexpr std::string_view kExtension = ".safetensors";
constexpr int kIndexDepthMax = 4;

// One component, no path: what may name a shard.
bool IsPlainFileName(const std::string& name) {
  constexpr std::size_t kFileNameBytesMax = 255;
  return name.size() > kExtension.size() && name.size() <= kFileNameBytesMax &&
         name.ends_with(kExtension) &&
         name.find_first_of(std::string("/\\\0", 3)) == std::string::npos && name.front() != '.';
}

Status ReadWeightMap(const Json& map, const std::string& source, CheckpointFiles& files) {
  if (static_cast<std::int64_t>(map.size()) > kSafetensorsTensorsMax) {
    return InvalidArgument(fmt::format("{}: weight_map: {} tensors, at most {} are allowed", source,
                                       map.size(), kSafetensorsTensorsMax));
  }
  std::set<std::string> shards;
  for (const auto& entry : map.items()) {
    const std::string& name = entry.key();
    const Json& shard = entry.value();
    const auto fail = [&](const std::string& what) {
      return InvalidArgument(fmt::format("{}: weight_map: {}: {}", source, QuotedName(name), what));
    };
    if (static_cast<std::int64_t>(name.size()) > kSafetensorsNameBytesMax) {
      return fail(fmt::format("the name has {} bytes, at most {} are allowed", name.size(),
                              kSafetensorsNameBytesMax));
    }
    if (!shard.is_string() || !IsPlainFileName(shard.get<std::string>())) {
      return fail(fmt::format("{} is not the name of a .safetensors file in the same folder",
                              Brief(shard)));
    }
    shards.insert(shard.get<std::string>());
    files.names.push_back(name);
    files.shard_of.emplace(name, shard.get<std::string>());
  }
  files.shards.assign(shards.begin(), shards.end());
  return {};
}

Status ReadIndex(const std::string& text, const std::string& source, CheckpointFiles& files) {
  DSA_ASSIGN_OR_RETURN(const Json document, ParseJson(text, source, {.depth_max = kIndexDepthMax}));
  DSA_ASSIGN_OR_RETURN(JsonObject json, JsonObject::From(document, source, ""));
  if (json.Has("metadata")) {
    DSA_RETURN_IF_ERROR(json.ReadObject("metadata"));  // total_size need not be true: not used
  }
  DSA_RETURN_IF_ERROR(json.ReadObject("weight_map"));
  DSA_ASSIGN_OR_RETURN(const Json* map, json.ReadAny("weight_map"));
  if (map->empty()) {
    return json.MakeError("weight_map", "names no tensor");
  }
  DSA_RETURN_IF_ERROR(ReadWeightMap(*map, source, files));
  return json.CheckAllRead();
}

bool LiesIn(const fs::path& folder, const fs::path& path) {
  return std::mismatch(folder.begin(), folder.end(), path.begin(), path.end()).first ==
         folder.end();
}

// A checkpoint in the cache of Hugging Face's hub is a folder MODEL/snapshots/REVISION of links to
// files in MODEL/blobs.  Empty for any other folder.
fs::path BlobsOf(const fs::path& folder) {
  const fs::path snapshots = folder.parent_path();
  return snapshots.filename() == "snapshots" ? snapshots.parent_path() / "blobs" : fs::path();
}

// Refuses a shard that leads out of the folder, and a .safetensors file that no index names.
Status CheckFolder(const std::string& folder, const CheckpointFiles& files) {
  std::error_code error;
  const fs::path root = fs::canonical(folder, error);
  const fs::path blobs = BlobsOf(root);
  for (const std::string& shard : files.shards) {
    const std::string path = fmt::format("{}/{}", folder, shard);
    const fs::path real = fs::canonical(path, error);
    if (error) {
      return Error{ErrorCode::kNotFound, fmt::format("{}: {}", path, error.message())};
    }
    if (!LiesIn(root, real) && (blobs.empty() || !LiesIn(blobs, real))) {
      return InvalidArgument(fmt::format(
          "{}: a link that leads out of the folder to {}; shards must lie in the folder, "
          "copy them there (cp -rL FOLDER COPY follows links)",
          path, QuotedName(real.string())));
    }
  }
  fs::directory_iterator entry(folder, error);
  std::vector<std::string> strays;
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.ends_with(kExtension) &&
        !std::binary_search(files.shards.begin(), files.shards.end(), name)) {
      strays.push_back(name);
    }
  }
  if (error) {
    return InvalidArgument(fmt::format("{}: {}", folder, error.message()));
  }
  if (!strays.empty()) {
    return InvalidArgument(fmt::format("{}/{}: the index does not name this file", folder,
                                       *std::min_element(strays.begin(), strays.end())));
  }
  return {};
}

}  // namespace

Result<CheckpointFiles> FindCheckpointFiles(const std::string& folder) {
  CheckpointFiles files;
  const std::string index_path = fmt::format("{}/{}", folder, kIndexFile);
  const Result<std::string> text = ReadFile(index_path, kIndexBytesMax);
  if (text.ok()) {
    files.has_index = true;
    DSA_RETURN_IF_ERROR(ReadIndex(text.value(), index_path, files));
  } else if (text.error().code == ErrorCode::kNotFound) {
    const Result<File> single = File::Open(fmt::format("{}/{}", folder, kSingleFile));
    if (!single.ok() && single.error().code == ErrorCode::kNotFound) {
      return Error{ErrorCode::kNotFound,
                   fmt::format("{}: neither {} nor {}", folder, kIndexFile, kSingleFile)};
    }
    if (!single.ok()) {
      return single.error();
    }
    files.shards.emplace_back(kSingleFile);
  } else {
    return text.error();
  }
  DSA_RETURN_IF_ERROR(CheckFolder(folder, files));
  return files;
}

}  // namespace dsa
