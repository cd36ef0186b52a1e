#include "kernels/ops/select_top_k.h"

#include "common/check.h"
#include "kernels/cpu/cache_access.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/scratch.h"

#include <algorithm>
#include <array>
#include <bit>

#include <immintrin.h>

namespace dsa {
namespace {

// An integer that orders as the float does: NaN apart, a < b exactly where Key(a) < Key(b).
// Adding +0 turns -0 into +0.
std::uint32_t Key(float score) {
  const auto bits = std::bit_cast<std::uint32_t>(score + 0.0F);
  const auto sign = static_cast<std::uint32_t>(static_cast<std::int32_t>(bits) >> 31);
  return bits ^ (sign | 0x80000000U);
}

__m256i Keys(const float* scores) {
  const __m256i bits =
      _mm256_castps_si256(_mm256_add_ps(_mm256_loadu_ps(scores), _mm256_setzero_ps()));
  const __m256i sign = _mm256_srai_epi32(bits, 31);
  return _mm256_xor_si256(bits,
                          _mm256_or_si256(sign, _mm256_set1_epi32(static_cast<int>(0x80000000U))));
}

constexpr int kTopBits = 11;  // key bits of the three passes, from the top: 11, 11, 10
constexpr int kBins = 1 << kTopBits;
using Histogram = std::array<std::int32_t, kBins>;

// The bin that holds the key of rank `rank` (1: the largest); `rank` becomes its rank in the bin.
std::uint32_t FindBin(const Histogram& histogram, int bins, std::int64_t& rank) {
  for (int bin = bins - 1; bin > 0; --bin) {
    if (rank <= histogram[bin]) {
      return static_cast<std::uint32_t>(bin);
    }
    rank -= histogram[bin];
  }
  return 0;
}

// The scores that a row sees.
using Scores = Vector<const float>;

// Counts of the top 11 bits.  Four histograms in turn, because neighbours often share a bin and an
// increment would wait for the one before it.
bool CountTop(const Scores& scores, Histogram& histogram) {
  std::array<Histogram, 4> parts{};
  bool nan = false;
  for (std::int64_t i = 0; i < scores.size; ++i) {
    nan |= scores.data[i] != scores.data[i];
    ++parts[i & 3][Key(scores.data[i]) >> (32 - kTopBits)];
  }
  for (int bin = 0; bin < kBins; ++bin) {
    histogram[bin] = parts[0][bin] + parts[1][bin] + parts[2][bin] + parts[3][bin];
  }
  return nan;
}

// Some bits of a key: `count` of them, above the `shift` lowest.
struct Digit {
  int shift;
  int count;
};

// Counts a digit of the keys whose bits further up equal `prefix`.
void CountDigit(const Scores& scores, std::uint32_t prefix, const Digit& digit,
                Histogram& histogram) {
  const auto [shift, bits] = digit;
  histogram.fill(0);
  const std::uint32_t mask = (1U << bits) - 1U;
  const __m256i wanted = _mm256_set1_epi32(static_cast<int>(prefix));
  const __m128i above = _mm_cvtsi32_si128(shift + bits);
  std::int64_t i = 0;
  for (; i + 8 <= scores.size; i += 8) {
    const __m256i equal =
        _mm256_cmpeq_epi32(_mm256_srl_epi32(Keys(scores.data + i), above), wanted);
    auto found = static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(equal)));
    for (; found != 0; found &= found - 1) {
      ++histogram[(Key(scores.data[i + std::countr_zero(found)]) >> shift) & mask];
    }
  }
  for (; i < scores.size; ++i) {
    const std::uint32_t key = Key(scores.data[i]);
    if (key >> (shift + bits) == prefix) {
      ++histogram[(key >> shift) & mask];
    }
  }
}

// Positions of the keys above `threshold` and of the first `ties` keys equal to it, ascending;
// ties > 0.  With the last tie taken, equal keys are no longer looked for: where all scores are
// equal, looking at each would cost more than all else.  Unsigned order through signed compares:
// both sides have their top bit flipped.
void Collect(const Scores& scores, std::uint32_t threshold, std::int64_t ties,
             std::int32_t* selected) {
  const __m256i flip = _mm256_set1_epi32(static_cast<int>(0x80000000U));
  std::uint32_t smallest = threshold;
  const auto take = [&](std::int64_t position, std::uint32_t key) {
    if (key >= smallest) {
      *selected++ = static_cast<std::int32_t>(position);
      if (key == threshold && --ties == 0) {
        ++smallest;  // the largest key, of infinity, is not the largest integer
      }
    }
  };
  std::int64_t i = 0;
  for (; i + 8 <= scores.size; i += 8) {
    const __m256i keys = _mm256_xor_si256(Keys(scores.data + i), flip);
    const __m256i limit = _mm256_set1_epi32(static_cast<int>(smallest ^ 0x80000000U));
    const __m256i below = _mm256_cmpgt_epi32(limit, keys);
    auto found =
        static_cast<std::uint32_t>(~_mm256_movemask_ps(_mm256_castsi256_ps(below))) & 0xFFU;
    for (; found != 0; found &= found - 1) {
      const std::int64_t position = i + std::countr_zero(found);
      take(position, Key(scores.data[position]));
    }
  }
  for (; i < scores.size; ++i) {
    take(i, Key(scores.data[i]));
  }
}

void SelectFirst(std::int64_t count, std::int32_t* selected) {
  for (std::int64_t i = 0; i < count; ++i) {
    selected[i] = static_cast<std::int32_t>(i);
  }
}

// Writes the wanted parts of a row's selection from its positions.
void StoreSelection(const SelectTopKParams& params, std::int64_t row, const std::int32_t* selected,
                    std::int64_t count) {
  params.counts.data[row] = static_cast<std::int32_t>(count);
  if (params.positions.data != nullptr) {
    std::int32_t* const positions = params.positions.Row(row);
    std::fill(std::copy_n(selected, count, positions), positions + params.k, -1);
  }
  if (params.slots.data != nullptr) {
    std::int32_t* const slots = params.slots.Row(row);
    for (std::int64_t i = 0; i < count; ++i) {
      slots[i] = static_cast<std::int32_t>(
          cpu::SlotOf("SelectTopK", params.rows, row, std::int64_t{selected[i]}));
    }
    std::fill(slots + count, slots + params.k, -1);
  }
  if (params.mask.data != nullptr) {
    std::uint64_t* const words = params.mask.Row(row);
    std::fill_n(words, params.mask.cols, std::uint64_t{0});
    for (std::int64_t i = 0; i < count; ++i) {
      words[selected[i] / 64] |= std::uint64_t{1} << (selected[i] % 64);
    }
  }
}

// Writes the selected positions of a row to `selected` [K], ascending, and returns their number.
std::int64_t SelectRow(const SelectTopKParams& params, std::int64_t row, std::int32_t* selected) {
  const std::int64_t visible = std::int64_t{params.rows.positions.data[row]} + 1;
  DSA_CHECK(visible > 0 && visible <= params.scores.cols,
            "SelectTopK: row {} sees {} keys, scores have {} columns", row, visible,
            params.scores.cols);
  DSA_CHECK(params.mask.data == nullptr || visible <= params.mask.cols * 64,
            "SelectTopK: row {} sees {} keys, the mask has {} words", row, visible,
            params.mask.cols);
  const std::int64_t count = std::min(params.k, visible);

  const Scores scores = {.data = params.scores.Row(row), .size = visible};
  Histogram histogram;
  const bool nan = CountTop(scores, histogram);
  if (nan) {
    params.faults.data[row] |= kRowFaultIndexerNan;
  }
  if (nan || count == visible) {
    SelectFirst(count, selected);
    return count;
  }
  std::int64_t rank = count;
  std::uint32_t threshold = FindBin(histogram, kBins, rank);
  CountDigit(scores, threshold, {.shift = 10, .count = 11}, histogram);
  threshold = threshold << 11 | FindBin(histogram, kBins, rank);
  CountDigit(scores, threshold, {.shift = 0, .count = 10}, histogram);
  threshold = threshold << 10 | FindBin(histogram, kBins / 2, rank);
  Collect(scores, threshold, rank, selected);
  return count;
}

}  // namespace

void CpuBackend::Compute(const SelectTopKParams& params) {
  const SelectTopKExtents extents = Validate(params);
  if (extents.tokens == 0) {
    return;
  }
  cpu::CheckGroups("SelectTopK", params.rows);
  const CpuScratch& scratch = ScratchFor(extents.tokens);
  DSA_CHECK(extents.k <= scratch.limits.index_topk, "SelectTopK: K={}, scratch is for {}",
            extents.k, scratch.limits.index_topk);
  pool_.ParallelFor(extents.tokens, Shares::kMany,
                    [&](std::int64_t first, std::int64_t last, int thread) {
                      std::int32_t* const selected =
                          scratch.attention[static_cast<std::size_t>(thread)].selected.data();
                      for (std::int64_t row = first; row < last; ++row) {
                        const std::int64_t count = SelectRow(params, row, selected);
                        StoreSelection(params, row, selected, count);
                      }
                    });
}

}  // namespace dsa
