// config.json and generation_config.json: what DeepSeek's and GLM's files mean, and that every
// other value is refused by name.
#include "model/model_config.h"

#include "tests/model/checkpoint_files.h"

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using Document = nlohmann::ordered_json;

// DeepSeek-V3.2's own sizes.
Document V32() {
  return Document::parse(R"({
    "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32",
    "vocab_size": 129280, "hidden_size": 7168, "num_hidden_layers": 61,
    "first_k_dense_replace": 3, "moe_layer_freq": 1, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_attention_heads": 128, "num_key_value_heads": 128,
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
    "norm_topk_prob": true, "routed_scaling_factor": 2.5, "index_n_heads": 64,
    "index_head_dim": 128, "index_topk": 2048, "rms_norm_eps": 1e-06, "rope_theta": 10000,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
      "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
    "max_position_embeddings": 163840, "hidden_act": "silu", "attention_bias": false,
    "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 1,
    "num_nextn_predict_layers": 1, "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
      "activation_scheme": "dynamic", "scale_fmt": "ue8m0"}})");
}

Document V3() {
  Document json = V32();
  for (const char* key : {"index_n_heads", "index_head_dim", "index_topk"}) {
    json.erase(key);
  }
  json["model_type"] = "deepseek_v3";
  json["quantization_config"].erase("scale_fmt");
  return json;
}

Document Glm() {
  Document json = V32();
  json["model_type"] = "glm_moe_dsa";
  json["qk_nope_head_dim"] = 192;
  json["v_head_dim"] = 256;
  json["n_group"] = 1;
  json["topk_group"] = 1;
  json["rms_norm_eps"] = 1e-5;
  json["rope_theta"] = 1e6;
  json["rope_scaling"] = nullptr;
  json.erase("quantization_config");
  return json;
}

Result<ModelConfig> Parse(const Document& json) {
  return ParseModelConfig(json.dump(), "", "d");
}

ModelConfig Must(const Document& json) {
  const auto parsed = Parse(json);
  INFO((parsed.ok() ? "" : parsed.error().message));
  REQUIRE(parsed.ok());
  return parsed.value();
}

// Whether the document is refused with one line that starts with `expected`.
bool Refuses(const Document& json, const std::string& expected) {
  const auto parsed = Parse(json);
  UNSCOPED_INFO((parsed.ok() ? "accepted" : parsed.error().message));
  return !parsed.ok() && parsed.error().code == ErrorCode::kInvalidArgument &&
         testing::IsOneLine(parsed.error().message) &&
         parsed.error().message.find("d/config.json: " + expected) == 0;
}

// The document with one key set.
Document With(Document json, const std::string& pointer, const Document& value) {
  json[Document::json_pointer(pointer)] = value;
  return json;
}

Document Without(Document json, const std::string& key) {
  json.erase(key);
  return json;
}

}  // namespace

TEST_CASE("DeepSeek-V3.2's configuration is read as its paper says", "[model][config]") {
  const ModelConfig config = Must(V32());
  CHECK(config.architecture == Architecture::kDeepseekV32);
  CHECK(config.vocabulary == 129'280);
  CHECK(config.hidden == 7168);
  CHECK(config.layers == 61);
  CHECK(config.dense_layers == 3);
  CHECK(config.mtp_layers == 1);
  CHECK(config.context_max == 163'840);
  CHECK(config.heads == 128);
  CHECK(config.q_latent == 1536);
  CHECK(config.nope == 128);
  CHECK(config.value == 128);
  CHECK(config.index_heads == 64);
  CHECK(config.index_topk == 2048);
  CHECK(config.index_rope_layout == RopeLayout::kHalfSplit);
  CHECK(config.dense_width == 18'432);
  CHECK(config.expert_width == 2048);
  CHECK(config.shared_width == 2048);
  CHECK(config.experts == 256);
  CHECK(config.experts_per_token == 8);
  CHECK(config.expert_groups == 8);
  CHECK(config.expert_groups_kept == 4);
  CHECK(config.normalize_expert_weights);
  CHECK(config.routed_scale == 2.5F);
  CHECK(config.norm_eps == 1e-6F);
  CHECK(config.latent_norm_eps == 1e-6F);
  CHECK(config.activation_type == DataType::kBf16);
  CHECK(config.quantized);
  CHECK(config.scale_format == ScaleFormat::kPowerOfTwo);
  CHECK(config.default_kv_format() == KvFormat::kFp8);
  CHECK(config.end_ids == std::vector<std::int32_t>{1});
  CHECK_FALSE(config.tied_embeddings);
  CHECK(config.ignored_keys.empty());
}

TEST_CASE("YaRN's frequencies and softmax scale have their published values", "[model][config]") {
  const ModelConfig config = Must(V32());
  CHECK(config.softmax_scale == Approx(0.1352337789).epsilon(1e-7));
  CHECK(config.rope_frequencies[0] == 1.0);
  CHECK(config.rope_frequencies[10] == Approx(5.623413e-2).epsilon(1e-6));
  CHECK(config.rope_frequencies[11] == Approx(3.900693e-2).epsilon(1e-6));
  CHECK(config.rope_frequencies[16] == Approx(5.5e-3).epsilon(1e-6));
  CHECK(config.rope_frequencies[22] == Approx(1.778279e-4).epsilon(1e-6));
  CHECK(config.rope_frequencies[23] == Approx(3.333804e-5).epsilon(1e-6));
  CHECK(config.rope_frequencies[31] == Approx(3.333804e-6).epsilon(1e-6));
  // mscale enters squared: 0.707 as DeepSeek-V2 has it.
  Document other = With(V32(), "/rope_scaling/mscale", 0.707);
  other["rope_scaling"]["mscale_all_dim"] = 0.707;
  CHECK(Must(other).softmax_scale ==
        Approx(std::pow(0.0707 * std::log(40.0) + 1, 2) / std::sqrt(192.0)).epsilon(1e-6));
}

TEST_CASE("The families differ where they should", "[model][config]") {
  const ModelConfig v3 = Must(V3());
  CHECK(v3.architecture == Architecture::kDeepseekV3);
  CHECK_FALSE(v3.has_indexer());
  CHECK(v3.indexer_layers() == 0);
  CHECK(v3.scale_format == ScaleFormat::kPlain);
  const ModelConfig glm = Must(Glm());
  CHECK(glm.architecture == Architecture::kGlmMoeDsa);
  CHECK(glm.index_rope_layout == RopeLayout::kInterleaved);  // where the key is absent
  CHECK(Must(With(Glm(), "/indexer_rope_interleave", false)).index_rope_layout ==
        RopeLayout::kHalfSplit);
  CHECK(Must(With(V32(), "/indexer_rope_interleave", true)).index_rope_layout ==
        RopeLayout::kInterleaved);
  CHECK(glm.norm_eps == 1e-5F);
  CHECK(glm.latent_norm_eps == 1e-6F);
  CHECK(glm.softmax_scale == 0.0625F);
  CHECK(glm.rope_frequencies[31] == Approx(std::pow(1e6, -62.0 / 64.0)));
  CHECK_FALSE(glm.quantized);
  CHECK(glm.default_kv_format() == KvFormat::kBf16);
  CHECK(Must(With(Glm(), "/torch_dtype", "float32")).default_kv_format() == KvFormat::kF32);
  CHECK(Must(With(V3(), "/q_lora_rank", nullptr)).q_latent == 0);
  CHECK(Refuses(With(V32(), "/q_lora_rank", nullptr), "q_lora_rank: null"));
}

TEST_CASE("Newer spellings mean the same as the older ones", "[model][config]") {
  Document newer = V32();
  newer.erase("rope_theta");
  newer.erase("rope_scaling");
  newer.erase("torch_dtype");
  newer["dtype"] = "bfloat16";
  newer["rope_parameters"] = {{"rope_type", "yarn"}, {"rope_theta", 10000.0},
                              {"factor", 40.0},      {"original_max_position_embeddings", 4096},
                              {"beta_fast", 32},     {"beta_slow", 1},
                              {"mscale", 1.0},       {"mscale_all_dim", 1.0}};
  const ModelConfig expected = Must(V32());
  ModelConfig config = Must(newer);
  CHECK(config.rope_frequencies == expected.rope_frequencies);
  CHECK(config.softmax_scale == expected.softmax_scale);
  CHECK(config.activation_type == expected.activation_type);
  // Both spellings, as long as they agree.
  newer["torch_dtype"] = "bfloat16";
  newer["rope_theta"] = 10000;
  newer["rope_scaling"] = newer["rope_parameters"];
  CHECK(Must(newer).softmax_scale == expected.softmax_scale);
  CHECK(Refuses(With(newer, "/torch_dtype", "float32"), "torch_dtype: \"float32\" contradicts"));
  CHECK(Refuses(With(newer, "/rope_theta", 5000), "rope_theta: 5000 contradicts"));
  CHECK(Refuses(With(newer, "/rope_scaling/factor", 4), "rope_scaling: "));
  CHECK(Refuses(With(newer, "/rope_parameters/type", "default"), "rope_scaling: "));
  Document plain = With(Glm(), "/rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1e6}});
  plain.erase("rope_theta");
  CHECK(Must(plain).rope_frequencies == Must(Glm()).rope_frequencies);
  CHECK(Must(plain).ignored_keys.empty());
  // Dense layers as a list.
  Document types = V32();
  types["mlp_layer_types"] = Document::array();
  for (int layer = 0; layer < 61; ++layer) {
    types["mlp_layer_types"].push_back(layer < 3 ? "dense" : "sparse");
  }
  CHECK(Must(types).dense_layers == 3);
  CHECK(Refuses(With(types, "/mlp_layer_types/3", "dense"), "mlp_layer_types: "));
}

TEST_CASE("An unsupported value is refused by its key", "[model][config]") {
  const std::vector<std::pair<std::string, Document>> cases = {
      {"scoring_func", "softmax"},
      {"topk_method", "greedy"},
      {"hidden_act", "gelu"},
      {"attention_bias", true},
      {"mlp_bias", true},
      {"moe_layer_freq", 2},
      {"kv_lora_rank", 256},
      {"qk_rope_head_dim", 32},
      {"index_head_dim", 64},
      {"rope_interleave", false},
      {"num_key_value_heads", 1},
      {"qk_head_dim", 128},
      {"index_topk_freq", 4},
      {"index_topk_pattern", "FFS"},
      {"indexer_types", {"full", "shared"}},
      {"model_type", "deepseek_v2"},
      {"torch_dtype", "float16"},
      {"num_experts_per_tok", 200},
      {"n_group", 7},
      {"n_group", 256},
      {"topk_group", 9},
      {"hidden_size", 7169},
      {"eos_token_id", 129280},
      {"eos_token_id", -1},
      {"eos_token_id", Document::array()},
      {"eos_token_id", {1, "x"}},
  };
  for (const auto& [key, value] : cases) {
    CAPTURE(key, value.dump());
    CHECK(Refuses(With(V32(), "/" + key, value), key + ": "));
  }
  const std::vector<std::pair<std::string, Document>> nested = {
      {"rope_scaling/type", "linear"},
      {"rope_scaling/mscale_all_dim", 0.5},
      {"rope_scaling/mscale", nullptr},
      {"rope_scaling/factor", 0},
      {"rope_scaling/original_max_position_embeddings", 0},
      {"rope_scaling/attention_factor", 1.5},
      {"rope_scaling/truncate", false},
      {"rope_scaling/partial_rotary_factor", 0.5},
      {"quantization_config/quant_method", "gptq"},
      {"quantization_config/fmt", "e5m2"},
      {"quantization_config/weight_block_size", {64, 64}},
      {"quantization_config/activation_scheme", "static"},
      {"quantization_config/scale_fmt", "e8"},
  };
  for (const auto& [key, value] : nested) {
    std::string dotted = key;
    dotted[dotted.find('/')] = '.';
    CAPTURE(key, value.dump());
    CHECK(Refuses(With(V32(), "/" + key, value), dotted + ": "));
  }
  CHECK(Refuses(With(V32(), "/torch_dtype", "float32"), "quantization_config: "));
  CHECK(Refuses(With(With(V32(), "/n_group", 1), "/n_routed_experts", 1150),
                "n_routed_experts: 1150 in 58 layers make 200100 tensors, at most 200000"));
  CHECK(Refuses(With(V32(), "/n_routed_experts", 1149), "n_group: 8 does not divide"));
  CHECK(Must(With(V32(), "/indexer_types", Document(61, "full"))).index_topk == 2048);
  CHECK(Must(With(V32(), "/index_topk_freq", 1)).index_topk == 2048);
}

TEST_CASE("A number that is absent, wrong or out of range is refused", "[model][config]") {
  for (const char* key : {"vocab_size",
                          "hidden_size",
                          "num_hidden_layers",
                          "intermediate_size",
                          "moe_intermediate_size",
                          "num_attention_heads",
                          "q_lora_rank",
                          "kv_lora_rank",
                          "qk_nope_head_dim",
                          "qk_rope_head_dim",
                          "v_head_dim",
                          "n_routed_experts",
                          "num_experts_per_tok",
                          "n_group",
                          "topk_group",
                          "routed_scaling_factor",
                          "index_n_heads",
                          "index_head_dim",
                          "index_topk",
                          "rms_norm_eps",
                          "rope_theta",
                          "max_position_embeddings"}) {
    CAPTURE(key);
    const std::string start = std::string(key) + ": ";
    CHECK(Refuses(Without(V32(), key), start));
    for (const Document& value :
         {Document(nullptr), Document(0), Document(-1), Document(std::int64_t{1} << 31),
          Document(std::uint64_t{1} << 63), Document("7"), Document(true), Document::array(),
          Document::object()}) {
      CAPTURE(value.dump());
      CHECK(Refuses(With(V32(), "/" + std::string(key), value), start));
    }
    // JSON has no NaN: the whole document is refused, at the byte where it stands.
    std::string text = V32().dump();
    const std::string found = "\"" + std::string(key) + "\":";
    text.insert(text.find(found) + found.size(), "NaN,\"x\":");
    const auto parsed = ParseModelConfig(text, "", "d");
    REQUIRE_FALSE(parsed.ok());
    CHECK(testing::IsOneLine(parsed.error().message));
  }
}

TEST_CASE("No value of any key can crash the reader", "[model][config]") {
  std::vector<Document> values = {nullptr,
                                  0,
                                  -1,
                                  1,
                                  std::int64_t{1} << 31,
                                  std::uint64_t{1} << 63,
                                  1e308,
                                  -0.0,
                                  "",
                                  "x\ny",
                                  true,
                                  Document::array(),
                                  Document::object(),
                                  {1, nullptr, "a", {{"b", 1}}}};
  for (const Document& base : {V32(), V3(), Glm()}) {
    const Document flat = base.flatten();
    std::vector<std::string> pointers;
    for (const auto& [pointer, value] : flat.items()) {
      pointers.push_back(pointer);
    }
    pointers.insert(pointers.end(), {"/rope_scaling", "/quantization_config", "/eos_token_id",
                                     "/num_nextn_predict_layers", "/tie_word_embeddings",
                                     "/rope_parameters", "/dtype", "/mlp_layer_types"});
    for (const std::string& pointer : pointers) {
      for (const Document& value : values) {
        if (pointer.starts_with("/rope_scaling/") && base["rope_scaling"].is_null()) {
          continue;
        }
        const auto parsed = Parse(With(base, pointer, value));
        CAPTURE(pointer, value.dump());
        CHECK((parsed.ok() || testing::IsOneLine(parsed.error().message)));
      }
    }
  }
}

TEST_CASE("A key that changes answers is refused unless it changes none", "[model][config]") {
  const std::vector<std::pair<std::string, Document>> refused = {
      {"layer_types", Document(61, "sliding_attention")},
      {"layer_types", Document(61, "full_attention")},
      {"layer_types", Document(60, "indexed_attention")},
      {"sliding_window", 4096},
      {"use_sliding_window", true},
      {"q_a_proj_bias", true},
      {"o_proj_has_bias", true},
      {"final_logit_softcapping", 30.0},
      {"embedding_multiplier", 12},
      {"swiglu_limit", 10.0},
      {"index_kpool", 4},
      {"rope_local_base_freq", 10000},
      {"partial_rotary_factor", 0.5},
      {"use_qk_norm", true},
      {"add_swa_attention_sink_bias", true},
      {"hc_mult", 4},
      {"is_causal", false},
      {"use_mla", false},
      {"use_bidirectional_attention", true},
      {"compress_ratios", {0, 4}},
      {"mlp_only_layers", {3}},
      {"repetition_penalty", 1.1},
      {"suppress_tokens", {5}},
      {"new\nbias", true},
  };
  for (const auto& [key, value] : refused) {
    CAPTURE(key, value.dump());
    std::string shown = key;
    std::replace(shown.begin(), shown.end(), '\n', '?');
    CHECK(Refuses(With(V32(), "/" + key, value), shown + ": "));
    CHECK(Must(With(V32(), "/" + key, nullptr)).ignored_keys.empty());
  }
  CHECK(Refuses(With(V3(), "/index_topk", 2048), "index_topk: 2048"));
  // As transformers 5.x saves these models again, and other values without effect.
  Document saved = V32();
  saved["layer_types"] = Document(61, "indexed_attention");
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, Document>>{{"use_sliding_window", false},
                                                     {"sliding_window", 4096},
                                                     {"lm_head_bias", false},
                                                     {"repetition_penalty", 1.0},
                                                     {"num_beams", 1},
                                                     {"min_length", 0},
                                                     {"is_causal", true},
                                                     {"use_mla", true},
                                                     {"use_bidirectional_attention", false},
                                                     {"bad_words_ids", Document::array()},
                                                     {"partial_rotary_factor", 1.0},
                                                     {"pruned_heads", Document::object()},
                                                     {"is_encoder_decoder", false},
                                                     {"chunk_size_feed_forward", 0},
                                                     {"id2label", {{"0", "LABEL_0"}}}}) {
    saved[key] = value;
  }
  CHECK(Must(saved).ignored_keys.empty());
  CHECK(Must(With(V32(), "/layer_types", Document(61, "deepseek_sparse_attention"))).layers == 61);
  CHECK(Must(With(V3(), "/layer_types", Document(61, "full_attention"))).layers == 61);
  CHECK(Refuses(With(V3(), "/layer_types", Document(61, "indexed_attention")), "layer_types: "));
}

TEST_CASE("A generation_config.json that asks for more than there is is refused by name",
          "[model][config]") {
  const auto parse = [](const std::string& generation) {
    return ParseModelConfig(V32().dump(), generation, "d");
  };
  for (const char* text :
       {R"({"repetition_penalty": 0})", R"({"suppress_tokens": [1, 2]})",
        R"({"begin_suppress_tokens": [5]})", R"({"no_repeat_ngram_size": 3})",
        R"({"bad_words_ids": [[4]]})", R"({"forced_eos_token_id": 1})", R"({"num_beams": 4})",
        R"({"min_new_tokens": 5})", R"({"stop_strings": ["x"]})", R"({"guidance_scale": 1.5})",
        R"({"typical_p": 0.9})", R"({"penalty_alpha": 0.6})", R"({"watermarking_config": {}})",
        R"({"sequence_bias": [[[1], 2.0]]})", R"({"presence_penalty": 1})",
        R"({"stop_token_ids": [7]})", R"({"stop_words": ["x"]})"}) {
    const auto parsed = parse(text);
    CAPTURE(text);
    REQUIRE_FALSE(parsed.ok());
    const std::string key = Document::parse(text).begin().key();
    CHECK(parsed.error().message.find("d/generation_config.json: " + key + ": ") == 0);
    CHECK(testing::IsOneLine(parsed.error().message));
  }
  const ModelConfig config =
      parse(R"({"repetition_penalty": 1, "suppress_tokens": [], "num_beams": 1, "min_length": 0,
                "forced_eos_token_id": null, "guidance_scale": 1.0, "transformers_version": "5",
                "stop_token_ids": [], "max_new_tokens": 2048, "length_penalty": 2.0})")
          .value();
  CHECK(config.ignored_keys == std::vector<std::string>{"generation_config.max_new_tokens",
                                                        "generation_config.length_penalty"});
}

TEST_CASE("Keys that nothing reads are kept for the log", "[model][config]") {
  Document json = With(V32(), "/some_new_key", {{"a", 1}});
  json["another"] = 7;
  json["absent_value"] = nullptr;
  json["quantization_config"]["modules_to_not_convert"] = {"lm_head"};
  CHECK(Must(json).ignored_keys ==
        std::vector<std::string>{"quantization_config.modules_to_not_convert", "some_new_key",
                                 "another"});
}

TEST_CASE("Generation defaults and end ids come from generation_config.json", "[model][config]") {
  const auto parse = [](const std::string& generation) {
    return ParseModelConfig(V32().dump(), generation, "d");
  };
  const ModelConfig config =
      parse(R"({"eos_token_id": [7, 3, 7], "do_sample": true, "temperature": 0.6, "top_p": 0.95,
                "top_k": 50, "min_p": 0.1, "repetition_penalty": 1.05})")
          .value();
  CHECK(config.end_ids == std::vector<std::int32_t>{3, 7});
  CHECK(config.sampling.temperature == 0.6F);
  CHECK(config.sampling.top_p == 0.95F);
  CHECK(config.sampling.min_p == 0.1F);
  CHECK(config.sampling.top_k == 50);
  CHECK(config.sampling.repetition_penalty == 1.05F);
  const ModelConfig greedy = parse(R"({"do_sample": false, "temperature": 0.6})").value();
  CHECK(greedy.sampling.temperature == 0.0F);
  CHECK(greedy.sampling.repetition_penalty == 1.0F);
  CHECK(greedy.end_ids == std::vector<std::int32_t>{1});  // config.json's
  CHECK((Must(V32()).sampling.temperature == 1.0F && Must(V32()).sampling.top_p == 1.0F));
  for (const char* bad : {R"({"temperature": 2.5})", R"({"temperature": -1})", R"({"top_p": 0})",
                          R"({"top_p": 1.5})", R"({"min_p": 2})", R"({"top_k": -1})",
                          R"({"top_k": 129281})", R"({"eos_token_id": 129280})",
                          R"({"eos_token_id": "1"})", R"({"do_sample": 1})", R"([])", R"({)"}) {
    CAPTURE(bad);
    const auto parsed = parse(bad);
    REQUIRE_FALSE(parsed.ok());
    CHECK(parsed.error().message.find("d/generation_config.json: ") == 0);
    CHECK(testing::IsOneLine(parsed.error().message));
  }
  // A file without end ids anywhere is useless.
  CHECK(Refuses(Without(V32(), "eos_token_id"), "eos_token_id: missing"));
  CHECK(Refuses(With(V32(), "/eos_token_id", nullptr), "eos_token_id: null"));
  const std::string without = Without(V32(), "eos_token_id").dump();
  CHECK(ParseModelConfig(without, R"({"eos_token_id": 5})", "d").value().end_ids.front() == 5);
}

TEST_CASE("A folder without config.json is not found", "[model][config]") {
  const testing::TemporaryFolder folder;
  const auto absent = LoadModelConfig(folder.path());
  REQUIRE_FALSE(absent.ok());
  CHECK(absent.error().code == ErrorCode::kNotFound);
  CHECK(absent.error().message.find(folder / "config.json") == 0);
  testing::WriteBytes(folder / "config.json", V32().dump());
  CHECK(LoadModelConfig(folder.path()).ok());
  testing::WriteBytes(folder / "generation_config.json", "");
  CHECK_FALSE(LoadModelConfig(folder.path()).ok());
  CHECK(LoadModelConfig(folder.path(), GenerationFile::kLeaveOut).value().end_ids ==
        std::vector<std::int32_t>{1});
}

}  // namespace dsa
