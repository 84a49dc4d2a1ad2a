// What a tile of XTheadVector does otherwise than one of RVV 1.0: see simd.h.
#pragma once

#include "isa/riscv_rvv/tile.h"

// rillm_high "op a,b", vN, ",c" is the instruction `op a,b,vN+2,c`: the upper half of a group of
// four registers, which an operand of an asm statement has no name for. rillm_high_pair "op a", vN,
// vM is `op a,vN+2,vM+2`.
asm(R"(
  .macro rillm_high head:req, group:req, tail
  .set rillm_found, 0
  rillm_high_if \group, v0, v2, "\head", "\tail"
  rillm_high_if \group, v4, v6, "\head", "\tail"
  rillm_high_if \group, v8, v10, "\head", "\tail"
  rillm_high_if \group, v12, v14, "\head", "\tail"
  rillm_high_if \group, v16, v18, "\head", "\tail"
  rillm_high_if \group, v20, v22, "\head", "\tail"
  rillm_high_if \group, v24, v26, "\head", "\tail"
  rillm_high_if \group, v28, v30, "\head", "\tail"
  .ifeq rillm_found
  .error "rillm_high: \group is no group of four registers"
  .endif
  .endm
  .macro rillm_high_pair head:req, group:req, other:req
  rillm_high_pair_if \group, v0, v2, "\head", \other
  rillm_high_pair_if \group, v4, v6, "\head", \other
  rillm_high_pair_if \group, v8, v10, "\head", \other
  rillm_high_pair_if \group, v12, v14, "\head", \other
  rillm_high_pair_if \group, v16, v18, "\head", \other
  rillm_high_pair_if \group, v20, v22, "\head", \other
  rillm_high_pair_if \group, v24, v26, "\head", \other
  rillm_high_pair_if \group, v28, v30, "\head", \other
  .endm
  .macro rillm_high_pair_if group, low, high, head, other
  .ifc \group,\low
  rillm_high "\head,\high", \other
  .endif
  .endm
  .macro rillm_high_if group, low, high, head, tail
  .ifc \group,\low
  \head,\high\tail
  .set rillm_found, 1
  .endif
  .endm
)");

namespace rillm {

struct Tile : RowTile {
  static_assert(kGroup == 1 && kHalves == 2 && kParts == 4);
  // At m4, although vrgather is quadratic in LMUL: 8 cycles on a C910. Four at m1 would cost as
  // much, and moves.
  static W wlut(W a, const int8_t* table) {
    const vuint8m4_t lut = __riscv_vle8_v_u8m4(reinterpret_cast<const uint8_t*>(table), 16);
    return __riscv_vrgather(lut, a, kRows);
  }

  // The sums of a run of columns that are unpacked step by step.
  struct Run {
    S sums;
    explicit Run(const int8_t*) {}
    Run(const int8_t*, int start) : sums(sset1(start)) {}
    S sum() const { return sums; }
  };
  static constexpr int kSlack = 0, kMaxUnits = 4;

  // clang-format off: assembly, a line for each instruction
  // One activation of a token, at `at` from q, times column k: codes below 128, or int8.
#define RILLM_MADD(a, b, at, k)                        \
  "lb %[x]," at "+" k "(%[q])\n\t"                     \
  "th.vwmacc.vx %[" a "],%[x],%[w" k "]\n\t"           \
  "rillm_high \"th.vwmacc.vx %[" b "],%[x]\", %[w" k "]\n\t"
#define RILLM_PRODUCT(a, b, at, k)                     \
  "lb %[x]," at "+" k "(%[q])\n\t"                     \
  "th.vwmul.vx %[" a "],%[w" k "],%[x]\n\t"            \
  "rillm_high \"th.vwmul.vx %[" b "]\", %[w" k "], \",%[x]\"\n\t"
  // Adds the products of n units with the activations q[first] .. , or sets the sums to them.
  template <int first, bool sets, int n>
  RILLM_INLINE static void add_units(Run& run, const int8_t* q, const W (&w)[n]) {
    static_assert(n >= 2 && n <= kMaxUnits);
    const int64_t vl = kHalfRows;
    const int8_t* at = q + first;
    const auto& from = *reinterpret_cast<const int8_t(*)[n]>(at);
    int64_t x;
#define RILLM_UNITS(constraint, text, ...)                                                       \
  asm volatile("th.vsetvli zero,%[vl],e8,m2\n\t" text                                            \
      : [a] constraint(run.sums.half[0]), [b] constraint(run.sums.half[1]), [x] "=&r"(x)         \
      : [vl] "r"(vl), [q] "r"(at), "m"(from), [w0] "vr"(w[0]), [w1] "vr"(w[1])__VA_OPT__(, ) __VA_ARGS__ \
      : "vl", "vtype")
#define RILLM_2_UNITS(op) op("a", "b", "0", "0") RILLM_MADD("a", "b", "0", "1")
#define RILLM_3_UNITS(op) RILLM_2_UNITS(op) RILLM_MADD("a", "b", "0", "2")
#define RILLM_4_UNITS(op) RILLM_3_UNITS(op) RILLM_MADD("a", "b", "0", "3")
#define RILLM_W3 [w2] "vr"(w[2])
#define RILLM_W4 RILLM_W3, [w3] "vr"(w[3])
    if constexpr (sets) {
      if constexpr (n == 2) RILLM_UNITS("=&vr", RILLM_2_UNITS(RILLM_PRODUCT));
      if constexpr (n == 3) RILLM_UNITS("=&vr", RILLM_3_UNITS(RILLM_PRODUCT), RILLM_W3);
      if constexpr (n == 4) RILLM_UNITS("=&vr", RILLM_4_UNITS(RILLM_PRODUCT), RILLM_W4);
    } else {
      if constexpr (n == 2) RILLM_UNITS("+vr", RILLM_2_UNITS(RILLM_MADD));
      if constexpr (n == 3) RILLM_UNITS("+vr", RILLM_3_UNITS(RILLM_MADD), RILLM_W3);
      if constexpr (n == 4) RILLM_UNITS("+vr", RILLM_4_UNITS(RILLM_MADD), RILLM_W4);
    }
#undef RILLM_W4
#undef RILLM_W3
#undef RILLM_4_UNITS
#undef RILLM_3_UNITS
#undef RILLM_2_UNITS
#undef RILLM_UNITS
  }

  // The sums of kColumns columns of stored codes, signed or below 128, for n tokens: activation k
  // of a token is at q[first + k], the next token's 32 on.
  template <int first, int kColumns, int n>
  RILLM_INLINE static void sum_stored(S (&sums)[n], const int8_t* q, const uint8_t* codes) {
    constexpr int kStep = n == 1 ? 4 : 2;  // with the sums they fill 24 registers
    Run run(q);
    [[maybe_unused]] const int64_t vl = kHalfRows;
    unroll<kColumns / kStep>([&](auto step) RILLM_INLINE {
      W w[kStep];
      unroll<kStep>([&](auto i) RILLM_INLINE {
        w[i] = wload(codes + (step * kStep + i) * kRows);
      });
      constexpr int kFirst = first + step * kStep;
      if constexpr (n == 1) {
        add_units<kFirst, step == 0>(run, q, w);
      } else {
        const int8_t* at = q + kFirst;
        const auto& from = *reinterpret_cast<const int8_t(*)[34]>(at);
        int64_t x;
#define RILLM_TOKENS(constraint, op)                                                             \
  asm volatile("th.vsetvli zero,%[vl],e8,m2\n\t"                                                 \
      op("a", "b", "0", "0") op("c", "d", "32", "0")                                             \
      RILLM_MADD("a", "b", "0", "1") RILLM_MADD("c", "d", "32", "1")                             \
      : [a] constraint(sums[0].half[0]), [b] constraint(sums[0].half[1]),                        \
        [c] constraint(sums[1].half[0]), [d] constraint(sums[1].half[1]), [x] "=&r"(x)           \
      : [vl] "r"(vl), [q] "r"(at), "m"(from), [w0] "vr"(w[0]), [w1] "vr"(w[1])                   \
      : "vl", "vtype")
        if constexpr (step == 0) {
          RILLM_TOKENS("=&vr", RILLM_PRODUCT);
        } else {
          RILLM_TOKENS("+vr", RILLM_MADD);
        }
#undef RILLM_TOKENS
      }
    });
    if constexpr (n == 1) sums[0] = run.sum();
  }

  // The sums of 32 columns of bytes, for one token; int16 holds the products of a pair.
  RILLM_INLINE static void sum_bytes(T& sums, const int8_t* q, const uint8_t* codes) {
    sums = each<T>([](auto) { return Part::splat(int32_t{0}); });
    const int64_t vl = kHalfRows, half = kLanes;
    unroll<16>([&](auto pair) RILLM_INLINE {
      const W w[2] = {wload(codes + 2 * pair * kRows), wload(codes + (2 * pair + 1) * kRows)};
      const int8_t* at = q + 2 * pair;
      const auto& from = *reinterpret_cast<const int8_t(*)[2]>(at);
      int64_t x, y;
      asm volatile("th.vsetvli zero,%[vl],e8,m2\n\t"
          "lb %[x],0(%[q])\n\t"
          "lb %[y],1(%[q])\n\t"
          "th.vwmul.vx v0,%[w0],%[x]\n\t"
          "rillm_high \"th.vwmul.vx v4\", %[w0], \",%[x]\"\n\t"
          "th.vwmacc.vx v0,%[y],%[w1]\n\t"
          "rillm_high \"th.vwmacc.vx v4,%[y]\", %[w1]\n\t"
          "th.vsetvli zero,%[half],e16,m2\n\t"
          "th.vwadd.wv %[a],%[a],v0\n\t"
          "th.vwadd.wv %[b],%[b],v2\n\t"
          "th.vwadd.wv %[c],%[c],v4\n\t"
          "th.vwadd.wv %[d],%[d],v6\n\t"
          : [a] "+vr"(sums.part[0]), [b] "+vr"(sums.part[1]), [c] "+vr"(sums.part[2]),
            [d] "+vr"(sums.part[3]), [x] "=&r"(x), [y] "=&r"(y)
          : [vl] "r"(vl), [half] "r"(half), [q] "r"(at), "m"(from), [w0] "vr"(w[0]),
            [w1] "vr"(w[1])
          : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "vl", "vtype");
    });
  }

  // Halves of bytes as int16, and quarters of the rows as float.
  static S to_int16(I a) {
    S out;
    const int64_t vl = kHalfRows;
    asm("th.vsetvli zero,%[vl],e8,m2\n\t"
        "th.vwcvt.x.x.v %[low],%[from]\n\t"
        "rillm_high \"th.vwcvt.x.x.v %[high]\", %[from]\n\t"
        : [low] "=&vr"(out.half[0]), [high] "=&vr"(out.half[1])
        : [vl] "r"(vl), [from] "vr"(a)
        : "vl", "vtype");
    return out;
  }
  using RowTile::to_float;
  template <int i>
  static P to_float(const S& a) {
    P out;
    const int64_t vl = kLanes;
    if constexpr (i % 2 == 0) {
      asm("th.vsetvli zero,%[vl],e16,m2\n\tth.vfwcvt.f.x.v %[out],%[from]"
          : [out] "=&vr"(out) : [vl] "r"(vl), [from] "vr"(a.half[i / 2]) : "vl", "vtype");
    } else {
      asm("th.vsetvli zero,%[vl],e16,m2\n\trillm_high \"th.vfwcvt.f.x.v %[out]\", %[from]"
          : [out] "=&vr"(out) : [vl] "r"(vl), [from] "vr"(a.half[i / 2]) : "vl", "vtype");
    }
    return out;
  }

  // factor * (sums of one run, or of two), a half at a time.
  template <int num_runs>
  RILLM_INLINE static T products(const S& factor, const S (*sums)[1]) {
    T out;
    const int64_t vl = kLanes;
    unroll<2>([&](auto i) RILLM_INLINE {
      if constexpr (num_runs == 1) {
        asm("th.vsetvli zero,%[vl],e16,m2\n\t"
            "th.vwmul.vv %[low],%[f],%[a]\n\t"
            "rillm_high_pair \"th.vwmul.vv %[high]\", %[f], %[a]\n\t"
            : [low] "=&vr"(out.part[2 * i]), [high] "=&vr"(out.part[2 * i + 1])
            : [vl] "r"(vl), [f] "vr"(factor.half[i]), [a] "vr"(sums[0][0].half[i])
            : "vl", "vtype");
      } else {
        asm("th.vsetvli zero,%[vl],e16,m2\n\t"
            "th.vwmul.vv %[low],%[f],%[a]\n\t"
            "rillm_high_pair \"th.vwmul.vv %[high]\", %[f], %[a]\n\t"
            "th.vwmacc.vv %[low],%[f],%[b]\n\t"
            "rillm_high_pair \"th.vwmacc.vv %[high]\", %[f], %[b]\n\t"
            : [low] "=&vr"(out.part[2 * i]), [high] "=&vr"(out.part[2 * i + 1])
            : [vl] "r"(vl), [f] "vr"(factor.half[i]), [a] "vr"(sums[0][0].half[i]),
              [b] "vr"(sums[1][0].half[i])
            : "vl", "vtype");
      }
    });
    return out;
  }
  template <int i>
  static P sum_to_float(const S& a, const S& b) {
    Part::I32 out;
    const int64_t vl = kLanes;
    if constexpr (i % 2 == 0) {
      asm("th.vsetvli zero,%[vl],e16,m2\n\tth.vwadd.vv %[out],%[a],%[b]"
          : [out] "=&vr"(out) : [vl] "r"(vl), [a] "vr"(a.half[i / 2]), [b] "vr"(b.half[i / 2])
          : "vl", "vtype");
    } else {
      asm("th.vsetvli zero,%[vl],e16,m2\n\trillm_high_pair \"th.vwadd.vv %[out]\", %[a], %[b]"
          : [out] "=&vr"(out) : [vl] "r"(vl), [a] "vr"(a.half[i / 2]), [b] "vr"(b.half[i / 2])
          : "vl", "vtype");
    }
    return __riscv_vfcvt_f(out, kLanes);
  }
  // clang-format on

  // By intrinsics: they share the vtype of what follows, where a move of registers sets its own.
  static W wload(const uint8_t* p) { return __riscv_vle8_v_u8m4(p, kRows); }
  static void wstore(uint8_t* p, W a) { __riscv_vse8(p, vuint8m4_t(a), kRows); }
  static P pload(const P& a) {
    return __riscv_vle32_v_f32m4(reinterpret_cast<const float*>(&a), kLanes);
  }
  template <class Factor>
  static void padd(P& sum, P a, Factor b) {
    __riscv_vse32(reinterpret_cast<float*>(&sum), pfma(a, b, pload(sum)), kLanes);
  }
};

#undef RILLM_PRODUCT
#undef RILLM_MADD

}  // namespace rillm
