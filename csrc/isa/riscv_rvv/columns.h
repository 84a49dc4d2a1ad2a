// The multiplications of RVV 1.0's row tiles, in assembly: in the order in which they should run,
// with nothing between them.
//
// A core that runs in order waits for a load that the next instruction needs. So the activation of
// the next column is loaded before the products of this one (after the last column, a byte that
// nobody uses). Compilers move a load back to where it is used, and
// copy sums that are handed from intrinsic to intrinsic.
//
// Names in the texts: x, y: the activation of this column and the next; a, b: the sums; first: the
// column that the text begins with.
#pragma once

#include <cstdint>

#include "isa/riscv_rvv/lmul.h"
#include "unroll.h"

// clang-format off: assembly, a line for each instruction
#define RILLM_MUL(sum, x, codes) "vwmul.vx %[" sum "]," codes ",%[" x "]\n\t"
#define RILLM_MACC(sum, x, codes) "vwmacc.vx %[" sum "],%[" x "]," codes "\n\t"
#define RILLM_X(x, at) "lb %[" x "],%[first]+" at "(%[q])\n\t"

// Unpacked codes g0, g1 ..: a group for each column, all added to the same sums, or (where a column's
// sums are few registers) to two in turn.
#if __riscv_v_fixed_vlen < 512
#define RILLM_PAIR(op, next, after, g, h) \
  RILLM_X("y", next) op("a", "x", "%[" g "]") RILLM_X("x", after) RILLM_MACC("a", "y", "%[" h "]")
#define RILLM_ONE(op, next, g) RILLM_X("y", next) op("a", "x", "%[" g "]")
#define RILLM_UNITS_2(op) RILLM_PAIR(op, "1", "2", "g0", "g1")
#define RILLM_UNITS_3(op) RILLM_UNITS_2(op) RILLM_ONE(RILLM_MACC, "3", "g2")
#define RILLM_UNITS_4(op) RILLM_UNITS_2(op) RILLM_PAIR(RILLM_MACC, "3", "4", "g2", "g3")
#else
#define RILLM_PAIR(op, next, after, g, h) \
  RILLM_X("y", next) op("a", "x", "%[" g "]") RILLM_X("x", after) op("b", "y", "%[" h "]")
#define RILLM_UNITS_4(op) \
  RILLM_PAIR(op, "1", "2", "g0", "g1") RILLM_PAIR(RILLM_MACC, "3", "4", "g2", "g3")
#define RILLM_UNITS_6(op) RILLM_UNITS_4(op) RILLM_PAIR(RILLM_MACC, "5", "6", "g4", "g5")
#define RILLM_UNITS_8(op) RILLM_UNITS_6(op) RILLM_PAIR(RILLM_MACC, "7", "8", "g6", "g7")
#endif

#if __riscv_v_fixed_vlen < 512  // the others have theirs in wide_strips.h
// Bytes: the products of pairs of columns, then int32 sums in v0..v7 and, of the other half of the
// rows, v24..v31. The codes are in v8..v15; p0, p1 .. are the addresses of each 8 registers of them.
// vsetvli sets vl to all lanes, and y is free where it is. A token's last x is the next one's first.
#define RILLM_PRODUCT(k, s, r0, r1, FIRST, SECOND)                                      \
  "lb %[y]," k "+1(%[q])\n\tvwmul.vx " s "," r0 ",%[x]\n\t" FIRST                       \
  "lb %[x]," k "+2(%[q])\n\t"                                                           \
  "vwmacc.vx " s ",%[y]," r1 "\n\t" SECOND
#define RILLM_CODES_AT(p) "vl8re8.v v8,(%[" p "])\n\t"
#define RILLM_INT32(t, s) "vwcvt.x.x.v " t "," s "\n\t"
#define RILLM_PLUS(t, s) "vwadd.wv " t "," t "," s "\n\t"
#define RILLM_E8 "vsetvli %[y],zero,e8," RILLM_BYTES_M ",ta,ma\n\t"
// The products of two columns; meanwhile the next two's codes are loaded: at VLEN 256 in halves,
// since X60 waits for a load of 8 registers longer than a product takes.
#if __riscv_v_fixed_vlen == 256
#define RILLM_MULTIPLY_ROUND(k, next)                                                   \
  RILLM_E8 RILLM_PRODUCT(k, "v16", "v8", "v12",                                         \
                         "vl4re8.v v8,(%[" next "])\n\taddi t0,%[" next "],128\n\t",    \
                         "vl4re8.v v12,(t0)\n\t")
#else
#define RILLM_MULTIPLY_ROUND(k, next) \
  RILLM_E8 RILLM_PRODUCT(k, "v16", "v8", "v12", "", RILLM_CODES_AT(next))
#endif
#define RILLM_ADD_ROUND(op) "vsetvli %[y],zero,e16," RILLM_WIDE_M ",ta,ma\n\t" RILLM_ADDS(op)
#define RILLM_FIRST_ROUND(k, next) RILLM_MULTIPLY_ROUND(k, next) RILLM_ADD_ROUND(RILLM_INT32)
#define RILLM_ROUND(k, next) RILLM_MULTIPLY_ROUND(k, next) RILLM_ADD_ROUND(RILLM_PLUS)
#define RILLM_LAST_ROUND(k) \
  RILLM_E8 RILLM_PRODUCT(k, "v16", "v8", "v12", "", "") RILLM_ADD_ROUND(RILLM_PLUS)
#define RILLM_NUMBER(x) RILLM_TEXT(x)
#define RILLM_TEXT(x) #x
#define RILLM_8_REGISTERS RILLM_NUMBER(__riscv_v_fixed_vlen)  // their bytes
#define RILLM_ADDRESS(p, before) "addi %[" p "],%[" before "]," RILLM_8_REGISTERS "\n\t"
// *out += d * factors * sums; out moves on.
#define RILLM_OUT(t)                                                              \
  "vfmul.vv " t "," t ",v8\n\t" "vfmacc.vf v16,%[d]," t "\n\tvs8r.v v16,(%[out])\n\t" \
  "addi %[out],%[out]," RILLM_8_REGISTERS "\n\t"
#define RILLM_ADDS(op) op("v0", "v16") op("v24", "v20")
#define RILLM_ADDRESSES                                                                 \
  RILLM_ADDRESS("p1", "p0") RILLM_ADDRESS("p2", "p1") RILLM_ADDRESS("p3", "p2")         \
  RILLM_ADDRESS("p4", "p3") RILLM_ADDRESS("p5", "p4") RILLM_ADDRESS("p6", "p5")         \
  RILLM_ADDRESS("p7", "p6") RILLM_ADDRESS("p8", "p7") RILLM_ADDRESS("p9", "p8")         \
  RILLM_ADDRESS("p10", "p9") RILLM_ADDRESS("p11", "p10") RILLM_ADDRESS("p12", "p11")    \
  RILLM_ADDRESS("p13", "p12") RILLM_ADDRESS("p14", "p13") RILLM_ADDRESS("p15", "p14")   \
  "addi %[next],%[factors]," RILLM_8_REGISTERS "\n\t"
#define RILLM_ROUNDS                                                                    \
  RILLM_FIRST_ROUND("0", "p1") RILLM_ROUND("2", "p2") RILLM_ROUND("4", "p3")            \
  RILLM_ROUND("6", "p4") RILLM_ROUND("8", "p5") RILLM_ROUND("10", "p6")                 \
  RILLM_ROUND("12", "p7") RILLM_ROUND("14", "p8") RILLM_ROUND("16", "p9")               \
  RILLM_ROUND("18", "p10") RILLM_ROUND("20", "p11") RILLM_ROUND("22", "p12")            \
  RILLM_ROUND("24", "p13") RILLM_ROUND("26", "p14") RILLM_ROUND("28", "p15")            \
  RILLM_LAST_ROUND("30")
#define RILLM_ADD_OUT                                                                   \
  "vl8re32.v v8,(%[factors])\n\t" "vl8re32.v v16,(%[out])\n\t"                          \
  "vsetvli %[y],zero,e32,m8,ta,ma\n\t" "vfcvt.f.x.v v0,v0\n\t" "vfcvt.f.x.v v24,v24\n\t" \
  RILLM_OUT("v0")                                                \
  "vl8re32.v v8,(%[next])\n\t" "vl8re32.v v16,(%[out])\n\t"                             \
  RILLM_OUT("v24")
#endif
// clang-format on

namespace rillm {

struct ColumnTile {
  static constexpr int kRows = kVlen == 128 ? 64 : 128;
  static constexpr int kGroup = kVlen / 2 / kRows;  // columns of a W: it fills an m4 group
  using W = RILLM_VECTOR(vuint8m4_t, 32);

  // A column of a tile is one group of bytes; S, its int16 sums, a group of twice the size; and
  // Wide, int32 sums of kWides parts of the rows; as many rows' floats are a Part. Bytes are
  // unpacked in m4 groups; only what is wider fills m8.
#if __riscv_v_fixed_vlen < 512
#define RILLM_BYTES_M "m4"
#define RILLM_B(name) name##m4
#define RILLM_S(name) name##m8
  using Sums = RILLM_VECTOR(vint16m8_t, 64);
  using SumGroup = vint16m8_t;
  using ByteGroup = vint8m4_t;
  using I = RILLM_VECTOR(vuint8m4_t, 32);  // scale codes
#elif __riscv_v_fixed_vlen == 512
#define RILLM_BYTES_M "m2"
#define RILLM_B(name) name##m2
#define RILLM_S(name) name##m4
  using Sums = RILLM_VECTOR(vint16m4_t, 32);
  using SumGroup = vint16m4_t;
  using ByteGroup = vint8m2_t;
  using I = RILLM_VECTOR(vuint8m2_t, 16);
#else
#define RILLM_BYTES_M "m1"
#define RILLM_B(name) name##m1
#define RILLM_S(name) name##m2
  using Sums = RILLM_VECTOR(vint16m2_t, 16);
  using SumGroup = vint16m2_t;
  using ByteGroup = vint8m1_t;
  using I = RILLM_VECTOR(vuint8m1_t, 8);
#endif
#if __riscv_v_fixed_vlen < 1024
#define RILLM_WIDE_M "m4"
#define RILLM_WIDE(name) name##m8
  using Wide = RILLM_VECTOR(vint32m8_t, 64);
  using WideGroup = vint32m8_t;
#else
#define RILLM_WIDE_M "m2"
#define RILLM_WIDE(name) name##m4
  using Wide = RILLM_VECTOR(vint32m4_t, 32);
  using WideGroup = vint32m4_t;
#endif
  static constexpr int kWides = 4 * kRows / static_cast<int>(sizeof(Wide));
  static constexpr int kWideRows = kRows / kWides;
#if defined(__riscv_xtheadvector) || __riscv_v_fixed_vlen >= 1024
  using Part = Group<4>;
#else
  using Part = Group<8>;
#endif
  static constexpr int kLanes = Part::kLanes;
  static constexpr int kParts = kRows / kLanes;
  struct S {  // in a struct: a template's argument loses the attribute that fixes the length
    Sums rows;
  };
  struct T {
    Wide wide[kWides];
  };

  static Sums sset1(int x) { return RILLM_S(__riscv_vmv_v_x_i16)(static_cast<int16_t>(x), kRows); }

  // The sums of a run of columns that are unpacked step by step, and the next column's activation.
  struct Run {
    Sums a;
#if __riscv_v_fixed_vlen >= 512
    Sums b;  // of every other column
#endif
    int64_t x;

    explicit Run(const int8_t* q) : x(*q) {}
    Run(const int8_t* q, int start) : a(sset1(start)), x(*q) {
#if __riscv_v_fixed_vlen >= 512
      b = sset1(0);
#endif
    }
    S sum() const {
#if __riscv_v_fixed_vlen < 512
      return {a};
#else
      return {__riscv_vadd(a, b, kRows)};
#endif
    }
  };

  static constexpr int kMaxUnits = kVlen < 1024 ? 4 : 2;  // of add_units

  // Adds the products of n units with the activations q[first] .. , or sets the sums to them.
  template <int first, bool sets, int n>
  RILLM_INLINE static void add_units(Run& run, const int8_t* q, const W (&w)[n]) {
    constexpr int kGroups = n * kGroup;
    static_assert(kVlen < 512 ? n >= 2 && n <= 4 : kGroups % 2 == 0 && kGroups >= 4);
    const auto group = [&]<int i>() RILLM_INLINE -> ByteGroup {
      const vint8m4_t codes = __riscv_vreinterpret_i8m4(w[i / kGroup]);
#if __riscv_v_fixed_vlen < 512
      return codes;
#else
      return RILLM_B(__riscv_vget_i8)(codes, i % kGroup);
#endif
    };
    const auto& from = *reinterpret_cast<const int8_t(*)[33]>(q);
    const int64_t vl = kRows;
    SumGroup a = run.a;
    int64_t x = run.x, y;
#if __riscv_v_fixed_vlen < 512
#define RILLM_SUMS(constraint) [a] constraint(a)
#else
    SumGroup b = run.b;
#define RILLM_SUMS(constraint) [a] constraint(a), [b] constraint(b)
#endif
#define RILLM_UNIT(i) [g##i] "vr"(group.template operator()<i>())
#define RILLM_2_UNITS RILLM_UNIT(0), RILLM_UNIT(1)
#define RILLM_3_UNITS RILLM_2_UNITS, RILLM_UNIT(2)
#define RILLM_4_UNITS RILLM_3_UNITS, RILLM_UNIT(3)
#define RILLM_6_UNITS RILLM_4_UNITS, RILLM_UNIT(4), RILLM_UNIT(5)
#define RILLM_8_UNITS RILLM_6_UNITS, RILLM_UNIT(6), RILLM_UNIT(7)
#define RILLM_ADD_UNITS(constraint, text, ...)                                        \
  asm volatile("vsetvli zero,%[vl],e8," RILLM_BYTES_M ",ta,ma\n\t" text               \
               : RILLM_SUMS(constraint), [x] "+&r"(x), [y] "=&r"(y)                   \
               : [vl] "r"(vl), [q] "r"(q), "m"(from), [first] "i"(first), __VA_ARGS__ \
               : "vl", "vtype")
#define RILLM_OF(count)                                                             \
  if constexpr (kGroups == count && sets)                                           \
    RILLM_ADD_UNITS("=&vr", RILLM_UNITS_##count(RILLM_MUL), RILLM_##count##_UNITS); \
  if constexpr (kGroups == count && !sets)                                          \
  RILLM_ADD_UNITS("+vr", RILLM_UNITS_##count(RILLM_MACC), RILLM_##count##_UNITS)
#if __riscv_v_fixed_vlen < 512
    RILLM_OF(2);
    RILLM_OF(3);
    RILLM_OF(4);
#else
    RILLM_OF(4);
    RILLM_OF(6);
    RILLM_OF(8);
    run.b = b;
#endif
#undef RILLM_OF
#undef RILLM_ADD_UNITS
#undef RILLM_8_UNITS
#undef RILLM_6_UNITS
#undef RILLM_4_UNITS
#undef RILLM_3_UNITS
#undef RILLM_2_UNITS
#undef RILLM_UNIT
#undef RILLM_SUMS
    run.a = a;
    run.x = kGroups % 2 == 1 ? y : x;
  }

  struct F {
    Part::F32 part[kParts];
  };

#if !defined(__riscv_xtheadvector) && __riscv_v_fixed_vlen < 512  // the others have theirs
  // y[token] += d[token] * factors * (sum of 32 columns of bytes * activations), for n tokens:
  // q is [n][32]. The addresses of the codes stay in registers from token to token.
  RILLM_INLINE static void add_bytes(int n, const uint8_t* codes, const int8_t* q, const float* d,
                                     const F& factors, F* y) {
    int64_t tokens = n, x = *q, scratch;
    const uint8_t *p1, *p2, *p3, *p4, *p5, *p6, *p7, *p8, *p9, *p10, *p11, *p12, *p13, *p14, *p15;
    const uint8_t* next;
    float scale;
#define RILLM_P(i) [p##i] "=&r"(p##i)
    static_assert(sizeof(Part::F32) == kVlen);
    // clang-format off
    asm volatile(RILLM_ADDRESSES
        "1:\n\t" RILLM_CODES_AT("p0") "flw %[d],0(%[ds])\n\t" RILLM_ROUNDS RILLM_ADD_OUT
        "addi %[q],%[q],32\n\taddi %[ds],%[ds],4\n\taddi %[n],%[n],-1\n\tbnez %[n],1b"
        : RILLM_P(1), RILLM_P(2), RILLM_P(3), RILLM_P(4), RILLM_P(5), RILLM_P(6), RILLM_P(7),
          RILLM_P(8), RILLM_P(9), RILLM_P(10), RILLM_P(11), RILLM_P(12), RILLM_P(13), RILLM_P(14),
          RILLM_P(15), [next] "=&r"(next), [n] "+&r"(tokens), [q] "+&r"(q), [x] "+&r"(x), [y] "=&r"(scratch), [d] "=&f"(scale), [ds] "+&r"(d), [out] "+&r"(y)
        : [p0] "r"(codes), [factors] "r"(&factors)
        : RILLM_ALL_VECTORS, "t0");
    // clang-format on
#undef RILLM_P
  }
#endif
};

}  // namespace rillm

#undef RILLM_INT32
#undef RILLM_X
#undef RILLM_MACC
#undef RILLM_MUL
