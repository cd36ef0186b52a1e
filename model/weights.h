// The model's parameters as views into device memory, and the one list of its tensors.
//
// Shapes are [out, in]; H, I and the rows of the head are those of the rank (model/rank_shape.h).
// Views are plain data; who loaded them owns the memory (model/weight_loader.h).
#pragma once

#include "common/view.h"
#include "kernels/fused/activation.h"
#include "kernels/ops/expand_value.h"
#include "kernels/ops/routed_experts.h"
#include "model/model_config.h"
#include "model/rank_shape.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace dsa {

struct AttentionWeights {
  LinearWeight q_a;               // [q_latent, D]; weight.data null where q_latent is 0
  Vector<const float> q_a_norm;   // [q_latent]
  LinearWeight q_b;               // [H * (N + 64), q_latent], or q_proj [.., D] without q_latent
  LinearWeight kv_a;              // [512 + 64, D]
  Vector<const float> kv_a_norm;  // [512]
  ConstAnyTensor3 w_uk;           // [H, N, 512]  kv_b de-quantized once, rounded to the
  ConstAnyTensor3 w_uv;           // [H, V, 512]  activation type; contiguous
  // W_UV as it is stored, for decode, which is bound by its bytes; values.data null where
  // KeepsFp8Values says no.
  ScaledHeads w_uv_fp8{};
  LinearWeight o;  // [D, H * V]
};

struct IndexerWeights {
  LinearWeight wq_b;                  // [IH * 128, q_latent]
  LinearWeight wk;                    // [128, D]
  Vector<const float> k_norm_weight;  // [128]
  Vector<const float> k_norm_bias;    // [128]
  ConstAnyMatrix weights_proj;        // [IH, D]  f32 or bf16
};

struct MlpWeights {
  LinearWeight gate;  // [I, D]
  LinearWeight up;    // [I, D]
  LinearWeight down;  // [D, I]
};

struct MoeWeights {
  ConstAnyMatrix gate;               // [E, D]  f32 or bf16
  Vector<const float> gate_bias;     // [E]  e_score_correction_bias
  StackedWeight expert_gate;         // [E, I, D]
  StackedWeight expert_up;           // [E, I, D]
  StackedWeight expert_down;         // [E, D, I]
  std::optional<MlpWeights> shared;  // the shared expert, where there is one
};

struct LayerWeights {
  Vector<const float> attention_norm;  // [D]  input_layernorm
  AttentionWeights attention;
  std::optional<IndexerWeights> indexer;  // with DSA
  Vector<const float> ffn_norm;           // [D]  post_attention_layernorm
  std::optional<MlpWeights> dense;        // exactly one of dense and moe
  std::optional<MoeWeights> moe;
};

struct ModelWeights {
  ConstAnyMatrix embedding{};  // [vocabulary, D]  f32 or bf16
  std::vector<LayerWeights> layers;
  Vector<const float> final_norm{};  // [D]
  ConstAnyMatrix head{};             // [vocabulary, D]; rows of the embedding where tied
};

// Weights of a layer that multiply the same activation, set by set: those of a set lie one behind
// the other in this order, as far as shapes allow, and can be read as one
// (kernels/fused/joined.h).  In V3.2 only the last of a set ends inside a block of scales.
std::vector<std::vector<LinearWeight*>> WeightsOfOneInput(const ModelConfig& config,
                                                          LayerWeights& layer);

// Whether W_UV is kept as fp8 too, beside its de-quantized copy, where kv_b is stored as `stored`:
// where a head's rows are whole blocks of scales, activations are bfloat16, and scales are powers
// of two, so that both copies are the same numbers.
bool KeepsFp8Values(const ModelConfig& config, DataType stored);

// What a part of the model is, for reports.
enum class ModelPart : std::uint8_t {
  kEmbedding,
  kHead,
  kNorms,
  kAttention,
  kIndexer,
  kDenseMlp,
  kGate,
  kSharedExpert,
  kExperts,
};
inline constexpr int kModelParts = 9;
std::string_view ToString(ModelPart part);

// How a tensor is stored and where it goes.
struct LinearTarget {  // bf16, f32, or fp8 with "<name>_scale_inv"; kept as it is
  LinearWeight* weight;
};
struct MatrixTarget {  // bf16 or f32, never quantized; kept as it is
  ConstAnyMatrix* matrix;
};
struct VectorTarget {  // bf16 or f32; converted to f32
  Vector<const float>* vector;
};
struct ExpertTarget {  // as LinearTarget, one expert's part of a stack
  StackedWeight* stack;
  std::int64_t place;  // in the rank's stack; of no meaning where the rank holds nothing of it
};
struct LatentTarget {  // kv_b, stored as LinearTarget; de-quantized and split by head
  ConstAnyTensor3* w_uk;
  ConstAnyTensor3* w_uv;
  ScaledHeads* w_uv_fp8;
};
using TensorTarget =
    std::variant<LinearTarget, MatrixTarget, VectorTarget, ExpertTarget, LatentTarget>;

struct TensorSpec {
  std::string name;  // in the checkpoint
  ModelPart part;
  std::int64_t layer;  // -1 outside the layers
  std::int64_t rows;   // shape [rows, cols]; a vector has shape [rows] and cols 0
  std::int64_t cols;
  // What the rank holds of it; views have these extents.  Either may be none.
  Part held_rows;
  Part held_cols;
  TensorTarget target;

  bool quantizable() const;  // may be fp8
};

// Calls `visit` for every tensor that the configuration needs, in the model's order; MTP layers
// have none.  Targets point into `weights`, whose layers are made to fit first.  The list is the
// same for every rank.
void ForEachTensor(const ModelConfig& config, const RankShape& rank, ModelWeights& weights,
                   const std::function<void(const TensorSpec&)>& visit);
// As one rank that holds everything.
void ForEachTensor(const ModelConfig& config, ModelWeights& weights,
                   const std::function<void(const TensorSpec&)>& visit);

}  // namespace dsa
