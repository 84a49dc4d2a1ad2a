// One token: the codes of a run are unpacked and multiplied in one piece of assembly, so that the
// vector unit changes its register grouping once. It is for tiles whose column is a group of four
// registers: VLEN 128 and 256, and XTheadVector, whose instructions are the same with `th.`.
//
// Names in the texts: p: the packed bytes; x, y: the activation of this column and the next; a: the
// sums; b, c, d, t: groups of codes, 16 registers at most, since the sums of another run may live.
#pragma once

#include <cstdint>

#include "formats/format.h"
#include "isa/riscv_rvv/lmul.h"
#include "unroll.h"

#if defined(__riscv_xtheadvector)
#define RILLM_TH "th."
#define RILLM_HERE(r) "th.vle.v %[" r "],(%[p])\n\t"
#define RILLM_E8M4 "th.vsetvli zero,%[vl],e8,m4\n\t"
#else
#define RILLM_TH
#define RILLM_HERE(r) "vle8.v %[" r "],(%[p])\n\t"
#define RILLM_E8M4 "vsetvli zero,%[vl],e8,m4,ta,ma\n\t"
#endif

// clang-format off: assembly, a line for each instruction
#define RILLM_LOAD(r, groups_on) "addi %[p],%[p],%[rows]*" groups_on "\n\t" RILLM_HERE(r)
#define RILLM_SET(x, r) RILLM_TH "vwmul.vx %[a],%[" r "],%[" x "]\n\t"
#define RILLM_ADD(x, r) RILLM_TH "vwmacc.vx %[a],%[" x "],%[" r "]\n\t"
// The products of column k, before which the next column's activation is loaded.
#define RILLM_EVEN(op, k, r) "lb %[y],%[first]+" k "+1(%[q])\n\t" op("x", r)
#define RILLM_ODD(k, r) "lb %[x],%[first]+" k "+1(%[q])\n\t" RILLM_ADD("y", r)
#define RILLM_BITS(op, to, from, n) RILLM_TH op ".vi %[" to "],%[" from "]," n "\n\t"
#define RILLM_TIMES(to, factor, from) RILLM_TH "vmacc.vx %[" to "],%[" factor "],%[" from "]\n\t"

// 4 bits: two columns in a group, and the next group is loaded.
#define RILLM_NIBBLES(k, r, NEXT)                                                  \
  NEXT RILLM_BITS("vand", "t", r, "15") RILLM_BITS("vsrl", r, r, "4")              \
  RILLM_EVEN(RILLM_ADD, k, "t") RILLM_ODD(k "+1", r)
#define RILLM_NIBBLES_8(k, LAST)                                                   \
  RILLM_NIBBLES(k "+0", "b", RILLM_LOAD("c", "1")) RILLM_NIBBLES(k "+2", "c", RILLM_LOAD("b", "1")) \
  RILLM_NIBBLES(k "+4", "b", RILLM_LOAD("c", "1")) RILLM_NIBBLES(k "+6", "c", LAST)
#define RILLM_NIBBLES_32                                                           \
  RILLM_HERE("b") RILLM_NIBBLES_8("0", RILLM_LOAD("b", "1"))                       \
  RILLM_NIBBLES_8("8", RILLM_LOAD("b", "1")) RILLM_NIBBLES_8("16", RILLM_LOAD("b", "1")) \
  RILLM_NIBBLES_8("24", "")

// 5 and 6 bits: what layouts/folded.h tells. 8 columns in 5 groups; 4 columns in 3.
#define RILLM_FOLDED_5(op, k, begin)                                               \
  RILLM_LOAD("b", begin) RILLM_LOAD("c", "-3") RILLM_LOAD("d", "2")                \
  RILLM_BITS("vsll", "t", "b", "5") RILLM_TIMES("t", "four", "c") RILLM_BITS("vsra", "b", "b", "3") \
  RILLM_TIMES("t", "two", "d") RILLM_EVEN(op, k "+0", "b") RILLM_BITS("vsra", "t", "t", "3") \
  RILLM_LOAD("b", "-3") RILLM_ODD(k "+1", "t")                                     \
  RILLM_BITS("vsll", "t", "b", "5") RILLM_BITS("vsra", "b", "b", "3") RILLM_TIMES("t", "eight", "c") \
  RILLM_EVEN(RILLM_ADD, k "+2", "b") RILLM_LOAD("b", "2") RILLM_BITS("vsra", "t", "t", "3") \
  RILLM_BITS("vsra", "c", "c", "3") RILLM_ODD(k "+3", "t")                         \
  RILLM_EVEN(RILLM_ADD, k "+4", "c")                                               \
  RILLM_BITS("vsll", "t", "b", "5") RILLM_BITS("vsra", "b", "b", "3") RILLM_TIMES("t", "eight", "d") \
  RILLM_ODD(k "+5", "b") RILLM_BITS("vsra", "t", "t", "3") RILLM_BITS("vsra", "d", "d", "3") \
  RILLM_EVEN(RILLM_ADD, k "+6", "t") RILLM_ODD(k "+7", "d")
#define RILLM_FOLDED_5_16 RILLM_FOLDED_5(RILLM_SET, "0", "4") RILLM_FOLDED_5(RILLM_ADD, "8", "7")
#define RILLM_FOLDED_6(op, k, FIRST)                                               \
  FIRST RILLM_LOAD("c", "1") RILLM_LOAD("d", "1")                                  \
  RILLM_BITS("vsll", "t", "b", "6") RILLM_TIMES("t", "sixteen", "c") RILLM_BITS("vsra", "b", "b", "2") \
  RILLM_TIMES("t", "four", "d") RILLM_EVEN(op, k "+0", "b") RILLM_BITS("vsra", "c", "c", "2") \
  RILLM_BITS("vsra", "t", "t", "2") RILLM_ODD(k "+1", "t") RILLM_BITS("vsra", "d", "d", "2") \
  RILLM_EVEN(RILLM_ADD, k "+2", "c") RILLM_ODD(k "+3", "d")
#define RILLM_FOLDED_6_8 \
  RILLM_FOLDED_6(RILLM_SET, "0", RILLM_HERE("b")) RILLM_FOLDED_6(RILLM_ADD, "4", RILLM_LOAD("b", "1"))
// clang-format on

namespace rillm {

// Columns that sum_packed() takes at a time; 0: none.
inline constexpr int packed_columns(Codes codes) {
  if (kVlen >= 512) return 0;
  return codes == Codes::U4 ? 32 : codes == Codes::U4P1 ? 16 : codes == Codes::U4P2 ? 8 : 0;
}

// start + codes of columns `first` .. of a strip (folded ones signed) * q[first] ..
template <Codes codes, int first>
RILLM_INLINE inline vint16m8_t sum_packed(int start, const int8_t* q, const uint8_t* strip) {
  constexpr int kRows = kVlen == 128 ? 64 : 128;
  constexpr int kBits = codes == Codes::U4 ? 4 : codes == Codes::U4P1 ? 5 : 6;
  const uint8_t* p = strip + first * kBits / 8 * kRows;
  const int64_t vl = kRows;
  int64_t x = q[first], y;
  vint16m8_t a;
  vuint8m4_t b, c, t;
  [[maybe_unused]] vuint8m4_t d;
#define RILLM_PACKED(constraint, text, ...)                                                    \
  asm volatile(RILLM_E8M4 text                                                                 \
               : [a] constraint(a), [b] "=&vr"(b), [c] "=&vr"(c), [t] "=&vr"(t), [p] "+&r"(p), \
                 [x] "+&r"(x), [y] "=&r"(y)__VA_ARGS__[vl] "r"(vl), [q] "r"(q),                \
                 [first] "i"(first), [rows] "i"(kRows)                                         \
               : "vl", "vtype", "memory")
  if constexpr (codes == Codes::U4) {
    a = __riscv_vmv_v_x_i16m8(static_cast<int16_t>(start), kRows);
    RILLM_PACKED("+vr", RILLM_NIBBLES_32, :);
  } else if constexpr (codes == Codes::U4P1) {
    const int64_t two = 2, four = 4, eight = 8;
    RILLM_PACKED("=&vr", RILLM_FOLDED_5_16, , [d] "=&vr"(d)
                 : [two] "r"(two), [four] "r"(four), [eight] "r"(eight), );
  } else {
    const int64_t four = 4, sixteen = 16;
    RILLM_PACKED("=&vr", RILLM_FOLDED_6_8, , [d] "=&vr"(d)
                 : [four] "r"(four), [sixteen] "r"(sixteen), );
  }
#undef RILLM_PACKED
  return a;
}

}  // namespace rillm

#undef RILLM_FOLDED_6_8
#undef RILLM_FOLDED_6
#undef RILLM_FOLDED_5_16
#undef RILLM_FOLDED_5
#undef RILLM_NIBBLES_32
#undef RILLM_NIBBLES_8
#undef RILLM_NIBBLES
#undef RILLM_TIMES
#undef RILLM_BITS
#undef RILLM_ODD
#undef RILLM_EVEN
#undef RILLM_ADD
#undef RILLM_SET
#undef RILLM_LOAD
#undef RILLM_E8M4
#undef RILLM_HERE
#undef RILLM_TH
