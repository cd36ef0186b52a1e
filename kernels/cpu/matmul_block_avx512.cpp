// Two outputs in a vector: lanes 0 .. 3 are those of the first one's sum, 4 .. 7 of the second's.
// Weights become doubles in registers for up to four rows, in a buffer for more.  Functions that
// use AVX-512 say so, each for itself: the rest of the binary must start without.
#include "kernels/cpu/avx512_tables.h"
#include "kernels/cpu/matmul_block.h"
#include "kernels/cpu/wide.h"

// GCC 12 takes the undefined operands of its own intrinsics for mistakes.
#ifndef __clang__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#define DSA_AVX512 [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]]

namespace dsa::cpu {
namespace {

constexpr int kPairs = kOutputGroup / 2;
constexpr int kFewRows = 4;
constexpr int kQuads = kWideValues / kDoubleLanes;  // of columns, that are read at a time

constexpr Avx512Tables kTables = MakeAvx512Tables();
constexpr __mmask64 kBytesOfDoubles = 0xC0C0C0C0C0C0C0C0U;  // the highest two of each
constexpr __mmask64 kBytesOfFloats = 0xCCCCCCCCU;

DSA_AVX512 inline __m512i LoadTable(const void* bytes) {
  return _mm512_load_si512(bytes);
}

// 32 bytes of one row below 32 of another.
DSA_AVX512 inline __m512i LoadPair(const void* first, const void* second) {
  return _mm512_inserti64x4(
      _mm512_castsi256_si512(_mm256_loadu_si256(static_cast<const __m256i*>(first))),
      _mm256_loadu_si256(static_cast<const __m256i*>(second)), 1);
}

// ---- readers of weights ----
// Read(first, second, quads): quads[i] becomes columns 4 i .. 4 i + 3 of two rows.

// The scales are in the inputs.
struct ExactFp8 {
  using Value = Fp8E4m3;
  __m512i upper[2];
  __m512i lower[2];
  __m512i order[4];

  DSA_AVX512 explicit ExactFp8(const WeightBlock<Fp8E4m3>& /*weights*/)
      : upper{LoadTable(kTables.upper.data()), LoadTable(kTables.upper.data() + 64)},
        lower{LoadTable(kTables.lower.data()), LoadTable(kTables.lower.data() + 64)},
        order{LoadTable(kTables.quads_of_fp8[0].data()), LoadTable(kTables.quads_of_fp8[1].data()),
              LoadTable(kTables.quads_of_fp8[2].data()),
              LoadTable(kTables.quads_of_fp8[3].data())} {}

  DSA_AVX512 [[gnu::always_inline]] inline void Read(const Fp8E4m3* first, const Fp8E4m3* second,
                                                     __m512d* quads) const {
    const __m512i bytes = LoadPair(first, second);
    const __m512i magnitude = _mm512_permutex2var_epi8(upper[0], bytes, upper[1]);
    const __m512i low = _mm512_permutex2var_epi8(lower[0], bytes, lower[1]);
    // magnitude | (bytes & 0x80)
    const __m512i high = _mm512_ternarylogic_epi32(magnitude, bytes, _mm512_set1_epi8(-0x80), 0xF8);
    const __m512i halves[2] = {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
#pragma GCC unroll 8
    for (int i = 0; i < kQuads; ++i) {
      quads[i] = _mm512_castsi512_pd(_mm512_maskz_permutexvar_epi8(
          kBytesOfDoubles, order[i / 4 * 2 + i % 2], halves[i % 4 / 2]));
    }
  }
};

// Each product with the scale is exact in double, and then rounded as one of floats is.
struct ScaledFp8 {
  using Value = Fp8E4m3;
  ExactFp8 exact;
  __m512d scale;

  DSA_AVX512 explicit ScaledFp8(const WeightBlock<Fp8E4m3>& weights)
      : exact(weights), scale(_mm512_set1_pd(double{weights.scale})) {}

  DSA_AVX512 [[gnu::always_inline]] inline void Read(const Fp8E4m3* first, const Fp8E4m3* second,
                                                     __m512d* quads) const {
    exact.Read(first, second, quads);
#pragma GCC unroll 8
    for (int i = 0; i < kQuads; ++i) {
      quads[i] = _mm512_cvtps_pd(_mm512_cvtpd_ps(_mm512_mul_pd(quads[i], scale)));
    }
  }
};

struct ExactBf16 {
  using Value = Bf16;
  __m512i order[4];

  DSA_AVX512 explicit ExactBf16(const WeightBlock<Bf16>& /*weights*/)
      : order{LoadTable(kTables.quads_of_bf16[0].data()),
              LoadTable(kTables.quads_of_bf16[1].data()),
              LoadTable(kTables.quads_of_bf16[2].data()),
              LoadTable(kTables.quads_of_bf16[3].data())} {}

  DSA_AVX512 [[gnu::always_inline]] inline void Read(const Bf16* first, const Bf16* second,
                                                     __m512d* quads) const {
#pragma GCC unroll 2
    for (std::int64_t half = 0; half < 2; ++half) {
      const __m512i words = LoadPair(first + 16 * half, second + 16 * half);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m512i floats = _mm512_maskz_permutexvar_epi8(kBytesOfFloats, order[i], words);
        quads[4 * half + i] = _mm512_cvtps_pd(_mm256_castsi256_ps(_mm512_castsi512_si256(floats)));
      }
    }
  }
};

struct ExactF32 {
  using Value = float;

  DSA_AVX512 explicit ExactF32(const WeightBlock<float>& /*weights*/) {}

  DSA_AVX512 [[gnu::always_inline]] inline void Read(const float* first, const float* second,
                                                     __m512d* quads) const {
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < kQuads; ++i) {
      quads[i] = _mm512_cvtps_pd(Load4And4(first + 4 * i, second + 4 * i).lanes);
    }
  }
};

// ---- products ----

// Four inputs, for both outputs of a vector.
DSA_AVX512 inline __m512d LoadInputs(const double* source) {
  return _mm512_broadcast_f64x4(_mm256_loadu_pd(source));
}

double* SumsOf(const BlockTask& task, std::int64_t row, std::int64_t pair) {
  return task.sums + (row * kOutputGroup + 2 * pair) * kDoubleLanes;
}

// The sums of rows from `row` on, before and after.
template <int kRows>
DSA_AVX512 [[gnu::always_inline]] inline void LoadSums(const BlockTask& task, std::int64_t row,
                                                       __m512d (&sums)[kRows][kPairs]) {
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p) {
      sums[r][p] = _mm512_load_pd(SumsOf(task, row + r, p));
    }
  }
}
template <int kRows>
DSA_AVX512 [[gnu::always_inline]] inline void StoreSums(const BlockTask& task, std::int64_t row,
                                                        const __m512d (&sums)[kRows][kPairs]) {
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p) {
      _mm512_store_pd(SumsOf(task, row + r, p), sums[r][p]);
    }
  }
}

// Asks for the weights that are read later in place of columns k .. k + 31 of a pair.
template <typename T>
void PrefetchPair(const WeightBlock<T>& weights, std::int64_t pair, std::int64_t k) {
  constexpr std::int64_t kLine = 64 / std::int64_t{sizeof(T)};
  if constexpr (kLine > kWideValues) {  // a line in turn
    Prefetch(weights.rows[2 * pair + k / kWideValues % 2] + k / kLine * kLine + weights.ahead);
  } else {
    for (std::int64_t i = 0; i < kWideValues; i += kLine) {
      Prefetch(weights.rows[2 * pair] + k + i + weights.ahead);
      Prefetch(weights.rows[2 * pair + 1] + k + i + weights.ahead);
    }
  }
}

// All of a few rows, with the weights straight from registers.
template <typename Reader, int kRows>
DSA_AVX512 void AddFewRows(const WeightBlock<typename Reader::Value>& weights,
                           const BlockTask& task) {
  const Reader reader(weights);
  __m512d sums[kRows][kPairs];
  LoadSums(task, 0, sums);
  for (std::int64_t k = 0; k < task.columns; k += kWideValues) {
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p) {
      PrefetchPair(weights, p, k);
      __m512d quads[kQuads];
      reader.Read(weights.rows[2 * p] + k, weights.rows[2 * p + 1] + k, quads);
#pragma GCC unroll 8
      for (int i = 0; i < kQuads; ++i) {
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          sums[r][p] = _mm512_fmadd_pd(
              LoadInputs(task.inputs + r * task.input_stride + k + i * kDoubleLanes), quads[i],
              sums[r][p]);
        }
      }
    }
  }
  StoreSums(task, 0, sums);
}

// Rows from `row` on meet widened weights [kScaleBlock / 4, kPairs, 8].
template <int kRows>
DSA_AVX512 void AddRows(const double* weights, const BlockTask& task, std::int64_t row) {
  __m512d sums[kRows][kPairs];
  LoadSums(task, row, sums);
  const double* inputs = task.inputs + row * task.input_stride;
  for (std::int64_t k = 0; k < task.columns; k += kDoubleLanes) {
    __m512d weight[kPairs];
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p) {
      weight[p] = _mm512_load_pd(weights + (k / kDoubleLanes * kPairs + p) * 8);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m512d input = LoadInputs(inputs + r * task.input_stride + k);
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) {
        sums[r][p] = _mm512_fmadd_pd(input, weight[p], sums[r][p]);
      }
    }
  }
  StoreSums(task, row, sums);
}

template <typename Reader>
DSA_AVX512 void AddManyRows(const WeightBlock<typename Reader::Value>& weights,
                            const BlockTask& task) {
  alignas(64) double widened[kScaleBlock / kDoubleLanes * kPairs * 8];
  const Reader reader(weights);
  for (std::int64_t k = 0; k < task.columns; k += kWideValues) {
    for (int p = 0; p < kPairs; ++p) {
      PrefetchPair(weights, p, k);
      __m512d quads[kQuads];
      reader.Read(weights.rows[2 * p] + k, weights.rows[2 * p + 1] + k, quads);
#pragma GCC unroll 8
      for (int i = 0; i < kQuads; ++i) {
        _mm512_store_pd(widened + ((k / kDoubleLanes + i) * kPairs + p) * 8, quads[i]);
      }
    }
  }
  std::int64_t row = 0;
  for (; row + 4 <= task.rows; row += 4) {
    AddRows<4>(widened, task, row);
  }
  switch (task.rows - row) {
    case 3: AddRows<3>(widened, task, row); break;
    case 2: AddRows<2>(widened, task, row); break;
    case 1: AddRows<1>(widened, task, row); break;
    default: break;
  }
}

template <typename Reader>
void AddWeights(const WeightBlock<typename Reader::Value>& weights, const BlockTask& task) {
  switch (task.rows) {
    case 1: AddFewRows<Reader, 1>(weights, task); break;
    case 2: AddFewRows<Reader, 2>(weights, task); break;
    case 3: AddFewRows<Reader, 3>(weights, task); break;
    case kFewRows: AddFewRows<Reader, kFewRows>(weights, task); break;
    default: AddManyRows<Reader>(weights, task); break;
  }
}

}  // namespace

void AddBlockAvx512(const WeightBlock<float>& weights, const BlockTask& task) {
  AddWeights<ExactF32>(weights, task);
}
void AddBlockAvx512(const WeightBlock<Bf16>& weights, const BlockTask& task) {
  AddWeights<ExactBf16>(weights, task);
}
void AddBlockAvx512(const WeightBlock<Fp8E4m3>& weights, const BlockTask& task) {
  if (weights.scale == 1.0F) {
    AddWeights<ExactFp8>(weights, task);
  } else {
    AddWeights<ScaledFp8>(weights, task);
  }
}

}  // namespace dsa::cpu

#undef DSA_AVX512
#ifndef __clang__
#pragma GCC diagnostic pop
#endif
