// What ops take, by name alone: each has its own header, under kernels/ops/, kernels/fused/ or, of
// several ranks, kernels/comm/.  A change of one compiles its users only.
#pragma once

namespace dsa {

// Fused ops.
struct AddNormParams;
struct AttendLatentParams;
struct AttendMaskedParams;
struct ExpertMlpParams;
struct GatedMlpParams;
struct ProjectParams;
struct SelectKeysParams;
struct WriteKeysParams;

// Plain ops, and those of several ranks (kernels/comm/collectives.h).
struct AbsorbQueryParams;
struct AllGatherParams;
struct AllReduceParams;
struct BlockScaledLinearParams;
struct CombineParams;
struct DispatchParams;
struct EmbedParams;
struct ExpandValueParams;
struct FillRandomParams;
struct GateParams;
struct GatherRowsParams;
struct IndexerLogitsParams;
struct LatentAttentionParams;
struct LinearParams;
struct MaskedAttentionParams;
struct PrepareIndexerQueryParams;
struct QuantizeFp8Params;
struct RmsNormParams;
struct RopeParams;
struct RoutedExpertsParams;
struct SampleParams;
struct SelectTopKParams;
struct StoreIndexerKeyParams;
struct StoreLatentParams;
struct SwiGluParams;
struct UpdateBlockTablesParams;

}  // namespace dsa
