#include "kernels/ops/embed.h"

#include "common/check.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/scratch.h"

#include <cstring>

namespace dsa {

void CpuBackend::Compute(const EmbedParams& params) {
  const auto extents = Validate(params);
  const CpuScratch& scratch = ScratchFor(extents.tokens);
  pool_.ParallelFor(extents.tokens, [&](std::int64_t first, std::int64_t last, int thread) {
    float* values = scratch.Row(thread, extents.hidden);
    for (std::int64_t t = first; t < last; ++t) {
      const std::int64_t id = params.ids.data[t];
      DSA_CHECK(id >= 0 && id < extents.vocabulary, "Embed: ids[{}]={}, V={}", t, id,
                extents.vocabulary);
      const void* source = RowOf(params.table, id);
      void* target = RowOf(params.x, t);
      if (params.table.type == params.x.type) {
        std::memcpy(target, source,
                    static_cast<std::size_t>(extents.hidden * SizeOf(params.x.type)));
      } else {
        LoadRow(source, params.table.type, extents.hidden, values);
        StoreRow(values, extents.hidden, target, params.x.type);
      }
    }
  });
}

}  // namespace dsa
