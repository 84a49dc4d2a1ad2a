// A strip of stored codes times many tokens where VLEN is 512 or more: each loop over tokens is one
// piece of assembly.
//
// A column is only a few registers here, so that an instruction that stands in the way costs as
// much as a multiplication. Three rules keep the arithmetic pipe busy, after llvm-mca's model of
// SiFive's X280, which runs in order:
// - No instruction ends before one that was issued earlier. Between two multiplications there is
//   time for one load of a scalar and one of a register group, not for an addition of integers
//   beside them: addresses are kept in registers and moved on while floats are scaled, for
//   instructions on 8 registers take three times as long.
// - Two sums in turn: a product ends 8 cycles after it began and takes the pipe for 5.
// - Codes are loaded a block of 8 registers ahead, to v8..v15 and v16..v23 in turn; the first block
//   of the next tokens while the sums of these are scaled.
//
// Names in the texts: x, y: the activation of this column and the next, of token 0; x1, y1 of token
// 1 ..; p0, p1 ..: addresses of the blocks of codes; end: what q is after the last token.
#pragma once

#include <cstdint>

#include "isa/riscv_rvv/columns.h"

#if __riscv_v_fixed_vlen >= 512
// clang-format off: assembly, a line for each instruction
#define RILLM_VX_MUL(sum, x, codes) "vwmul.vx " sum "," codes ",%[" x "]\n\t"
#define RILLM_VX_MACC(sum, x, codes) "vwmacc.vx " sum ",%[" x "]," codes "\n\t"
#define RILLM_AHEAD(x, at) "lb %[" x "]," at "(%[q])\n\t"
#define RILLM_CODES(v, p) "vl8re8.v " v ",(%[" p "])\n\t"
#define RILLM_BYTES(scratch) "vsetvli %[" scratch "],zero,e8," RILLM_BYTES_M ",ta,ma\n\t"
#define RILLM_INT16 "vsetvli zero,zero,e16," RILLM_WIDE_M ",ta,ma\n\t"
#define RILLM_FLOATS "vsetvli zero,zero,e32," RILLM_FLOAT_M ",ta,ma\n\t"
#define RILLM_LOAD_FLOATS(v, p) RILLM_FLOAT_LOAD " " v ",(%[" p "])\n\t"
#define RILLM_STORE_FLOATS(v, p) RILLM_FLOAT_STORE " " v ",(%[" p "])\n\t"
#define RILLM_NEXT_TOKENS(count) \
  "addi %[q],%[q],32*" count "\n\taddi %[ds],%[ds],4*" count "\n\t"
#define RILLM_F_BYTES "512"
#define RILLM_BLOCKS_4 \
  "addi %[p1],%[p0]," RILLM_BLOCK "\n\taddi %[p2],%[p1]," RILLM_BLOCK "\n\t" \
  "addi %[p3],%[p2]," RILLM_BLOCK "\n\t"
#define RILLM_BLOCKS_8                                                       \
  RILLM_BLOCKS_4 "addi %[p4],%[p3]," RILLM_BLOCK "\n\t"                      \
  "addi %[p5],%[p4]," RILLM_BLOCK "\n\taddi %[p6],%[p5]," RILLM_BLOCK "\n\t" \
  "addi %[p7],%[p6]," RILLM_BLOCK "\n\t"

// Strips of one scale. A column's codes, in r, times the activations of 2 or 4 tokens. The sums are
// in v0, v4, v24 and v28; of two runs for 2 tokens the second's are in v4 and v28.
#define RILLM_OF_2(op, x, y, k, r, a, b) \
  RILLM_AHEAD(y, k "+1") op(a, x, r) RILLM_AHEAD(y "1", k "+33") op(b, x "1", r)
#define RILLM_RUN_0(op, x, y, k, r) RILLM_OF_2(op, x, y, k, r, "v0", "v24")
#define RILLM_RUN_1(op, x, y, k, r) RILLM_OF_2(op, x, y, k, r, "v4", "v28")
#define RILLM_OF_4(op, x, y, k, r)                                                        \
  RILLM_OF_2(op, x, y, k, r, "v0", "v4") RILLM_AHEAD(y "2", k "+65") op("v24", x "2", r) \
  RILLM_AHEAD(y "3", k "+97") op("v28", x "3", r)
#define RILLM_2_COLUMNS(COLUMN, op, k, r, s) \
  COLUMN(op, "x", "y", k, r) COLUMN(RILLM_VX_MACC, "y", "x", k "+1", s)
#if __riscv_v_fixed_vlen == 512
#define RILLM_FLOAT_M "m8"
#define RILLM_FLOAT_LOAD "vl8re32.v"
#define RILLM_FLOAT_STORE "vs8r.v"
#define RILLM_SCALES_LOAD "vl4re16.v"
#define RILLM_BLOCK "512"
#define RILLM_BLOCKS RILLM_BLOCKS_8
#define RILLM_EVEN(COLUMN, op, k, load)                     \
  RILLM_2_COLUMNS(COLUMN, op, k, "v8", "v10") load          \
  RILLM_2_COLUMNS(COLUMN, RILLM_VX_MACC, k "+2", "v12", "v14")
#define RILLM_ODD(COLUMN, k, load)                                      \
  RILLM_2_COLUMNS(COLUMN, RILLM_VX_MACC, k, "v16", "v18") load          \
  RILLM_2_COLUMNS(COLUMN, RILLM_VX_MACC, k "+2", "v20", "v22")
#define RILLM_16_COLUMNS(COLUMN, op, k, p, q, r, last)                           \
  RILLM_EVEN(COLUMN, op, k, RILLM_CODES("v16", p))                               \
  RILLM_ODD(COLUMN, k "+4", RILLM_CODES("v8", q))                                \
  RILLM_EVEN(COLUMN, RILLM_VX_MACC, k "+8", RILLM_CODES("v16", r))               \
  RILLM_ODD(COLUMN, k "+12", last)
#define RILLM_FIRST_COLUMNS(COLUMN) \
  RILLM_16_COLUMNS(COLUMN, RILLM_VX_MUL, "0", "p1", "p2", "p3", RILLM_CODES("v8", "p4"))
#define RILLM_LAST_COLUMNS(COLUMN, op) \
  RILLM_16_COLUMNS(COLUMN, op, "16", "p5", "p6", "p7", "")
#else
#define RILLM_FLOAT_M "m4"
#define RILLM_FLOAT_LOAD "vl4re32.v"
#define RILLM_FLOAT_STORE "vs4r.v"
#define RILLM_SCALES_LOAD "vl2re16.v"
#define RILLM_BLOCK "1024"
#define RILLM_BLOCKS RILLM_BLOCKS_4
#define RILLM_EVEN(COLUMN, op, k, load)                          \
  RILLM_2_COLUMNS(COLUMN, op, k, "v8", "v9") load                \
  RILLM_2_COLUMNS(COLUMN, RILLM_VX_MACC, k "+2", "v10", "v11")   \
  RILLM_2_COLUMNS(COLUMN, RILLM_VX_MACC, k "+4", "v12", "v13")   \
  RILLM_2_COLUMNS(COLUMN, RILLM_VX_MACC, k "+6", "v14", "v15")
#define RILLM_ODD(COLUMN, k, load)                               \
  RILLM_2_COLUMNS(COLUMN, RILLM_VX_MACC, k, "v16", "v17") load   \
  RILLM_2_COLUMNS(COLUMN, RILLM_VX_MACC, k "+2", "v18", "v19")   \
  RILLM_2_COLUMNS(COLUMN, RILLM_VX_MACC, k "+4", "v20", "v21")   \
  RILLM_2_COLUMNS(COLUMN, RILLM_VX_MACC, k "+6", "v22", "v23")
#define RILLM_FIRST_COLUMNS(COLUMN)                              \
  RILLM_EVEN(COLUMN, RILLM_VX_MUL, "0", RILLM_CODES("v16", "p1")) \
  RILLM_ODD(COLUMN, "8", RILLM_CODES("v8", "p2"))
#define RILLM_LAST_COLUMNS(COLUMN, op)                           \
  RILLM_EVEN(COLUMN, op, "16", RILLM_CODES("v16", "p3")) RILLM_ODD(COLUMN, "24", "")
#endif

// The sums of tokens t and t + 1 to floats in v8 and v16; from there scaled, and added to *out.
#define RILLM_TO_FLOATS(a, b)                                                  \
  RILLM_INT16 "vfwcvt.f.x.v v8," a "\n\tvfwcvt.f.x.v v16," b "\n\t"            \
  RILLM_LOAD_FLOATS("v0", "factors") RILLM_FLOATS
#define RILLM_RUNS_TO_FLOATS                                                   \
  RILLM_INT16 "vwadd.vv v8,v0,v4\n\tvwadd.vv v16,v24,v28\n\t"                  \
  RILLM_LOAD_FLOATS("v0", "factors") RILLM_FLOATS                              \
  "vfcvt.f.x.v v8,v8\n\tvfcvt.f.x.v v16,v16\n\t"
#define RILLM_SCALE(t)                                                         \
  "vfmul.vv v8,v8,v0\n\tvfmul.vv v16,v16,v0\n\t"
#define RILLM_SCALE_WITH_MINS(t)                                               \
  "lw %[y],%[sums]+4*" t "(%[ds])\n\tlw %[y1],%[sums]+4*" t "+4(%[ds])\n\t"    \
  "vfmul.vv v8,v8,v0\n\t"                                                      \
  "fcvt.s.w %[d],%[y]\n\tfcvt.s.w %[d1],%[y1]\n\t"                             \
  "vfmul.vv v16,v16,v0\n\t"                                                    \
  RILLM_LOAD_FLOATS("v0", "constants")                                         \
  "vfmacc.vf v8,%[d],v0\n\tvfmacc.vf v16,%[d1],v0\n\t"
#define RILLM_ADD_2(t)                                                         \
  RILLM_LOAD_FLOATS("v0", "out")                                               \
  "flw %[d],4*" t "(%[ds])\n\tflw %[d1],4*" t "+4(%[ds])\n\t"                  \
  "addi %[y],%[out]," RILLM_F_BYTES "\n\t"                                     \
  "vfmacc.vf v0,%[d],v8\n\t"                                                   \
  RILLM_LOAD_FLOATS("v8", "y") RILLM_STORE_FLOATS("v0", "out")                 \
  "vfmacc.vf v8,%[d1],v16\n\taddi %[out],%[y]," RILLM_F_BYTES "\n\t"
#define RILLM_LOOP_BEGIN RILLM_BLOCKS RILLM_CODES("v8", "p0") "1:\n\t"
#define RILLM_LOOP_END RILLM_STORE_FLOATS("v8", "y") RILLM_CODES("v8", "p0") "bne %[q],%[end],1b"
#define RILLM_X_OF_2 RILLM_AHEAD("x", "0") RILLM_AHEAD("x1", "32")
#define RILLM_LOOP_2(columns, floats, SCALE)                                   \
  RILLM_LOOP_BEGIN RILLM_X_OF_2 RILLM_BYTES("y") columns floats SCALE("0") RILLM_ADD_2("0") \
  RILLM_NEXT_TOKENS("2") RILLM_LOOP_END
#define RILLM_LOOP_4(SCALE)                                                    \
  RILLM_LOOP_BEGIN RILLM_X_OF_2 RILLM_AHEAD("x2", "64") RILLM_AHEAD("x3", "96") RILLM_BYTES("y") \
  RILLM_FIRST_COLUMNS(RILLM_OF_4) RILLM_LAST_COLUMNS(RILLM_OF_4, RILLM_VX_MACC)        \
  RILLM_TO_FLOATS("v0", "v4") SCALE("0") RILLM_ADD_2("0") RILLM_STORE_FLOATS("v8", "y") \
  RILLM_TO_FLOATS("v24", "v28") SCALE("2") RILLM_ADD_2("2") RILLM_NEXT_TOKENS("4") RILLM_LOOP_END
#define RILLM_ONE_RUN                                                          \
  RILLM_FIRST_COLUMNS(RILLM_RUN_0) RILLM_LAST_COLUMNS(RILLM_RUN_0, RILLM_VX_MACC)
#define RILLM_TWO_RUNS                                                         \
  RILLM_FIRST_COLUMNS(RILLM_RUN_0) RILLM_LAST_COLUMNS(RILLM_RUN_1, RILLM_VX_MUL)

// Strips of two scales, a token at a time: a column of each of two runs of 8 in turn, the sums in
// v0 and v4. A block has the same columns of both (pair_place). v24..v31: int32, of both scales.
#define RILLM_OF_RUNS(op, next, r, s, load)                                    \
  op("v0", "x", r) RILLM_AHEAD("x", next) op("v4", "y", s) load RILLM_AHEAD("y", next "+8")
#define RILLM_SCALES(v, p) RILLM_SCALES_LOAD " " v ",(%[" p "])\n\t"
#define RILLM_SCALE_RUNS(op, v) RILLM_INT16 op " v24," v ",v0\n\tvwmacc.vv v24," v ",v4\n\t"
#if __riscv_v_fixed_vlen == 512
#define RILLM_BLOCK_V8(op, k, next, load)                                      \
  RILLM_OF_RUNS(op, k "+1", "v8", "v12", "")                                   \
  RILLM_OF_RUNS(RILLM_VX_MACC, next, "v10", "v14", load)
#define RILLM_BLOCK_V16(op, k, next, load)                                     \
  RILLM_OF_RUNS(op, k "+1", "v16", "v20", "")                                  \
  RILLM_OF_RUNS(RILLM_VX_MACC, next, "v18", "v22", load)
#define RILLM_FIRST_RUNS                                                       \
  RILLM_BLOCK_V8(RILLM_VX_MUL, "0", "2", RILLM_CODES("v8", "p2"))              \
  RILLM_BLOCK_V16(RILLM_VX_MACC, "2", "4", RILLM_CODES("v16", "p3"))           \
  RILLM_BLOCK_V8(RILLM_VX_MACC, "4", "6", RILLM_SCALES("v8", "first"))         \
  RILLM_BLOCK_V16(RILLM_VX_MACC, "6", "16", RILLM_CODES("v16", "p4"))          \
  RILLM_SCALE_RUNS("vwmul.vv", "v8") RILLM_CODES("v8", "p5")
#define RILLM_LAST_RUNS                                                        \
  RILLM_BLOCK_V16(RILLM_VX_MUL, "16", "18", RILLM_CODES("v16", "p6"))          \
  RILLM_BLOCK_V8(RILLM_VX_MACC, "18", "20", RILLM_CODES("v8", "p7"))           \
  RILLM_BLOCK_V16(RILLM_VX_MACC, "20", "22", RILLM_SCALES("v16", "second"))    \
  RILLM_BLOCK_V8(RILLM_VX_MACC, "22", "32", RILLM_CODES("v8", "p0"))           \
  RILLM_SCALE_RUNS("vwmacc.vv", "v16")
#else
#define RILLM_BLOCK_V8(op, k, next, load)                                      \
  RILLM_OF_RUNS(op, k "+1", "v8", "v12", "")                                   \
  RILLM_OF_RUNS(RILLM_VX_MACC, k "+2", "v9", "v13", "")                        \
  RILLM_OF_RUNS(RILLM_VX_MACC, k "+3", "v10", "v14", "")                       \
  RILLM_OF_RUNS(RILLM_VX_MACC, next, "v11", "v15", load)
#define RILLM_BLOCK_V16(op, k, next, load)                                     \
  RILLM_OF_RUNS(op, k "+1", "v16", "v20", "")                                  \
  RILLM_OF_RUNS(RILLM_VX_MACC, k "+2", "v17", "v21", "")                       \
  RILLM_OF_RUNS(RILLM_VX_MACC, k "+3", "v18", "v22", "")                       \
  RILLM_OF_RUNS(RILLM_VX_MACC, next, "v19", "v23", load)
#define RILLM_FIRST_RUNS                                                       \
  RILLM_BLOCK_V8(RILLM_VX_MUL, "0", "4", RILLM_SCALES("v8", "first"))          \
  RILLM_BLOCK_V16(RILLM_VX_MACC, "4", "16", RILLM_CODES("v16", "p2"))          \
  RILLM_SCALE_RUNS("vwmul.vv", "v8") RILLM_CODES("v8", "p3")
#define RILLM_LAST_RUNS                                                        \
  RILLM_BLOCK_V16(RILLM_VX_MUL, "16", "20", RILLM_SCALES("v16", "second"))     \
  RILLM_BLOCK_V8(RILLM_VX_MACC, "20", "32", RILLM_CODES("v8", "p0"))           \
  RILLM_SCALE_RUNS("vwmacc.vv", "v16")
#endif
#define RILLM_RUNS_LOOP                                                        \
  RILLM_BLOCKS RILLM_CODES("v8", "p0") RILLM_CODES("v16", "p1")                \
  "1:\n\t" RILLM_BYTES("vl") RILLM_FIRST_RUNS RILLM_BYTES("vl") RILLM_LAST_RUNS \
  RILLM_LOAD_FLOATS("v16", "out") RILLM_FLOATS "vfcvt.f.x.v v24,v24\n\t"       \
  "flw %[d],0(%[ds])\n\t" RILLM_NEXT_TOKENS("1") "vfmacc.vf v16,%[d],v24\n\t" \
  RILLM_STORE_FLOATS("v16", "out") "addi %[out],%[out]," RILLM_F_BYTES "\n\t"  \
  RILLM_CODES("v16", "p1") "bne %[q],%[end],1b"

// Bytes, a token at a time: int16 holds the products of two columns. The sums of 8 columns are
// added to int32 in v0..v7 together, for each change of grouping waits for the last product.
#define RILLM_QUAD(s, t, k, r0, r1, r2, r3, middle, last)                      \
  RILLM_AHEAD("y", k "+1") RILLM_VX_MUL(s, "x", r0)                            \
  RILLM_AHEAD("x", k "+2") RILLM_VX_MUL(t, "y", r1) middle                     \
  RILLM_AHEAD("y", k "+3") RILLM_VX_MACC(s, "x", r2)                           \
  RILLM_AHEAD("x", k "+4") RILLM_VX_MACC(t, "y", r3) last
#define RILLM_ADD_SUMS(t) "vwadd.wv v0,v0," t "\n\t"
#define RILLM_ADD_2_SUMS(s, t) RILLM_ADD_SUMS(s) RILLM_ADD_SUMS(t)
#define RILLM_SET_2_SUMS(s, t) "vwadd.vv v0," s "," t "\n\t"
// *out += d * factors * sums, where the last ones are in s and t.
#define RILLM_BYTES_OUT(s, t, next)                                            \
  RILLM_LOAD_FLOATS("v16", "factors") RILLM_ADD_2_SUMS(s, t)                   \
  RILLM_FLOATS "vfcvt.f.x.v v0,v0\n\tflw %[d],0(%[ds])\n\t"                    \
  RILLM_LOAD_FLOATS("v24", "out") "vfmul.vv v0,v0,v16\n\t" next               \
  "vfmacc.vf v24,%[d],v0\n\t" RILLM_STORE_FLOATS("v24", "out")
#define RILLM_BYTES_LOOP_END \
  "addi %[out],%[out]," RILLM_F_BYTES "\n\tbne %[q],%[end],1b"
#if __riscv_v_fixed_vlen == 512
#define RILLM_HALF(v, p) "vl4re8.v " v ",(%[" p "])\n\t"
#define RILLM_AFTER(p, before) "addi %[" p "],%[" before "],256\n\t"
#define RILLM_HALVES                                                           \
  RILLM_AFTER("p1", "p0") RILLM_AFTER("p2", "p1") RILLM_AFTER("p3", "p2")      \
  RILLM_AFTER("p4", "p3") RILLM_AFTER("p5", "p4") RILLM_AFTER("p6", "p5")      \
  RILLM_AFTER("p7", "p6") RILLM_AFTER("p8", "p7") RILLM_AFTER("p9", "p8")      \
  RILLM_AFTER("p10", "p9") RILLM_AFTER("p11", "p10") RILLM_AFTER("p12", "p11") \
  RILLM_AFTER("p13", "p12") RILLM_AFTER("p14", "p13") RILLM_AFTER("p15", "p14")
#define RILLM_8_BYTES(k, p, q, r, s)                                           \
  RILLM_BYTES("y")                                                             \
  RILLM_QUAD("v16", "v20", k, "v8", "v10", "v12", "v14",                       \
             RILLM_HALF("v8", p), RILLM_HALF("v12", q))                        \
  RILLM_QUAD("v24", "v28", k "+4", "v8", "v10", "v12", "v14",                  \
             RILLM_HALF("v8", r), RILLM_HALF("v12", s))                        \
  RILLM_INT16
#define RILLM_BYTES_LOOP                                                       \
  RILLM_HALVES RILLM_HALF("v8", "p0") RILLM_HALF("v12", "p1") "1:\n\t"         \
  RILLM_8_BYTES("0", "p2", "p3", "p4", "p5")                                   \
  RILLM_SET_2_SUMS("v16", "v20") RILLM_ADD_2_SUMS("v24", "v28")                \
  RILLM_8_BYTES("8", "p6", "p7", "p8", "p9")                                   \
  RILLM_ADD_2_SUMS("v16", "v20") RILLM_ADD_2_SUMS("v24", "v28")                \
  RILLM_8_BYTES("16", "p10", "p11", "p12", "p13")                              \
  RILLM_ADD_2_SUMS("v16", "v20") RILLM_ADD_2_SUMS("v24", "v28")                \
  RILLM_8_BYTES("24", "p14", "p15", "p0", "p1")                                \
  RILLM_ADD_2_SUMS("v16", "v20") RILLM_BYTES_OUT("v24", "v28", RILLM_NEXT_TOKENS("1")) \
  RILLM_BYTES_LOOP_END
// One token: 4 columns at a time, and one address.
#define RILLM_4_BYTES(k)                                                       \
  RILLM_BYTES("y") RILLM_QUAD("v24", "v28", k, "v8", "v10", "v12", "v14", "", "")
#define RILLM_4_AND_NEXT(k)                                                    \
  RILLM_4_BYTES(k) "addi %[p],%[p],512\n\t" RILLM_CODES("v8", "p") RILLM_INT16
#define RILLM_4_MORE(k) RILLM_4_AND_NEXT(k) RILLM_ADD_2_SUMS("v24", "v28")
#define RILLM_BYTES_ONCE                                                       \
  RILLM_CODES("v8", "p") RILLM_4_AND_NEXT("0") RILLM_SET_2_SUMS("v24", "v28")  \
  RILLM_4_MORE("4") RILLM_4_MORE("8") RILLM_4_MORE("12") RILLM_4_MORE("16")    \
  RILLM_4_MORE("20") RILLM_4_MORE("24") RILLM_4_BYTES("28") RILLM_INT16        \
  RILLM_BYTES_OUT("v24", "v28", "")
#else
#define RILLM_8_BYTES(k, next)                                                 \
  RILLM_BYTES("y") RILLM_QUAD("v16", "v18", k, "v8", "v9", "v10", "v11", "", "") \
  RILLM_QUAD("v20", "v22", k "+4", "v12", "v13", "v14", "v15", "", RILLM_CODES("v8", next)) \
  RILLM_INT16
#define RILLM_8_MORE(k, next) \
  RILLM_8_BYTES(k, next) RILLM_ADD_2_SUMS("v16", "v18") RILLM_ADD_2_SUMS("v20", "v22")
#define RILLM_BYTES_LOOP                                                       \
  RILLM_BLOCKS RILLM_CODES("v8", "p0") "1:\n\t"                                \
  RILLM_8_BYTES("0", "p1") RILLM_SET_2_SUMS("v16", "v18") RILLM_ADD_2_SUMS("v20", "v22") \
  RILLM_8_MORE("8", "p2") RILLM_8_MORE("16", "p3")                             \
  RILLM_8_BYTES("24", "p0") RILLM_ADD_2_SUMS("v16", "v18")                     \
  RILLM_BYTES_OUT("v20", "v22", RILLM_NEXT_TOKENS("1")) RILLM_BYTES_LOOP_END
#endif
// clang-format on

namespace rillm {

struct StripTile : ColumnTile {
#define RILLM_P(i) [p##i] "=&r"(p##i)
#define RILLM_3_BLOCKS RILLM_P(1), RILLM_P(2), RILLM_P(3)
#define RILLM_7_BLOCKS RILLM_3_BLOCKS, RILLM_P(4), RILLM_P(5), RILLM_P(6), RILLM_P(7)
#if __riscv_v_fixed_vlen == 512
#define RILLM_ADDRESS_OPERANDS RILLM_7_BLOCKS
#else
#define RILLM_ADDRESS_OPERANDS RILLM_3_BLOCKS
#endif

  // y[token] += d[token] * (factors * (sum of codes * q) + constants * (sum of q)) for n tokens:
  // of stored codes, signed or below 128, in runs of 32 or 16 columns; q is [n][32], and d [n] is
  // followed by int32 sums [3][n], of which the third are of the whole strip.
  template <int n, int num_runs, bool has_min>
  RILLM_INLINE static void add_strip(const uint8_t* codes, const int8_t* q, const float* d,
                                     const F& factors, const F& constants, F* y) {
    static_assert(n % 2 == 0 && sizeof(F) == 512);
    const int8_t* end = q + 32 * n;
    [[maybe_unused]] const uint8_t *p1, *p2, *p3, *p4, *p5, *p6, *p7;
    [[maybe_unused]] int64_t x0, y0, x1, y1, x2, y2, x3, y3;
    float d0, d1;
#define RILLM_STRIP(text, ...)                                                                  \
  asm volatile(                                                                                 \
      text                                                                                      \
      : RILLM_ADDRESS_OPERANDS,                                                                 \
        __VA_ARGS__, [d] "=&f"(d0), [d1] "=&f"(d1), [q] "+&r"(q), [ds] "+&r"(d), [out] "+&r"(y) \
      : [p0] "r"(codes), [factors] "r"(&factors), [constants] "r"(&constants), [end] "r"(end),  \
        [sums] "i"(12 * n)                                                                      \
      : RILLM_ALL_VECTORS)
#define RILLM_X_2 [x] "=&r"(x0), [y] "=&r"(y0), [x1] "=&r"(x1), [y1] "=&r"(y1)
#define RILLM_X_4 RILLM_X_2, [x2] "=&r"(x2), [y2] "=&r"(y2), [x3] "=&r"(x3), [y3] "=&r"(y3)
    if constexpr (num_runs == 1 && n >= 4) {
      if constexpr (has_min) RILLM_STRIP(RILLM_LOOP_4(RILLM_SCALE_WITH_MINS), RILLM_X_4);
      if constexpr (!has_min) RILLM_STRIP(RILLM_LOOP_4(RILLM_SCALE), RILLM_X_4);
    } else {
#define RILLM_STRIP_2(columns, floats)                                            \
  if constexpr (has_min)                                                          \
    RILLM_STRIP(RILLM_LOOP_2(columns, floats, RILLM_SCALE_WITH_MINS), RILLM_X_2); \
  if constexpr (!has_min) RILLM_STRIP(RILLM_LOOP_2(columns, floats, RILLM_SCALE), RILLM_X_2)
      if constexpr (num_runs == 1) {
        RILLM_STRIP_2(RILLM_ONE_RUN, RILLM_TO_FLOATS("v0", "v24"));
      } else {
        RILLM_STRIP_2(RILLM_TWO_RUNS, RILLM_RUNS_TO_FLOATS);
      }
    }
#undef RILLM_STRIP_2
#undef RILLM_X_4
#undef RILLM_X_2
#undef RILLM_STRIP
  }

  // sums[token] += d[token] * (first * (sum of 16 columns of codes * q) + second * (that of the
  // next 16)): of codes up to 32 in size. Where a unit of them is stored: blocks have the same
  // columns of two runs of 8. Of q, 9 bytes beyond the last column are read.
  static constexpr int pair_place(int unit) {
    constexpr int kUnitsOfRun = 8 / kGroup;
    const int run = unit / kUnitsOfRun;
    return run / 2 * 2 * kUnitsOfRun + unit % kUnitsOfRun * 2 + run % 2;
  }
  template <int n>
  RILLM_INLINE static void add_runs(const uint8_t* codes, const int8_t* q, const float* d,
                                    const S& first, const S& second, F* sums) {
    const int8_t* end = q + 32 * n;
    [[maybe_unused]] const uint8_t *p1, *p2, *p3, *p4, *p5, *p6, *p7;
    int64_t x = q[0], y = q[8], vl;
    float d0;
    asm volatile(RILLM_RUNS_LOOP
                 : RILLM_ADDRESS_OPERANDS, [x] "+&r"(x), [y] "+&r"(y), [vl] "=&r"(vl),
                   [d] "=&f"(d0), [q] "+&r"(q), [ds] "+&r"(d), [out] "+&r"(sums)
                 : [p0] "r"(codes), [first] "r"(&first), [second] "r"(&second), [end] "r"(end)
                 : RILLM_ALL_VECTORS);
  }

  // y[token] += d[token] * factors * (sum of 32 columns of bytes * q), for n tokens.
  RILLM_INLINE static void add_bytes(int n, const uint8_t* codes, const int8_t* q, const float* d,
                                     const F& factors, F* y) {
    const int8_t* end = q + 32 * n;
    int64_t x0 = *q, y0;
    float d0;
#define RILLM_X_1 [x] "+&r"(x0), [y] "=&r"(y0), [d] "=&f"(d0)
#if __riscv_v_fixed_vlen == 512
    if (n == 1) {
      asm volatile(RILLM_BYTES_ONCE
                   : [p] "+&r"(codes), RILLM_X_1
                   : [q] "r"(q), [ds] "r"(d), [out] "r"(y), [factors] "r"(&factors)
                   : RILLM_ALL_VECTORS);
      return;
    }
    const uint8_t *p4, *p5, *p6, *p7, *p8, *p9, *p10, *p11, *p12, *p13, *p14, *p15;
#define RILLM_MORE_BLOCKS                                                              \
  RILLM_P(4), RILLM_P(5), RILLM_P(6), RILLM_P(7), RILLM_P(8), RILLM_P(9), RILLM_P(10), \
      RILLM_P(11), RILLM_P(12), RILLM_P(13), RILLM_P(14), RILLM_P(15),
#else
#define RILLM_MORE_BLOCKS
#endif
    const uint8_t *p1, *p2, *p3;
    asm volatile(RILLM_BYTES_LOOP
                 : RILLM_3_BLOCKS,
                   RILLM_MORE_BLOCKS RILLM_X_1, [q] "+&r"(q), [ds] "+&r"(d), [out] "+&r"(y)
                 : [p0] "r"(codes), [factors] "r"(&factors), [end] "r"(end)
                 : RILLM_ALL_VECTORS);
#undef RILLM_MORE_BLOCKS
#undef RILLM_X_1
  }
#undef RILLM_ADDRESS_OPERANDS
#undef RILLM_7_BLOCKS
#undef RILLM_3_BLOCKS
#undef RILLM_P
};

}  // namespace rillm
#endif
