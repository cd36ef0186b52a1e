// Which rank a request goes to.
#include "server/engine/engine_core.h"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace dsa {

void EngineCore::AdmitFromInbox() {
  inbox_.TakeAll(arrivals_);
  for (std::unique_ptr<LiveRequest>& arrival : arrivals_) {
    ++waiting_counted_;
    if (ranks_.size() == 1) {
      AddTo(*ranks_.front(), std::move(arrival));
      continue;
    }
    // Behind all that are not after it: none has a number yet, and they came in this order.
    const auto place = std::upper_bound(unbound_.begin(), unbound_.end(), arrival,
                                        [this](const auto& a, const auto& b) {
                                          return policy_->Before(*a->sequence, *b->sequence);
                                        });
    unbound_.insert(place, std::move(arrival));
  }
  arrivals_.clear();
}

void EngineCore::AddTo(DataRank& rank, std::unique_ptr<LiveRequest> request) {
  const std::int32_t slot = rank.scheduler.Add(std::move(request->sequence));
  rank.live[slot] = std::move(request);
}

// That of its siblings, which have or compute the prompt, else the best of those that can start it.
std::optional<std::size_t> EngineCore::RankFor(const Sequence& sequence) {
  for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
    const Scheduler& scheduler = ranks_[rank]->scheduler;
    if (scheduler.HoldsSiblingOf(sequence)) {
      return scheduler.has_free_slot() ? std::optional(rank) : std::nullopt;
    }
  }
  std::transform(ranks_.begin(), ranks_.end(), offers_.begin(),
                 [&](const auto& rank) { return rank->scheduler.OfferFor(sequence); });
  return ChooseRank(offers_);
}

// In order; nobody passes one that no rank can start yet.
void EngineCore::BindRequests() {
  std::size_t bound = 0;
  for (; bound < unbound_.size(); ++bound) {
    const Sequence& sequence = *unbound_[bound]->sequence;
    const std::optional<std::size_t> rank = RankFor(sequence);
    if (!rank) {
      break;
    }
    if (observer_ != nullptr) {
      observer_->OnBind(sequence, *rank);
    }
    AddTo(*ranks_[*rank], std::move(unbound_[bound]));
  }
  unbound_.erase(unbound_.begin(), unbound_.begin() + static_cast<std::ptrdiff_t>(bound));
}

}  // namespace dsa
