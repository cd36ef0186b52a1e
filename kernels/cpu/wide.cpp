#include "kernels/cpu/wide.h"

namespace dsa::cpu {

const WidenTables kWidenTables = {
    // Lane 0 gets values 0 and 1 of every four, lane 1 gets 2 and 3, in the order in which
    // WidenNormal takes them apart.
    .order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15)),
    // The sign and the upper seven bits of exponent + 1016, from the sign and the upper three bits
    // of the exponent.
    .upper_bytes = _mm256_broadcastsi128_si256(_mm_setr_epi8(0x3F, 0x3F, 0x3F, 0x3F, 0x40, 0x40,
                                                             0x40, 0x40, -0x41, -0x41, -0x41, -0x41,
                                                             -0x40, -0x40, -0x40, -0x40)),
    .low_nibbles = _mm256_set1_epi8(0x0F),
    // Makes the lower four bits of the exponent those of exponent + 1016; the mantissa follows.
    .top_bits = _mm256_set1_epi8(-0x80),
    .upper_of_two = _mm256_set1_epi32(static_cast<int>(0xFFFF0000U)),
    .upper_of_four = _mm256_set1_epi64x(static_cast<std::int64_t>(0xFFFFFFFF00000000U)),
};

}  // namespace dsa::cpu
