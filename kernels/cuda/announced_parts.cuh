// Parts that announce themselves, from block to block of one launch through device memory.
//
// Between launches every word of that memory is kUnwritten, a NaN that no arithmetic gives.  A
// launch writes a word once, and one thread reads it: it asks until there is something else, and
// leaves kUnwritten for the next launch.  So a part is there one way through the memory after it
// was written: no fence, no counter, and no load behind them.  All blocks must run at once.
#pragma once

#include <cuda_runtime_api.h>

namespace dsa::cuda {

inline constexpr unsigned kUnwritten = 0xFFFFFFFFU;

__device__ inline bool IsWritten(float value) {
  return __float_as_uint(value) != kUnwritten;
}
__device__ inline void SendPart(float4* to, float4 values) {
  asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(values.x),
               "f"(values.y), "f"(values.z), "f"(values.w)
               : "memory");
}
__device__ inline void SendLog(float* to, float value) {
  asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(to), "f"(value) : "memory");
}

// Takes kCount vectors that siblings write, at from(i): all are asked for at once.
template <int kCount, typename From>
__device__ __forceinline__ void ReceiveParts(float4 (&values)[kCount], const From& from) {
  bool is_there = false;
  while (!is_there) {
    is_there = true;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                   : "=f"(values[i].x), "=f"(values[i].y), "=f"(values[i].z), "=f"(values[i].w)
                   : "l"(from(i))
                   : "memory");
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      is_there &= IsWritten(values[i].x) & IsWritten(values[i].y) & IsWritten(values[i].z) &
                  IsWritten(values[i].w);
    }
  }
  const float unwritten = __uint_as_float(kUnwritten);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    __stcg(from(i), make_float4(unwritten, unwritten, unwritten, unwritten));
  }
}
__device__ inline float ReceiveLog(float* from) {
  float value;
  do {
    asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(value) : "l"(from) : "memory");
  } while (!IsWritten(value));
  __stcg(from, __uint_as_float(kUnwritten));
  return value;
}

}  // namespace dsa::cuda
