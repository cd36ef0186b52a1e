// Index scores as integers that order as the scores do, and the histogram of a row's scores that
// IndexScores makes on the side and IndexSelection begins with.
//
// The histogram has 32 bins an octave of each sign over magnitudes in [2^-20, 2^12), one bin for
// what lies about zero, and puts larger magnitudes into the outermost bins.
#pragma once

#include "kernels/cuda/index_scores.h"

namespace dsa::cuda {

inline constexpr int kScoreBinShift = 18;  // of a key: 32 bins an octave
inline constexpr int kZeroBin = kScoreBins / 2;
inline constexpr unsigned kSmallestBits = (127U - 20U) << 23;  // of 2^-20
// Keys are cut to kScoreBinShift: the first of the positive bins, and that behind the negative
// ones.
inline constexpr int kPositiveBegin =
    static_cast<int>((0x80000000U + kSmallestBits) >> kScoreBinShift);
inline constexpr int kNegativeEnd =
    static_cast<int>((0x80000000U - kSmallestBits) >> kScoreBinShift);

// Larger score, larger key; equal scores, equal keys.  No score but a NaN has a key of 0.
__device__ inline unsigned ScoreKey(float score) {
  constexpr unsigned kMinusZero = 0x80000000U;
  const unsigned stored = __float_as_uint(score);
  const unsigned bits = stored == kMinusZero ? 0U : stored;
  return bits ^ (static_cast<unsigned>(static_cast<int>(bits) >> 31) | 0x80000000U);
}
// The score of a key, 0 for either zero.
__device__ inline float ScoreOfKey(unsigned key) {
  return __uint_as_float((key & 0x80000000U) != 0 ? key ^ 0x80000000U : ~key);
}
// By magnitude, which is mirrored about the bin of zero.
__device__ inline int ScoreBin(float score) {
  const unsigned bits = __float_as_uint(score);
  constexpr int kSmallest = static_cast<int>(kSmallestBits >> kScoreBinShift);
  const int magnitude = static_cast<int>(bits << 1 >> (kScoreBinShift + 1));
  const int distance = min(max(magnitude - (kSmallest - 1), 0), kZeroBin);
  const int sign = static_cast<int>(bits) >> 31;  // 0 or -1
  return min(kZeroBin + (distance ^ sign) - sign, kScoreBins - 1);
}
// The keys of a bin.  0, which stands for "no score", is in none.
__device__ inline unsigned LowestKey(int bin) {
  const int cut =
      bin > kZeroBin ? bin - kZeroBin - 1 + kPositiveBegin : bin - kZeroBin + kNegativeEnd;
  return bin == 0 ? 1U : static_cast<unsigned>(cut) << kScoreBinShift;
}
__device__ inline unsigned HighestKey(int bin) {
  return bin == kScoreBins - 1 ? ~0U : LowestKey(bin + 1) - 1U;
}
// Whether the keys of a bin differ in their last kScoreBinShift bits only.
__device__ inline bool IsNarrowBin(int bin) {
  return bin != 0 && bin != kZeroBin && bin != kScoreBins - 1;
}
// The lowest score of a bin.
__device__ inline float LowestScore(int bin) {
  return bin == 0 ? -__int_as_float(0x7F800000) : ScoreOfKey(LowestKey(bin));
}

}  // namespace dsa::cuda
