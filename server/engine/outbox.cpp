#include "server/engine/outbox.h"

#include "common/check.h"

#include <algorithm>
#include <bit>

namespace dsa {
namespace {

// A power of two, so that a count becomes a place by masking: dividing is slow.
template <typename T>
std::vector<T> MakeRing(std::int64_t entries) {
  return std::vector<T>(std::bit_ceil(static_cast<std::uint64_t>(entries)));
}

template <typename T>
std::size_t PlaceOf(const std::vector<T>& ring, std::int64_t count) {
  return static_cast<std::size_t>(count) & (ring.size() - 1);
}

// Copies between a ring, from `first` on, and a flat range.
template <typename T>
void CopyIn(std::span<const T> source, std::int64_t first, std::vector<T>& ring) {
  if (source.empty()) {
    return;
  }
  const std::size_t begin = PlaceOf(ring, first);
  const std::size_t until_end = ring.size() - begin;
  if (source.size() <= until_end) {
    std::copy(source.begin(), source.end(), ring.begin() + begin);
    return;
  }
  std::copy_n(source.begin(), until_end, ring.begin() + begin);
  std::copy(source.begin() + until_end, source.end(), ring.begin());
}

template <typename T, typename Out>
void AppendFrom(const std::vector<T>& ring, std::int64_t first, std::size_t count, Out& out) {
  if (count == 0) {
    return;
  }
  const std::size_t begin = PlaceOf(ring, first);
  const std::size_t until_end = std::min(count, ring.size() - begin);
  out.insert(out.end(), ring.begin() + begin, ring.begin() + begin + until_end);
  out.insert(out.end(), ring.begin(), ring.begin() + (count - until_end));
}

}  // namespace

Outbox::Outbox(const Capacity& capacity)
    : events_(MakeRing<OutboxEvent>(capacity.events)),
      text_(MakeRing<char>(capacity.text_bytes)),
      top_logprobs_(MakeRing<TokenLogprob>(capacity.top_logprobs)) {
  DSA_CHECK(capacity.events > 0 && capacity.text_bytes > 0 && capacity.top_logprobs > 0,
            "Outbox: room for {} events, {} bytes, {} log-probabilities", capacity.events,
            capacity.text_bytes, capacity.top_logprobs);
}

bool Outbox::TryReserve(const Capacity& needed) {
  const auto limit = [](const std::atomic<std::int64_t>& popped, std::size_t ring_size) {
    return popped.load(std::memory_order_acquire) + static_cast<std::int64_t>(ring_size);
  };
  limit_ = {.events = limit(events_popped_, events_.size()),
            .text_bytes = limit(text_bytes_popped_, text_.size()),
            .top_logprobs = limit(top_logprobs_popped_, top_logprobs_.size())};
  return pushed_.events + needed.events <= limit_.events &&
         pushed_.text_bytes + needed.text_bytes <= limit_.text_bytes &&
         pushed_.top_logprobs + needed.top_logprobs <= limit_.top_logprobs;
}

OutboxEvent& Outbox::Next() {
  DSA_CHECK(pushed_.events < limit_.events, "Outbox: no room for event {}", pushed_.events);
  next_ = &events_[PlaceOf(events_, pushed_.events)];
  next_->Clear();
  return *next_;
}

void Outbox::Push(std::string_view text, std::span<const TokenLogprob> top_logprobs) {
  DSA_CHECK(next_ != nullptr, "Outbox: {} bytes without an event", text.size());
  const auto text_bytes = static_cast<std::int32_t>(text.size());
  const auto likely = static_cast<std::int32_t>(top_logprobs.size());
  DSA_CHECK(pushed_.text_bytes + text_bytes <= limit_.text_bytes, "Outbox: no room for {} bytes",
            text_bytes);
  DSA_CHECK(pushed_.top_logprobs + likely <= limit_.top_logprobs,
            "Outbox: no room for {} log-probabilities", likely);
  CopyIn<char>(text, pushed_.text_bytes, text_);
  CopyIn<TokenLogprob>(top_logprobs, pushed_.top_logprobs, top_logprobs_);
  next_->text_bytes = text_bytes;
  next_->top_logprobs = likely;
  next_ = nullptr;
  pushed_.text_bytes += text_bytes;
  pushed_.top_logprobs += likely;
  ++pushed_.events;
  events_pushed_.store(pushed_.events, std::memory_order_release);  // partner: Pop
}

bool Outbox::Pop(OutboxEvent& event, std::string& text, std::vector<TokenLogprob>& top_logprobs) {
  if (popped_.events == events_pushed_.load(std::memory_order_acquire)) {  // partner: Push
    return false;
  }
  event = events_[PlaceOf(events_, popped_.events)];
  AppendFrom(text_, popped_.text_bytes, event.text_bytes, text);
  AppendFrom(top_logprobs_, popped_.top_logprobs, event.top_logprobs, top_logprobs);
  ++popped_.events;
  popped_.text_bytes += event.text_bytes;
  popped_.top_logprobs += event.top_logprobs;
  text_bytes_popped_.store(popped_.text_bytes, std::memory_order_release);  // partner: HasRoom
  top_logprobs_popped_.store(popped_.top_logprobs, std::memory_order_release);
  events_popped_.store(popped_.events, std::memory_order_release);
  return true;
}

}  // namespace dsa
