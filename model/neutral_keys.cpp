#include "model/neutral_keys.h"

#include <algorithm>
#include <iterator>

#include <fmt/core.h>

namespace dsa {
namespace {

// What a key may be besides null.
enum class Neutral : std::uint8_t {
  kNothing,
  kZero,
  kOne,
  kTrue,
  kFalse,
  kNotTrue,
  kEmpty,  // [] or {}
};

struct NeutralKey {
  std::string_view key;
  Neutral neutral;
};

constexpr NeutralKey kGraphKeys[] = {
    {"add_cross_attention", Neutral::kFalse},
    {"altup_num_inputs", Neutral::kNothing},
    {"attention_chunk_size", Neutral::kNothing},
    {"attention_multiplier", Neutral::kNothing},
    {"chunk_size_feed_forward", Neutral::kZero},
    {"clip_qkv", Neutral::kNothing},
    {"compress_ratios", Neutral::kNothing},
    {"decoder_sparse_step", Neutral::kOne},
    {"dim_model_base", Neutral::kNothing},
    {"embedding_multiplier", Neutral::kOne},
    {"hc_mult", Neutral::kOne},
    {"is_causal", Neutral::kTrue},
    {"is_encoder_decoder", Neutral::kFalse},
    {"lm_head_multiplier", Neutral::kOne},
    {"logit_scale", Neutral::kOne},
    {"logits_scaling", Neutral::kOne},
    {"mlp_only_layers", Neutral::kEmpty},
    {"no_rope_layers", Neutral::kEmpty},
    {"n_hash_layers", Neutral::kZero},
    {"num_hash_layers", Neutral::kZero},
    {"num_kv_shared_layers", Neutral::kZero},
    {"o_groups", Neutral::kNothing},
    {"o_lora_rank", Neutral::kNothing},
    {"partial_rotary_factor", Neutral::kOne},
    {"pruned_heads", Neutral::kEmpty},
    {"qk_layernorm", Neutral::kFalse},
    {"qk_norm", Neutral::kFalse},
    {"query_pre_attn_scalar", Neutral::kNothing},
    {"residual_multiplier", Neutral::kOne},
    {"scale_depth", Neutral::kNothing},
    {"scale_emb", Neutral::kOne},
    {"shared_expert_gate", Neutral::kFalse},
    {"repetition_penalty", Neutral::kOne},  // in generation_config.json it counts
    {"swiglu_alpha", Neutral::kNothing},
    {"swiglu_limit", Neutral::kNothing},
    {"swiglu_limits", Neutral::kNothing},
    {"use_gated_attention", Neutral::kFalse},
    {"use_mla", Neutral::kTrue},
    {"use_qk_norm", Neutral::kFalse},
    {"use_sliding_window", Neutral::kFalse},
    {"zero_expert_num", Neutral::kZero},
};

// Words in a key that nobody has heard of yet, and what such a key may be.
constexpr NeutralKey kGraphWords[] = {
    {"bias", Neutral::kNotTrue},        {"sink", Neutral::kFalse},
    {"softcap", Neutral::kNothing},     {"index", Neutral::kZero},
    {"rope_", Neutral::kNothing},       {"clamp", Neutral::kNothing},
    {"mup_", Neutral::kFalse},          {"sliding", Neutral::kNothing},
    {"bidirectional", Neutral::kFalse}, {"alibi", Neutral::kFalse},
    {"attn_scale", Neutral::kOne},      {"chunk_attention", Neutral::kNothing},
    {"interleave_moe", Neutral::kOne},  {"k_norm", Neutral::kFalse},
    {"output_gate", Neutral::kFalse},   {"parallel_residual", Neutral::kFalse},
    {"post_norm", Neutral::kFalse},     {"q_norm", Neutral::kFalse},
    {"sandwich", Neutral::kFalse},
};

// In generation_config.json, and in the config.json of older versions.
constexpr NeutralKey kGenerationKeys[] = {
    {"bad_words_ids", Neutral::kEmpty},
    {"begin_suppress_tokens", Neutral::kEmpty},
    {"constraints", Neutral::kEmpty},
    {"diversity_penalty", Neutral::kZero},
    {"dola_layers", Neutral::kNothing},
    {"encoder_no_repeat_ngram_size", Neutral::kZero},
    {"encoder_repetition_penalty", Neutral::kOne},
    {"epsilon_cutoff", Neutral::kZero},
    {"eta_cutoff", Neutral::kZero},
    {"exponential_decay_length_penalty", Neutral::kNothing},
    {"force_words_ids", Neutral::kEmpty},
    {"forced_bos_token_id", Neutral::kNothing},
    {"forced_decoder_ids", Neutral::kEmpty},
    {"forced_eos_token_id", Neutral::kNothing},
    {"frequency_penalty", Neutral::kZero},
    {"guidance_scale", Neutral::kOne},
    {"logit_bias", Neutral::kEmpty},
    {"min_length", Neutral::kZero},
    {"min_new_tokens", Neutral::kZero},
    {"no_repeat_ngram_size", Neutral::kZero},
    {"num_beam_groups", Neutral::kOne},
    {"num_beams", Neutral::kOne},
    {"num_return_sequences", Neutral::kOne},
    {"penalty_alpha", Neutral::kZero},
    {"presence_penalty", Neutral::kZero},
    {"sequence_bias", Neutral::kEmpty},
    {"stop_strings", Neutral::kEmpty},
    {"stop_token_ids", Neutral::kEmpty},
    {"stop_words", Neutral::kEmpty},
    {"suppress_tokens", Neutral::kEmpty},
    {"token_healing", Neutral::kFalse},
    {"top_h", Neutral::kNothing},
    {"typical_p", Neutral::kOne},
    {"watermarking_config", Neutral::kNothing},
};

constexpr std::string_view kIrrelevantKeys[] = {"_from_model_config",
                                                "_name_or_path",
                                                "architectures",
                                                "attention_dropout",
                                                "auto_map",
                                                "aux_loss_alpha",
                                                "bos_token_id",
                                                "cache_implementation",
                                                "ep_size",
                                                "head_dim",
                                                "id2label",
                                                "initializer_range",
                                                "label2id",
                                                "output_attentions",
                                                "output_hidden_states",
                                                "output_router_logits",
                                                "output_scores",
                                                "pad_token_id",
                                                "pretraining_tp",
                                                "problem_type",
                                                "return_dict",
                                                "return_dict_in_generate",
                                                "router_aux_loss_coef",
                                                "seq_aux",
                                                "transformers_version",
                                                "use_cache"};

bool IsNeutral(const Json& value, Neutral neutral) {
  switch (neutral) {
    case Neutral::kNothing: return false;
    case Neutral::kZero: return value.is_number() && value == 0;
    case Neutral::kOne: return value.is_number() && value == 1;
    case Neutral::kTrue: return value == true;
    case Neutral::kFalse: return value == false;
    case Neutral::kNotTrue: return value != true;
    case Neutral::kEmpty: return value.is_structured() && value.empty();
  }
  return false;
}

Status CheckNeutral(JsonObject& json, std::string_view key, Neutral neutral) {
  if (!json.Has(key)) {
    return {};
  }
  DSA_ASSIGN_OR_RETURN(const Json* value, json.ReadAny(key));
  if (IsNeutral(*value, neutral)) {
    return {};
  }
  return json.MakeError(OneLine(key), fmt::format("{} is not supported", Brief(*value)));
}

template <std::size_t N>
Status CheckAll(JsonObject& json, const NeutralKey (&keys)[N]) {
  for (const NeutralKey& entry : keys) {
    DSA_RETURN_IF_ERROR(CheckNeutral(json, entry.key, entry.neutral));
  }
  return {};
}

// A list with one entry for each layer, all of the kind that the graph has.
Status CheckLayerTypes(JsonObject& json, const ModelConfig& config) {
  if (!json.Has("layer_types")) {
    return {};
  }
  DSA_ASSIGN_OR_RETURN(const Json* types, json.ReadArray("layer_types"));
  const auto fits = [&config](const Json& type) {
    return config.has_indexer() ? type == "indexed_attention" || type == "deepseek_sparse_attention"
                                : type == "full_attention";
  };
  const bool all = std::all_of(types->begin(), types->end(), fits);
  if (!all || static_cast<std::int64_t>(types->size()) != config.layers) {
    const auto odd = std::find_if_not(types->begin(), types->end(), fits);
    return json.MakeError(
        "layer_types", odd != types->end()
                           ? fmt::format("{} is not supported in a {} model", Brief(*odd),
                                         ToString(config.architecture))
                           : fmt::format("{} entries for {} layers", types->size(), config.layers));
  }
  return {};
}

// "sliding_window" beside "use_sliding_window": false says nothing.
Status CheckSlidingWindow(JsonObject& json) {
  if (!json.Has("use_sliding_window")) {
    return {};
  }
  DSA_ASSIGN_OR_RETURN(const bool used, json.ReadBool("use_sliding_window"));
  if (!used && json.Has("sliding_window")) {
    DSA_RETURN_IF_ERROR(json.ReadAny("sliding_window"));
  }
  return {};
}

}  // namespace

bool IsIrrelevantKey(std::string_view key) {
  return std::find(std::begin(kIrrelevantKeys), std::end(kIrrelevantKeys), key) !=
         std::end(kIrrelevantKeys);
}

Status CheckNeutralConfigKeys(JsonObject& json, const ModelConfig& config) {
  DSA_RETURN_IF_ERROR(CheckLayerTypes(json, config));
  DSA_RETURN_IF_ERROR(CheckSlidingWindow(json));
  DSA_RETURN_IF_ERROR(CheckAll(json, kGraphKeys));
  DSA_RETURN_IF_ERROR(CheckAll(json, kGenerationKeys));
  for (const std::string& key : json.UnreadKeys()) {
    for (const NeutralKey& word : kGraphWords) {
      if (!IsIrrelevantKey(key) && key.find(word.key) != std::string::npos) {
        DSA_RETURN_IF_ERROR(CheckNeutral(json, key, word.neutral));
      }
    }
  }
  return {};
}

Status CheckNeutralGenerationKeys(JsonObject& json) {
  return CheckAll(json, kGenerationKeys);
}

}  // namespace dsa
