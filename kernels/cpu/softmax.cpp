#include "kernels/cpu/softmax.h"

#include "kernels/cpu/exp.h"
#include "kernels/cpu/rows.h"

#include <algorithm>
#include <limits>

namespace dsa::cpu {
namespace {

constexpr std::int64_t kDoubleLanes = 4;
constexpr double kLowest = -std::numeric_limits<double>::infinity();

}  // namespace

void Softmax(const SoftmaxRow& row) {
  const std::int64_t padded = (row.count + kDoubleLanes - 1) / kDoubleLanes * kDoubleLanes;
  std::fill(row.scores + row.count, row.scores + padded, kLowest);
  __m256d largest = _mm256_set1_pd(kLowest);
  for (std::int64_t j = 0; j < padded; j += kDoubleLanes) {
    largest = _mm256_max_pd(_mm256_loadu_pd(row.scores + j), largest);  // skips NaN
  }
  double lanes[kDoubleLanes];
  _mm256_storeu_pd(lanes, largest);
  const __m256d shift = _mm256_set1_pd(*std::max_element(lanes, lanes + kDoubleLanes));
  __m256d sum = _mm256_setzero_pd();
  for (std::int64_t j = 0; j < padded; j += kDoubleLanes) {
    const __m256d power = ExpNonPositive(_mm256_sub_pd(_mm256_loadu_pd(row.scores + j), shift));
    _mm256_storeu_pd(row.scores + j, power);
    sum = _mm256_add_pd(sum, power);
  }
  _mm256_storeu_pd(lanes, sum);
  const double total = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
  for (std::int64_t j = 0; j < row.count; ++j) {
    row.probabilities[j] = static_cast<float>(row.scores[j] / total);
  }
  RoundRow(row.probabilities, row.count, row.type);
}

}  // namespace dsa::cpu
