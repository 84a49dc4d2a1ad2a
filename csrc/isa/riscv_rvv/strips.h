// A strip of stored codes times many tokens where VLEN is 128 or 256, and for XTheadVector, whose
// instructions are the same with `th.`: a column is a group of four registers. Each loop over
// tokens is one piece of assembly.
//
// The order is that of a core which issues, and finishes, in order: no load takes longer than the
// multiplication beside it (so none is of 8 registers), activations are loaded a column ahead and
// codes two products ahead, and an addition to an address stands beside a scalar load. While the
// float unit works on one part of the rows, the next one's scales and sums are loaded.
//
// Addresses that every token needs again stay in registers: s2 .. s8: columns 4, 8 .. 28 of the
// codes; s9, s10: parts 1 and 2 of the factors; t3, t4: parts 0 and 1 of the constants. (For
// integer scales s9: the first sub-block's second half; s10, t4: the second sub-block's.) More
// would leave clang, which also keeps two for a realigned stack, too few. t0: the next address, and
// what vsetvli needs.
//
// Names in the texts: x, y: the activation of this column and the next, x1, y1: the second token's
// (at first x is where the constants are); out: the tokens' sums; end: what q is after the last.
#pragma once

#include <cstdint>

#include "isa/riscv_rvv/columns.h"

#if __riscv_v_fixed_vlen < 512

#if defined(__riscv_xtheadvector)
#define RILLM_TH "th."
#define RILLM_VTYPE(lanes) "th.vsetvli t0,zero," lanes "\n\t"
#define RILLM_LOAD(v, p) "th.vle.v " v ",(" p ")\n\t"  // under any vtype of m4
#define RILLM_STORE(v, p) "th.vse.v " v ",(" p ")\n\t"
#else
#define RILLM_TH
#define RILLM_VTYPE(lanes) "vsetvli t0,zero," lanes ",ta,ma\n\t"
#define RILLM_LOAD(v, p) "vl4re8.v " v ",(" p ")\n\t"
#define RILLM_STORE(v, p) "vs4r.v " v ",(" p ")\n\t"
#endif

// clang-format off: assembly, a line for each instruction
#define RILLM_OP(op, to, a, b) RILLM_TH op " " to "," a "," b "\n\t"
#define RILLM_MUL(sum, x, codes) RILLM_OP("vwmul.vx", sum, codes, "%[" x "]")
#define RILLM_MACC(sum, x, codes) RILLM_OP("vwmacc.vx", sum, "%[" x "]", codes)
#define RILLM_X(x, at) "lb %[" x "]," at "(%[q])\n\t"
#define RILLM_ADD(to, from, bytes) "addi " to "," from ",%[" bytes "]\n\t"

// Column k, its codes in r: products of one token, in v0 .. or v8 .., or of two in both.
#define RILLM_LOW(op, k, x, y, r, BESIDE) RILLM_X(y, k "+1") BESIDE op("v0", x, r)
#define RILLM_HIGH(op, k, x, y, r, BESIDE) RILLM_X(y, k "+1") BESIDE op("v8", x, r)
#define RILLM_BOTH(op, k, x, y, r, BESIDE) \
  RILLM_LOW(op, k, x, y, r, BESIDE) RILLM_X(y "1", k "+33") op("v8", x "1", r)
// Four columns from `base` on, in turn in registers e and o; NEXT loads what is needed after them.
#define RILLM_AT(base, columns) "addi t0," base ",%[column]*" columns "\n\t"
#define RILLM_COLUMNS(COLUMN, op, k, e, o, base, NEXT, BESIDE)                         \
  RILLM_LOAD(o, "t0") COLUMN(op, k "+0", "x", "y", e, RILLM_AT(base, "2"))             \
  RILLM_LOAD(e, "t0") COLUMN(RILLM_MACC, k "+1", "y", "x", o, RILLM_AT(base, "3"))     \
  RILLM_LOAD(o, "t0") COLUMN(RILLM_MACC, k "+2", "x", "y", e, "")                      \
  NEXT COLUMN(RILLM_MACC, k "+3", "y", "x", o, BESIDE)
#define RILLM_QUAD(COLUMN, op, k, e, o, base, next) \
  RILLM_COLUMNS(COLUMN, op, k, e, o, base, RILLM_LOAD(e, next), RILLM_AT(next, "1"))
#define RILLM_16(COLUMN, op)                                                           \
  RILLM_QUAD(COLUMN, op, "0", "v16", "v20", "%[codes]", "s2")                          \
  RILLM_QUAD(COLUMN, RILLM_MACC, "4", "v16", "v20", "s2", "s3")                        \
  RILLM_QUAD(COLUMN, RILLM_MACC, "8", "v16", "v20", "s3", "s4")                        \
  RILLM_QUAD(COLUMN, RILLM_MACC, "12", "v16", "v20", "s4", "s5")
#define RILLM_NEXT_16(COLUMN, op, LAST, BESIDE)                                        \
  RILLM_QUAD(COLUMN, op, "16", "v16", "v20", "s5", "s6")                               \
  RILLM_QUAD(COLUMN, RILLM_MACC, "20", "v16", "v20", "s6", "s7")                       \
  RILLM_QUAD(COLUMN, RILLM_MACC, "24", "v16", "v20", "s7", "s8")                       \
  RILLM_COLUMNS(COLUMN, RILLM_MACC, "28", "v16", "v20", "s8", LAST, BESIDE)
#define RILLM_CODE_ADDRESSES                                                           \
  RILLM_ADD("s2", "%[codes]", "quad") RILLM_ADD("s3", "s2", "quad")                    \
  RILLM_ADD("s4", "s3", "quad") RILLM_ADD("s5", "s4", "quad") RILLM_ADD("s6", "s5", "quad") \
  RILLM_ADD("s7", "s6", "quad") RILLM_ADD("s8", "s7", "quad")
#define RILLM_FACTOR_ADDRESSES                                                         \
  RILLM_ADD("s9", "%[factors]", "part") RILLM_ADD("s10", "s9", "part")                 \
  "mv t3,%[x]\n\t" RILLM_ADD("t4", "t3", "part")
#define RILLM_LOAD_AT(v, base, parts) \
  "addi t0," base ",%[part]*" parts "\n\t" RILLM_LOAD(v, "t0")

#define RILLM_SCALE(t, by) RILLM_OP("vfmul.vv", t, t, by)
#define RILLM_FMA(to, scalar, by) RILLM_OP("vfmacc.vf", to, scalar, by)

// Two tokens, a run of 32 columns. Half of the rows are two parts: their sums are in a, a2 and b, b2,
// the first part's factors at f; LOAD_C, LOAD_F2, LOAD_C2 load its constants and the second part's
// factors and constants, each where a group has become free. t1, t2: where the tokens' sums of a part
// are; ft0, ft1: d of the tokens. MIN keeps its text where a row has a min: ft2, ft3: sums of
// activations.
#if defined(__riscv_xtheadvector)
#define RILLM_HALF_SUMS RILLM_VTYPE("e16,m4")
#define RILLM_FLOATS(to, to2, from, from2) RILLM_TH "vfwcvt.f.x.v " to "," from "\n\t"
#else
#define RILLM_HALF_SUMS RILLM_VTYPE("e16,m2")  // at m4 a conversion would take 16 cycles
#define RILLM_FLOATS(to, to2, from, from2) \
  "vfwcvt.f.x.v " to "," from "\n\tvfwcvt.f.x.v " to2 "," from2 "\n\t"
#endif
#define RILLM_PART_OF_TWO(MIN, t, u, f, c, y, z, NEXT_F, NEXT_C)                       \
  RILLM_SCALE(t, f) RILLM_SCALE(u, f) RILLM_LOAD(y, "t1")                              \
  MIN(RILLM_FMA(t, "ft2", c) RILLM_FMA(u, "ft3", c)) RILLM_LOAD(z, "t2")               \
  RILLM_FMA(y, "ft0", t) RILLM_FMA(z, "ft1", u) NEXT_F                                 \
  RILLM_STORE(y, "t1") RILLM_STORE(z, "t2") NEXT_C
#define RILLM_HALF_OF_TWO(MIN, a, a2, b, b2, f, LOAD_C, LOAD_F2, LOAD_C2, MOVE, MOVE_ON) \
  RILLM_HALF_SUMS RILLM_FLOATS("v16", "v20", a, a2) RILLM_LOAD(a, f)                   \
  RILLM_FLOATS("v24", "v28", b, b2) MIN(LOAD_C) RILLM_VTYPE("e32,m4")                  \
  RILLM_PART_OF_TWO(MIN, "v16", "v24", a, b, a, b, LOAD_F2, MIN(LOAD_C2)) MOVE         \
  RILLM_PART_OF_TWO(MIN, "v20", "v28", "v16", "v24", "v16", "v24", "", "") MOVE_ON
#define RILLM_TO_PART(p) \
  "addi t1,%[out],%[part]*" p "\n\taddi t2,%[out],%[part]*" p "+%[row]\n\t"
#define RILLM_TWO_TOKENS(MIN)                                                          \
  RILLM_CODE_ADDRESSES RILLM_FACTOR_ADDRESSES                                          \
  "1:\n\t" RILLM_VTYPE("e8,m4") RILLM_LOAD("v16", "%[codes]")                          \
  "flw ft0,0(%[ds])\n\tflw ft1,4(%[ds])\n\t"                                 \
  MIN("lw t1,%[x_sum](%[ds])\n\tlw t2,%[x_sum]+4(%[ds])\n\t"                 \
      "fcvt.s.w ft2,t1\n\tfcvt.s.w ft3,t2\n\t")                                        \
  RILLM_AT("%[codes]", "1") RILLM_X("x", "0") RILLM_X("x1", "32")                      \
  RILLM_16(RILLM_BOTH, RILLM_MUL)                                                      \
  RILLM_NEXT_16(RILLM_BOTH, RILLM_MACC, "", "mv t1,%[out]\n\t" RILLM_ADD("t2", "t1", "row")) \
  RILLM_HALF_OF_TWO(MIN, "v0", "v2", "v8", "v10", "%[factors]", RILLM_LOAD("v8", "t3"), \
                    RILLM_LOAD("v16", "s9"), RILLM_LOAD("v24", "t4"),                  \
                    RILLM_TO_PART("1"), RILLM_TO_PART("2"))                            \
  RILLM_HALF_OF_TWO(MIN, "v4", "v6", "v12", "v14", "s10", RILLM_LOAD_AT("v12", "t3", "2"), \
                    RILLM_LOAD_AT("v16", "s10", "1"), RILLM_LOAD_AT("v24", "t3", "3"), \
                    RILLM_TO_PART("3"), "")                                            \
  "addi %[q],%[q],64\n\taddi %[ds],%[ds],8\n\taddi %[out],%[out],2*%[row]\n\t" \
  "bne %[q],%[end],1b"

// One token, two runs of 16 columns. The parts' sums are in v16, v20, v0, v8; their factors come to
// v24, v12, v16, v20, the constants to v28, v24, v12, v16, and the token's sums to v4, v28, v24,
// v12: each where a group has just become free.
#define RILLM_INT32(to, a, b) RILLM_OP("vwadd.vv", to, a, b)
#define RILLM_FLOAT(t) RILLM_TH "vfcvt.f.x.v " t "," t "\n\t"
#define RILLM_ONE_TOKEN(MIN)                                                           \
  RILLM_CODE_ADDRESSES RILLM_FACTOR_ADDRESSES                                          \
  "1:\n\t" RILLM_VTYPE("e8,m4") RILLM_LOAD("v16", "%[codes]") "flw ft0,0(%[ds])\n\t" \
  MIN("lw t1,%[x_sum](%[ds])\n\tfcvt.s.w ft2,t1\n\t")                             \
  RILLM_AT("%[codes]", "1") RILLM_X("x", "0") RILLM_16(RILLM_LOW, RILLM_MUL)           \
  RILLM_NEXT_16(RILLM_HIGH, RILLM_MUL,                                                 \
                RILLM_LOAD("v24", "%[factors]") MIN(RILLM_LOAD("v28", "t3")),          \
                "addi t1,%[out],%[part]\n\taddi t2,%[out],%[part]*2\n\t"             \
                "addi %[third],%[out],%[part]*3\n\t")                                       \
  RILLM_VTYPE("e16,m2")                                                                \
  RILLM_INT32("v16", "v0", "v8") RILLM_INT32("v20", "v2", "v10")                       \
  RILLM_INT32("v8", "v6", "v14") RILLM_INT32("v0", "v4", "v12") RILLM_VTYPE("e32,m4")  \
  RILLM_FLOAT("v20") RILLM_LOAD("v12", "s9") RILLM_LOAD("v4", "%[out]") RILLM_FLOAT("v16") \
  RILLM_SCALE("v16", "v24") MIN(RILLM_LOAD("v24", "t4") RILLM_FMA("v16", "ft2", "v28")) \
  RILLM_FMA("v4", "ft0", "v16") RILLM_LOAD("v28", "t1") RILLM_SCALE("v20", "v12")      \
  RILLM_FLOAT("v8") RILLM_LOAD("v16", "s10") RILLM_FLOAT("v0") RILLM_STORE("v4", "%[out]") \
  MIN(RILLM_FMA("v20", "ft2", "v24") RILLM_LOAD_AT("v12", "t3", "2"))                  \
  RILLM_FMA("v28", "ft0", "v20") RILLM_LOAD_AT("v20", "s10", "1")                      \
  RILLM_SCALE("v0", "v16") RILLM_SCALE("v8", "v20") RILLM_LOAD("v24", "t2")            \
  MIN(RILLM_FMA("v0", "ft2", "v12")) RILLM_STORE("v28", "t1") RILLM_FMA("v24", "ft0", "v0") \
  MIN(RILLM_LOAD_AT("v16", "t3", "3")) RILLM_LOAD("v12", "%[third]")                   \
  MIN(RILLM_FMA("v8", "ft2", "v16")) RILLM_STORE("v24", "t2")                          \
  RILLM_FMA("v12", "ft0", "v8") RILLM_STORE("v12", "%[third]")                         \
  "addi %[q],%[q],32\n\taddi %[ds],%[ds],4\n\taddi %[out],%[out],%[row]\n\t" \
  "bne %[q],%[end],1b"

// One token, four runs of 8 columns, two with a sub-block's scales: int32 totals in v16 .. v31.
#define RILLM_RUN(k, base, middle, op, low, high, NEXT, END)                           \
  RILLM_QUAD(RILLM_LOW, RILLM_MUL, k, "v8", "v12", base, middle)                       \
  RILLM_COLUMNS(RILLM_LOW, RILLM_MACC, k "+4", "v8", "v12", middle, RILLM_LOAD("v8", low), "") \
  RILLM_VTYPE("e16,m4") RILLM_LOAD("v12", high)                                        \
  RILLM_OP(op, "v16", "v0", "v8") NEXT RILLM_OP(op, "v24", "v4", "v12") END
#define RILLM_NEXT_RUN(base) RILLM_VTYPE("e8,m4") RILLM_AT(base, "1")
#define RILLM_INTEGER_SCALES                                                           \
  RILLM_CODE_ADDRESSES                                                                 \
  RILLM_ADD("s9", "%[factors]", "part") "mv s10,%[x]\n\t"                               \
  RILLM_ADD("t4", "s10", "part")                                                       \
  "1:\n\t" RILLM_VTYPE("e8,m4") RILLM_LOAD("v8", "%[codes]") RILLM_AT("%[codes]", "1")  \
  "addi t1,%[out],%[part]\n\taddi t2,%[out],%[part]*2\n\taddi t3,%[out],%[part]*3\n\t" \
  RILLM_X("x", "0") "flw ft0,0(%[ds])\n\t"                                        \
  RILLM_RUN("0", "%[codes]", "s2", "vwmul.vv", "%[factors]", "s9",                     \
            RILLM_LOAD("v8", "s3"), RILLM_NEXT_RUN("s3"))                              \
  RILLM_RUN("8", "s3", "s4", "vwmacc.vv", "%[factors]", "s9",                          \
            RILLM_LOAD("v8", "s5"), RILLM_NEXT_RUN("s5"))                              \
  RILLM_RUN("16", "s5", "s6", "vwmacc.vv", "s10", "t4",                               \
            RILLM_LOAD("v8", "s7"), RILLM_NEXT_RUN("s7"))                              \
  RILLM_RUN("24", "s7", "s8", "vwmacc.vv", "s10", "t4", RILLM_LOAD("v8", "t1"), "")    \
  RILLM_VTYPE("e32,m4") RILLM_LOAD("v0", "%[out]")                                    \
  RILLM_FLOAT("v16") RILLM_FMA("v0", "ft0", "v16") RILLM_FLOAT("v24") RILLM_LOAD("v4", "t2") \
  RILLM_FLOAT("v20") RILLM_LOAD("v12", "t3") RILLM_FMA("v8", "ft0", "v20")             \
  RILLM_STORE("v0", "%[out]") RILLM_FMA("v4", "ft0", "v24") RILLM_STORE("v4", "t2")   \
  RILLM_FLOAT("v28") RILLM_STORE("v8", "t1") RILLM_FMA("v12", "ft0", "v28")            \
  RILLM_STORE("v12", "t3")                                                             \
  "addi %[q],%[q],32\n\taddi %[ds],%[ds],4\n\taddi %[out],%[out],%[row]\n\t" \
  "bne %[q],%[end],1b"
// clang-format on

namespace rillm {

struct StripTile : ColumnTile {
#define RILLM_STRIP(text, ...)                                                                     \
  asm volatile(                                                                                    \
      text                                                                                         \
      : [q] "+&r"(q), [ds] "+&r"(d), [out] "+&r"(y), [x] "+&r"(x), __VA_ARGS__                     \
      : [codes] "r"(codes), [factors] "r"(&factors), [end] "r"(q + 32 * n), [column] "i"(kRows),   \
        [quad] "i"(4 * kRows), [part] "i"(kRows), [row] "i"(4 * kRows), [x_sum] "i"(12 * n)        \
      : RILLM_ALL_VECTORS, "t0", "t1", "t2", "t3", "t4", "s2", "s3", "s4", "s5", "s6", "s7", "s8", \
        "s9", "s10", "ft0", "ft1", "ft2", "ft3")
#define RILLM_ALL(...) __VA_ARGS__
#define RILLM_NONE(...)

  // y[token] += d[token] * (factors * (sum of codes * q) + constants * (sum of q)) for n tokens:
  // of stored codes, signed or below 128, in runs of 32 or 16 columns; q is [n][32], and d [n] is
  // followed by int32 sums [3][n], of which the third are of the whole strip.
  template <int n, int num_runs, bool has_min>
  RILLM_INLINE static void add_strip(const uint8_t* codes, const int8_t* q, const float* d,
                                     const F& factors, const F& constants, F* y) {
    int64_t x = reinterpret_cast<int64_t>(&constants), next, more, most;
    if constexpr (num_runs == 1) {
      static_assert(n % 2 == 0);
#define RILLM_MORE [y] "=&r"(next), [x1] "=&r"(more), [y1] "=&r"(most)
      if constexpr (has_min) RILLM_STRIP(RILLM_TWO_TOKENS(RILLM_ALL), RILLM_MORE);
      if constexpr (!has_min) RILLM_STRIP(RILLM_TWO_TOKENS(RILLM_NONE), RILLM_MORE);
#undef RILLM_MORE
    } else {
#define RILLM_MORE [y] "=&r"(next), [third] "=&r"(more)
      if constexpr (has_min) RILLM_STRIP(RILLM_ONE_TOKEN(RILLM_ALL), RILLM_MORE);
      if constexpr (!has_min) RILLM_STRIP(RILLM_ONE_TOKEN(RILLM_NONE), RILLM_MORE);
#undef RILLM_MORE
    }
  }

  // y[token] += d[token] * (factors * (sum of 16 columns of codes * q) + second * (that of the next
  // 16)): of codes up to 32 in size. A unit of them is stored in its place.
  static constexpr int pair_place(int unit) { return unit; }
  template <int n>
  RILLM_INLINE static void add_runs(const uint8_t* codes, const int8_t* q, const float* d,
                                    const S& factors, const S& second, F* y) {
    int64_t x = reinterpret_cast<int64_t>(&second), next;
    RILLM_STRIP(RILLM_INTEGER_SCALES, [y] "=&r"(next));
  }
#undef RILLM_NONE
#undef RILLM_ALL
#undef RILLM_STRIP
};

}  // namespace rillm

#undef RILLM_INTEGER_SCALES
#undef RILLM_NEXT_RUN
#undef RILLM_RUN
#undef RILLM_ONE_TOKEN
#undef RILLM_FLOAT
#undef RILLM_INT32
#undef RILLM_TWO_TOKENS
#undef RILLM_TO_PART
#undef RILLM_HALF_OF_TWO
#undef RILLM_PART_OF_TWO
#undef RILLM_FLOATS
#undef RILLM_HALF_SUMS
#undef RILLM_FMA
#undef RILLM_SCALE
#undef RILLM_FACTOR_ADDRESSES
#undef RILLM_CODE_ADDRESSES
#undef RILLM_NEXT_16
#undef RILLM_16
#undef RILLM_QUAD
#undef RILLM_COLUMNS
#undef RILLM_AT
#undef RILLM_BOTH
#undef RILLM_HIGH
#undef RILLM_LOW
#undef RILLM_ADD
#undef RILLM_X
#undef RILLM_MACC
#undef RILLM_MUL
#undef RILLM_OP
#undef RILLM_STORE
#undef RILLM_LOAD
#undef RILLM_VTYPE
#undef RILLM_TH
#endif
