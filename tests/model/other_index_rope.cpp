// The one fault of the indexer that is told by parameters alone, and so on any backend.
#include "kernels/forwarding_backend.h"
#include "kernels/ops/prepare_indexer_query.h"
#include "kernels/ops/store_indexer_key.h"
#include "tests/model/indexer_faults.h"

namespace dsa::testing {
namespace {

class OtherIndexRope final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void StoreIndexerKey(const StoreIndexerKeyParams& params) override {
    StoreIndexerKeyParams wrong = params;
    wrong.layout = OtherLayout(params.layout);
    inner_.StoreIndexerKey(wrong);
  }
  void PrepareIndexerQuery(const PrepareIndexerQueryParams& params) override {
    PrepareIndexerQueryParams wrong = params;
    wrong.layout = OtherLayout(params.layout);
    inner_.PrepareIndexerQuery(wrong);
  }
};

}  // namespace

std::unique_ptr<Backend> WithOtherIndexRope(Backend& inner) {
  return std::make_unique<OtherIndexRope>(inner);
}

}  // namespace dsa::testing
