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
  TensorList(const ModelConfig& config, const Visitor& visit) : config_(config), visit_(visit) {}

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
      Mlp(*weights.dense, "", config_.dense_width, ModelPart::kDenseMlp);
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
      Add(ModelPart::kHead, "lm_head.weight", config_.vocabulary, config_.hidden,
          MatrixTarget{&weights.head});
    }
  }

 private:
  void Add(ModelPart part, std::string_view name, std::int64_t rows, std::int64_t cols,
           TensorTarget target) {
    visit_({.name = prefix_ + std::string(name),
            .part = part,
            .layer = layer_,
            .rows = rows,
            .cols = cols,
            .target = target});
  }

  void Norm(std::string_view name, std::int64_t size, Vector<const float>& vector) {
    Add(ModelPart::kNorms, name, size, 0, VectorTarget{&vector});
  }

  void Attention(AttentionWeights& weights) {
    const ModelConfig& c = config_;
    const std::int64_t q_width = c.heads * (c.nope + kRopeWidth);
    const auto part = ModelPart::kAttention;
    if (c.q_latent > 0) {
      Add(part, "q_a_proj.weight", c.q_latent, c.hidden, LinearTarget{&weights.q_a});
      Norm("q_a_layernorm.weight", c.q_latent, weights.q_a_norm);
      Add(part, "q_b_proj.weight", q_width, c.q_latent, LinearTarget{&weights.q_b});
    } else {
      Add(part, "q_proj.weight", q_width, c.hidden, LinearTarget{&weights.q_b});
    }
    Add(part, "kv_a_proj_with_mqa.weight", kLatentWidth + kRopeWidth, c.hidden,
        LinearTarget{&weights.kv_a});
    Norm("kv_a_layernorm.weight", kLatentWidth, weights.kv_a_norm);
    Add(part, "kv_b_proj.weight", c.heads * (c.nope + c.value), kLatentWidth,
        LatentTarget{&weights.w_uk, &weights.w_uv});
    Add(part, "o_proj.weight", c.hidden, c.heads * c.value, LinearTarget{&weights.o});
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

  void Mlp(MlpWeights& weights, const std::string& name, std::int64_t width, ModelPart part) {
    const std::int64_t hidden = config_.hidden;
    Add(part, name + "gate_proj.weight", width, hidden, LinearTarget{&weights.gate});
    Add(part, name + "up_proj.weight", width, hidden, LinearTarget{&weights.up});
    Add(part, name + "down_proj.weight", hidden, width, LinearTarget{&weights.down});
  }

  void Moe(MoeWeights& weights) {
    const ModelConfig& c = config_;
    Add(ModelPart::kGate, "gate.weight", c.experts, c.hidden, MatrixTarget{&weights.gate});
    Add(ModelPart::kGate, "gate.e_score_correction_bias", c.experts, 0,
        VectorTarget{&weights.gate_bias});
    const auto part = ModelPart::kExperts;
    for (std::int64_t expert = 0; expert < c.experts; ++expert) {
      const std::string name = fmt::format("experts.{}.", expert);
      Add(part, name + "gate_proj.weight", c.expert_width, c.hidden,
          ExpertTarget{&weights.expert_gate, expert});
      Add(part, name + "up_proj.weight", c.expert_width, c.hidden,
          ExpertTarget{&weights.expert_up, expert});
      Add(part, name + "down_proj.weight", c.hidden, c.expert_width,
          ExpertTarget{&weights.expert_down, expert});
    }
    if (weights.shared) {
      Mlp(*weights.shared, "shared_experts.", c.shared_width, ModelPart::kSharedExpert);
    }
  }

  const ModelConfig& config_;
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

bool TensorSpec::quantizable() const {
  return !std::holds_alternative<MatrixTarget>(target) &&
         !std::holds_alternative<VectorTarget>(target);
}

void ForEachTensor(const ModelConfig& config, ModelWeights& weights, const Visitor& visit) {
  MakeLayers(config, weights);
  TensorList list(config, visit);
  list.Model(weights);
  std::int64_t index = 0;
  for (LayerWeights& layer : weights.layers) {
    list.Layer(layer, index++);
  }
  list.Head(weights);
}

}  // namespace dsa
