// How fast this variant multiplies when nothing has to be fetched: what prefill is compared with.
#pragma once

#include "thread_team.h"

namespace rillm {

// Multiply-accumulates per second of all threads together, the best of a few runs of 20 ms.
struct MultiplyPeak {
  double int8;     // 8-bit codes times 8-bit activations, summed in 32 bits (16 on RVV)
  double float32;  // fused multiply-adds
};
MultiplyPeak measure_multiply_peak(ThreadTeam& team);

}  // namespace rillm
