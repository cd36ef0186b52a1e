#include "model/weights.h"

#include "common/check.h"

#include <string>

#include <fmt/core.h>

namespace dsa {
namespace {

using Visitor = std::function<void(const TensorSpec&)>;

// The tensors of one layer, or of the model outside the layers.
class TensorList final {
 public:
  TensorList(const ModelConfig& config, const RankShape& rank, const Visitor& visit)
      : config_(config), rank_(rank), visit_(visit) {}

  void Model(ModelWeights& weights) {
    layer_ = -1;
    prefix_ = "model.";
    Add(ModelPart::kEmbedding, "embed_tokens.weight", config_.vocabulary, config_.hidden,
        MatrixTarget{&weights.embedding});
  }

  void Layer(LayerWeights& weights, std::int64_t layer) {
    layer_ = layer;
    prefix_ = fmt::format("model.layers.{}.", layer);
    Norm("input_layernorm.weight", config_.hidden, weights.attention_norm);
    Norm("post_attention_layernorm.weight", config_.hidden, weights.ffn_norm);
    prefix_ = fmt::format("model.layers.{}.self_attn.", layer);
    Attention(weights.attention);
    if (weights.indexer) {
      prefix_ += "indexer.";
      Indexer(*weights.indexer);
    }
    prefix_ = fmt::format("model.layers.{}.mlp.", layer);
    if (weights.dense) {
      Mlp(*weights.dense, "", ModelPart::kDenseMlp);
    } else {
      Moe(*weights.moe);
    }
  }

  void Head(ModelWeights& weights) {
    layer_ = -1;
    prefix_ = "model.";
    Norm("norm.weight", config_.hidden, weights.final_norm);
    if (!config_.tied_embeddings) {
      prefix_ = "";
      AddRows(ModelPart::kHead, "lm_head.weight", config_.vocabulary, config_.hidden,
              rank_.vocabulary, MatrixTarget{&weights.head});
    }
  }

 private:
  // Whole on every rank.
  void Add(ModelPart part, std::string_view name, std::int64_t rows, std::int64_t cols,
           TensorTarget target) {
    AddRows(part, name, rows, cols, {.first = 0, .count = rows}, target);
  }
  // Of which the rank holds some rows, or some columns.
  void AddRows(ModelPart part, std::string_view name, std::int64_t rows, std::int64_t cols,
               const Part& held, TensorTarget target) {
    AddHeld(part, name, rows, cols, held, {.first = 0, .count = cols}, target);
  }
  void AddColumns(ModelPart part, std::string_view name, std::int64_t rows, std::int64_t cols,
                  const Part& held, TensorTarget target) {
    AddHeld(part, name, rows, cols, {.first = 0, .count = rows}, held, target);
  }
  void AddHeld(ModelPart part, std::string_view name, std::int64_t rows, std::int64_t cols,
               const Part& held_rows, const Part& held_cols, TensorTarget target) {
    visit_({.name = prefix_ + std::string(name),
            .part = part,
            .layer = layer_,
            .rows = rows,
            .cols = cols,
            .held_rows = held_rows,
            .held_cols = held_cols,
            .target = target});
  }
  // Rows or columns of the rank's heads.
  Part OfHeads(std::int64_t width) const {
    return {.first = rank_.heads.first * width, .count = rank_.heads.count * width};
  }

  void Norm(std::string_view name, std::int64_t size, Vector<const float>& vector) {
    Add(ModelPart::kNorms, name, size, 0, VectorTarget{&vector});
  }

  void Attention(AttentionWeights& weights) {
    const ModelConfig& c = config_;
    const std::int64_t query = c.nope + kRopeWidth;
    const auto part = ModelPart::kAttention;
    if (c.q_latent > 0) {
      Add(part, "q_a_proj.weight", c.q_latent, c.hidden, LinearTarget{&weights.q_a});
      Norm("q_a_layernorm.weight", c.q_latent, weights.q_a_norm);
      AddRows(part, "q_b_proj.weight", c.heads * query, c.q_latent, OfHeads(query),
              LinearTarget{&weights.q_b});
    } else {
      AddRows(part, "q_proj.weight", c.heads * query, c.hidden, OfHeads(query),
              LinearTarget{&weights.q_b});
    }
    Add(part, "kv_a_proj_with_mqa.weight", kLatentWidth + kRopeWidth, c.hidden,
        LinearTarget{&weights.kv_a});
    Norm("kv_a_layernorm.weight", kLatentWidth, weights.kv_a_norm);
    AddRows(part, "kv_b_proj.weight", c.heads * (c.nope + c.value), kLatentWidth,
            OfHeads(c.nope + c.value),
            LatentTarget{&weights.w_uk, &weights.w_uv, &weights.w_uv_fp8});
    AddColumns(part, "o_proj.weight", c.hidden, c.heads * c.value, OfHeads(c.value),
               LinearTarget{&weights.o});
  }

  void Indexer(IndexerWeights& weights) {
    const ModelConfig& c = config_;
    const auto part = ModelPart::kIndexer;
    Add(part, "wq_b.weight", c.index_heads * kIndexHeadWidth, c.q_latent,
        LinearTarget{&weights.wq_b});
    Add(part, "wk.weight", kIndexHeadWidth, c.hidden, LinearTarget{&weights.wk});
    Add(part, "k_norm.weight", kIndexHeadWidth, 0, VectorTarget{&weights.k_norm_weight});
    Add(part, "k_norm.bias", kIndexHeadWidth, 0, VectorTarget{&weights.k_norm_bias});
    Add(part, "weights_proj.weight", c.index_heads, c.hidden, MatrixTarget{&weights.weights_proj});
  }

  void Mlp(MlpWeights& weights, const std::string& name, ModelPart part) {
    const std::int64_t hidden = config_.hidden;
    const bool dense = part == ModelPart::kDenseMlp;
    const std::int64_t width = dense ? config_.dense_width : config_.shared_width;
    const Part& held = dense ? rank_.dense_width : rank_.shared_width;
    AddRows(part, name + "gate_proj.weight", width, hidden, held, LinearTarget{&weights.gate});
    AddRows(part, name + "up_proj.weight", width, hidden, held, LinearTarget{&weights.up});
    AddColumns(part, name + "down_proj.weight", hidden, width, held, LinearTarget{&weights.down});
  }

  void Moe(MoeWeights& weights) {
    const ModelConfig& c = config_;
    Add(ModelPart::kGate, "gate.weight", c.experts, c.hidden, MatrixTarget{&weights.gate});
    Add(ModelPart::kGate, "gate.e_score_correction_bias", c.experts, 0,
        VectorTarget{&weights.gate_bias});
    const auto part = ModelPart::kExperts;
    for (std::int64_t expert = 0; expert < c.experts; ++expert) {
      const std::string name = fmt::format("experts.{}.", expert);
      const std::int64_t place = expert - rank_.experts.first;
      const bool is_here = place >= 0 && place < rank_.experts.count;
      const Part width = is_here ? rank_.expert_width : Part{.first = 0, .count = 0};
      AddRows(part, name + "gate_proj.weight", c.expert_width, c.hidden, width,
              ExpertTarget{&weights.expert_gate, place});
      AddRows(part, name + "up_proj.weight", c.expert_width, c.hidden, width,
              ExpertTarget{&weights.expert_up, place});
      if (rank_.expert_width.count == c.expert_width) {  // whole experts, or none of this one
        AddRows(part, name + "down_proj.weight", c.hidden, c.expert_width,
                {.first = 0, .count = is_here ? c.hidden : 0},
                ExpertTarget{&weights.expert_down, place});
      } else {
        AddColumns(part, name + "down_proj.weight", c.hidden, c.expert_width, width,
                   ExpertTarget{&weights.expert_down, place});
      }
    }
    if (weights.shared) {
      Mlp(*weights.shared, "shared_experts.", ModelPart::kSharedExpert);
    }
  }

  const ModelConfig& config_;
  const RankShape& rank_;
  const Visitor& visit_;
  std::int64_t layer_ = -1;
  std::string prefix_;
};

void MakeLayers(const ModelConfig& config, ModelWeights& weights) {
  weights.layers.assign(static_cast<std::size_t>(config.layers), LayerWeights{});
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    LayerWeights& made = weights.layers[static_cast<std::size_t>(layer)];
    if (config.has_indexer()) {
      made.indexer.emplace();
    }
    if (layer < config.dense_layers) {
      made.dense.emplace();
      continue;
    }
    made.moe.emplace();
    if (config.shared_width > 0) {
      made.moe->shared.emplace();
    }
  }
}

}  // namespace

std::vector<std::vector<LinearWeight*>> WeightsOfOneInput(const ModelConfig& config,
                                                          LayerWeights& layer) {
  AttentionWeights& attention = layer.attention;
  const bool has_query_latent = config.q_latent > 0;
  std::vector<LinearWeight*> of_normed = {has_query_latent ? &attention.q_a : &attention.q_b};
  std::vector<LinearWeight*> of_query_latent;
  if (layer.indexer) {
    of_normed.push_back(&layer.indexer->wk);
  }
  of_normed.push_back(&attention.kv_a);
  if (has_query_latent) {
    of_query_latent.push_back(&attention.q_b);
  }
  if (layer.indexer) {
    of_query_latent.push_back(&layer.indexer->wq_b);
  }
  std::vector<std::vector<LinearWeight*>> sets = {of_normed, of_query_latent};
  if (layer.dense) {
    sets.push_back({&layer.dense->gate, &layer.dense->up});
  }
  if (layer.moe && layer.moe->shared) {
    sets.push_back({&layer.moe->shared->gate, &layer.moe->shared->up});
  }
  return sets;
}

std::string_view ToString(ModelPart part) {
  switch (part) {
    case ModelPart::kEmbedding: return "embedding";
    case ModelPart::kHead: return "head";
    case ModelPart::kNorms: return "norms";
    case ModelPart::kAttention: return "attention";
    case ModelPart::kIndexer: return "indexer";
    case ModelPart::kDenseMlp: return "dense MLP";
    case ModelPart::kGate: return "gate";
    case ModelPart::kSharedExpert: return "shared expert";
    case ModelPart::kExperts: return "routed experts";
  }
  return "unknown";
}

bool KeepsFp8Values(const ModelConfig& config, DataType stored) {
  return stored == DataType::kFp8E4m3 && config.activation_type == DataType::kBf16 &&
         config.scale_format == ScaleFormat::kPowerOfTwo && config.nope % kWeightBlock == 0 &&
         config.value % kWeightBlock == 0;
}

bool TensorSpec::quantizable() const {
  return !std::holds_alternative<MatrixTarget>(target) &&
         !std::holds_alternative<VectorTarget>(target);
}

void ForEachTensor(const ModelConfig& config, ModelWeights& weights, const Visitor& visit) {
  ForEachTensor(config, WholeModel(config), weights, visit);
}

void ForEachTensor(const ModelConfig& config, const RankShape& rank, ModelWeights& weights,
                   const Visitor& visit) {
  MakeLayers(config, weights);
  TensorList list(config, rank, visit);
  list.Model(weights);
  std::int64_t index = 0;
  for (LayerWeights& layer : weights.layers) {
    list.Layer(layer, index++);
  }
  list.Head(weights);
}

}  // namespace dsa
