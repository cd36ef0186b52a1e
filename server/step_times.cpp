#include "server/step_times.h"

namespace dsa {
namespace {

// dsa_step_bench: bench/results/2026-11-28-h200-sections.md, in the order of StepSection.
constexpr std::array<MeasuredStep, 7> kH200Decode = {{
    {.is_prefill = false,
     .rows = 1,
     .visible = 8192,
     .tensor_ranks = 1,
     .experts = 8,
     .experts_hit = 8.0,
     .beyond_sections = 0.007,
     .call_us = {3.4, 3.6, 8.6, 2.7, 13.6, 15.6, 31.2, 30.5, 103.9, 114.5, 423.0, 18.3}},
    {.is_prefill = false,
     .rows = 16,
     .visible = 8192,
     .tensor_ranks = 1,
     .experts = 8,
     .experts_hit = 8.0,
     .beyond_sections = 0.023,
     .call_us = {3.7, 3.8, 9.3, 2.8, 14.1, 21.1, 52.6, 31.0, 104.0, 124.6, 424.7, 23.9}},
    {.is_prefill = false,
     .rows = 64,
     .visible = 8192,
     .tensor_ranks = 1,
     .experts = 8,
     .experts_hit = 8.0,
     .beyond_sections = 0.033,
     .call_us = {3.8, 4.0, 15.1, 2.9, 16.1, 37.1, 102.5, 34.6, 114.3, 152.9, 477.3, 53.7}},
    {.is_prefill = false,
     .rows = 64,
     .visible = 65536,
     .tensor_ranks = 1,
     .experts = 8,
     .experts_hit = 8.0,
     .beyond_sections = 0.020,
     .call_us = {3.9, 4.1, 15.2, 2.8, 16.1, 167.9, 103.4, 34.6, 113.7, 153.2, 477.6, 53.8}},
    {.is_prefill = false,
     .rows = 1,
     .visible = 8192,
     .tensor_ranks = 2,
     .experts = 8,
     .experts_hit = 8.0,
     .beyond_sections = 0.026,
     .call_us = {3.5, 3.6, 8.6, 2.7, 10.4, 15.9, 25.3, 15.7, 56.3, 71.3, 232.9, 14.9}},
    {.is_prefill = false,
     .rows = 16,
     .visible = 8192,
     .tensor_ranks = 2,
     .experts = 8,
     .experts_hit = 8.0,
     .beyond_sections = 0.019,
     .call_us = {3.7, 3.8, 9.3, 2.8, 10.8, 21.2, 42.3, 16.3, 57.8, 77.5, 232.4, 18.0}},
    {.is_prefill = false,
     .rows = 64,
     .visible = 8192,
     .tensor_ranks = 2,
     .experts = 8,
     .experts_hit = 8.0,
     .beyond_sections = 0.048,
     .call_us = {3.8, 4.0, 15.4, 2.9, 11.9, 36.9, 79.0, 19.6, 66.1, 118.8, 241.0, 40.6}},
}};

constexpr std::array<MeasuredStep, 4> kH200Prefill = {{
    {.is_prefill = true,
     .rows = 4096,
     .visible = 8192,
     .tensor_ranks = 1,
     .experts = 8,
     .experts_hit = 8.0,
     .beyond_sections = 0.004,
     .call_us = {14.0, 93.5, 170.1, 33.8, 341.1, 617.3, 4477.9, 877.9, 3164.7, 3495.4, 422.6,
                 18.4}},
    {.is_prefill = true,
     .rows = 4096,
     .visible = 65536,
     .tensor_ranks = 1,
     .experts = 8,
     .experts_hit = 8.0,
     .beyond_sections = -0.003,
     .call_us = {13.7, 93.1, 168.2, 33.5, 361.7, 5363.1, 6075.0, 894.2, 3029.1, 3514.3, 422.8,
                 18.3}},
    {.is_prefill = true,
     .rows = 4096,
     .visible = 8192,
     .tensor_ranks = 2,
     .experts = 8,
     .experts_hit = 8.0,
     .beyond_sections = -0.008,
     .call_us = {13.7, 93.0, 169.1, 33.4, 221.0, 618.0, 2281.5, 422.0, 1600.0, 2102.7, 234.1,
                 15.5}},
    {.is_prefill = true,
     .rows = 4096,
     .visible = 8192,
     .tensor_ranks = 1,
     .experts = 256,
     .experts_hit = 206.6,
     .beyond_sections = 0.002,
     .call_us = {14.3, 94.5, 166.3, 34.9, 341.1, 619.2, 4488.4, 923.2, 3099.3, 5350.6, 419.8,
                 18.8}},
}};

// The same file; before experts from 17 rows on were three launches.
constexpr std::array<MeasuredStep, 2> kH100Decode = {{
    {.is_prefill = false,
     .rows = 64,
     .visible = 8192,
     .tensor_ranks = 1,
     .experts = 8,
     .experts_hit = 8.0,
     .beyond_sections = 0.047,
     .call_us = {3.8, 3.7, 12.8, 2.4, 18.8, 41.4, 121.1, 43.2, 151.7, 195.5, 678.2, 108.0}},
    {.is_prefill = false,
     .rows = 1,
     .visible = 8192,
     .tensor_ranks = 1,
     .experts = 8,
     .experts_hit = 8.0,
     .beyond_sections = 0.038,
     .call_us = {3.5, 3.3, 8.9, 2.3, 16.1, 14.0, 34.7, 39.8, 135.7, 159.0, 651.2, 23.0}},
}};

// bench/results/2026-11-28-h100-ranks.md.
constexpr std::array<MeasuredCollective, 13> kAllReduces = {{{1, 2.39},
                                                             {2, 2.54},
                                                             {4, 2.85},
                                                             {8, 3.57},
                                                             {16, 5.04},
                                                             {32, 7.82},
                                                             {36, 8.43},
                                                             {37, 9.66},
                                                             {64, 10.97},
                                                             {128, 15.71},
                                                             {512, 42.52},
                                                             {1024, 78.72},
                                                             {4096, 295.84}}};
constexpr std::array<MeasuredCollective, 3> kAllGathers = {{{1, 12.35}, {8, 17.06}, {64, 83.52}}};

// bench/results/2026-11-28-h200-ranks-data.md: each row to 8 of 256 experts.
constexpr std::array<MeasuredCollective, 10> kExchanges = {{{1, 9.83},
                                                            {8, 10.89},
                                                            {16, 12.45},
                                                            {32, 15.15},
                                                            {64, 22.10},
                                                            {128, 35.09},
                                                            {256, 62.81},
                                                            {257, 79.08},
                                                            {1024, 266.16},
                                                            {4096, 1001.64}}};

constexpr GpuTimes kH200 = {.name = "H200",
                            .copy_bytes_per_us = 4.259e6,
                            .fp8_flops_per_us = 1228.0e6,
                            .bf16_flops_per_us = 717.0e6,
                            .decode = kH200Decode,
                            .prefill = kH200Prefill,
                            .borrows_from = nullptr};
constexpr std::array<GpuTimes, 2> kGpus = {{{.name = "H100",
                                             .copy_bytes_per_us = 3.034e6,
                                             .fp8_flops_per_us = 1318.0e6,
                                             .bf16_flops_per_us = 782.0e6,
                                             .decode = kH100Decode,
                                             .prefill = {},
                                             .borrows_from = &kH200},
                                            kH200}};

}  // namespace

std::span<const GpuTimes> MeasuredGpus() {
  return kGpus;
}

std::span<const MeasuredCollective> MeasuredAllReduces() {
  return kAllReduces;
}

std::span<const MeasuredCollective> MeasuredAllGathers() {
  return kAllGathers;
}

std::span<const MeasuredCollective> MeasuredExchanges() {
  return kExchanges;
}

}  // namespace dsa
