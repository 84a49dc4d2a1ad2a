// One token of Q6_K on XTheadVector: the strips of a block in one piece of assembly. Compiled from
// intrinsics, the int32 totals of a strip, its sums and four groups of codes want 40 registers and
// the totals go to memory; here two groups of codes do, in the order in which layouts/folded.h
// makes them. C910 and C920 run out of order, so loads stand where they are used.
#pragma once

#include <cstdint>

#include "isa/riscv_rvv/lmul.h"

namespace rillm {

// clang-format off: assembly, a line for each instruction
#define RILLM_VTYPE(lanes) "th.vsetvli t0,zero," lanes "\n\t"
#define RILLM_CODES "th.vle.v v8,(%[codes])\n\taddi %[codes],%[codes],64\n\t"
#define RILLM_SHIFT(op, to, from, bits) "th." op ".vi " to "," from "," bits "\n\t"
#define RILLM_MUL(k, r) "lb t0," k "(%[q])\n\tth.vwmul.vx v0," r ",t0\n\t"
#define RILLM_MACC(k, r) "lb t0," k "(%[q])\n\tth.vwmacc.vx v0,t0," r "\n\t"
// Columns k, k + 2, k + 3 and, from bits that these spare, k + 1.
#define RILLM_FOUR(op, k)                                                                  \
  RILLM_CODES RILLM_SHIFT("vsll", "v12", "v8", "6") RILLM_SHIFT("vsra", "v8", "v8", "2")   \
  op(k "+0", "v8")                                                                         \
  RILLM_CODES "th.vmacc.vx v12,%[sixteen],v8\n\t" RILLM_SHIFT("vsra", "v8", "v8", "2")     \
  RILLM_MACC(k "+2", "v8")                                                                 \
  RILLM_CODES "th.vmacc.vx v12,%[four],v8\n\t" RILLM_SHIFT("vsra", "v8", "v8", "2")        \
  RILLM_MACC(k "+3", "v8") RILLM_SHIFT("vsra", "v12", "v12", "2") RILLM_MACC(k "+1", "v12")
// Eight columns times their scales, bytes at `low` and `high`.
#define RILLM_RUN(k, op, low, high)                                                        \
  RILLM_VTYPE("e8,m4") RILLM_FOUR(RILLM_MUL, k) RILLM_FOUR(RILLM_MACC, k "+4")             \
  RILLM_VTYPE("e16,m4") "th.vlb.v v8,(" low ")\n\tth.vlb.v v12,(" high ")\n\t"             \
  "th." op ".vv v16,v0,v8\n\tth." op ".vv v24,v4,v12\n\t"
// sums += d * float(totals), in v and in memory.
#define RILLM_ADD_TO(t, v, at)                                                             \
  "th.vfcvt.f.x.v " t "," t "\n\tth.vle.v " v ",(" at ")\n\t"                              \
  "th.vfmacc.vf " v ",ft0," t "\n\tth.vse.v " v ",(" at ")\n\t"
// y += the block's d * sums: binary16 becomes float32 as in lmul.h.
#define RILLM_CLOSE(v)                                                                     \
  "th.vlh.v v16,(%[block])\n\tth.vle.v v20,(%[y])\n\taddi %[block],%[block],32\n\t"        \
  "th.vsll.vi v16,v16,13\n\tth.vand.vx v16,v16,%[mask]\n\tth.vfmul.vf v16,v16,%[bias]\n\t" \
  "th.vfmacc.vv v20,v16," v "\n\tth.vse.v v20,(%[y])\n\taddi %[y],%[y],64\n\t"

// y [64] += d * (sum of scale * (sum of codes * q)) over the 8 strips of a block, which begins with
// d [64] and scales [16][64]: for the activations of a group of one token (ops/activations.h).
inline void add_q6_block(const uint8_t* block, const uint8_t* activations, float* y) {
  alignas(64) float sums[64];
  const uint8_t *scales = block + 2 * 64, *codes = scales + 16 * 64, *end = activations + 8 * 48;
  const int64_t four = 4, sixteen = 16, mask = static_cast<int32_t>(0x8fffffff);
  const float bias = 0x1p112f;
  asm volatile(
      "addi t1,%[sums],64\n\taddi t2,%[sums],128\n\taddi t3,%[sums],192\n\t"
      RILLM_VTYPE("e32,m4") "th.vmv.v.i v0,0\n\tth.vse.v v0,(%[sums])\n\t"
      "th.vse.v v0,(t1)\n\tth.vse.v v0,(t2)\n\tth.vse.v v0,(t3)\n\t"
      "1:\n\taddi t4,%[scales],32\n\taddi t5,%[scales],64\n\taddi t6,%[scales],96\n\t"
      RILLM_RUN("0", "vwmul", "%[scales]", "t4") RILLM_RUN("8", "vwmacc", "%[scales]", "t4")
      RILLM_RUN("16", "vwmacc", "t5", "t6") RILLM_RUN("24", "vwmacc", "t5", "t6")
      "flw ft0,32(%[q])\n\taddi %[scales],%[scales],128\n\taddi %[q],%[q],48\n\t"
      RILLM_VTYPE("e32,m4") RILLM_ADD_TO("v16", "v0", "%[sums]") RILLM_ADD_TO("v20", "v4", "t1")
      RILLM_ADD_TO("v24", "v8", "t2") RILLM_ADD_TO("v28", "v12", "t3")
      "bne %[q],%[end],1b\n\t"
      RILLM_CLOSE("v0") RILLM_CLOSE("v4") RILLM_CLOSE("v8") RILLM_CLOSE("v12")
      : [block] "+&r"(block), [codes] "+&r"(codes), [scales] "+&r"(scales), [q] "+&r"(activations),
        [y] "+&r"(y)
      : [end] "r"(end), [four] "r"(four), [sixteen] "r"(sixteen), [sums] "r"(sums),
        [mask] "r"(mask), [bias] "f"(bias)
      : RILLM_ALL_VECTORS, "t0", "t1", "t2", "t3", "t4", "t5", "t6", "ft0");
}
// clang-format on

#undef RILLM_CLOSE
#undef RILLM_ADD_TO
#undef RILLM_RUN
#undef RILLM_FOUR
#undef RILLM_MACC
#undef RILLM_MUL
#undef RILLM_SHIFT
#undef RILLM_CODES
#undef RILLM_VTYPE

}  // namespace rillm
