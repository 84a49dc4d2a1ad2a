// What a tile of XTheadVector does otherwise than one of RVV 1.0: see simd.h.
#pragma once

#include "isa/riscv_rvv/tile.h"

// rillm_high "op a,b", vN, ",c" is the instruction `op a,b,vN+2,c`: the upper half of a group of
// four registers, which an operand of an asm statement has no name for.
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
  static constexpr bool kColumnBlocks = true;

  // At m4, although vrgather is quadratic in LMUL: 8 cycles on a C910. Four at m1 would cost as
  // much, and moves.
  static W wlut(W a, const int8_t* table) {
    const vuint8m4_t lut = __riscv_vle8_v_u8m4(reinterpret_cast<const uint8_t*>(table), 16);
    return __riscv_vrgather(lut, a, kRows);
  }

  // clang-format off: assembly, a line for each instruction
  // One activation of a token, at `at` from q, times column k: codes below 128, or int8.
#define RILLM_MADD(a, b, at, k)                        \
  "lb %[x]," at "+" k "(%[q])\n\t"                     \
  "th.vwmacc.vx %[" a "],%[x],%[w" k "]\n\t"           \
  "rillm_high \"th.vwmacc.vx %[" b "],%[x]\", %[w" k "]\n\t"
  // Adds the products of kColumns columns and n tokens to the sums. unit(k) is column k;
  // activation k of a token is at q[k], the next token's kStride on.
  template <int first, int kColumns, int kStride, int n, class Unit>
  RILLM_INLINE static void add_columns(S (&sums)[n], const int8_t* q, Unit&& unit) {
    static_assert(n == 1 || n == 2);
    constexpr int kStep = n == 1 ? 4 : 2;  // with the sums they fill 24 registers
    const int64_t vl = kHalfRows;
    unroll<kColumns / kStep>([&](auto step) RILLM_INLINE {
      constexpr int kColumn = first + step * kStep;
      W w[kStep];
      unroll<kStep>([&](auto i) RILLM_INLINE {
        w[i] = unit(std::integral_constant<int, kColumn + i>{});
      });
      const int8_t* at = q + kColumn;
      const auto& from = *reinterpret_cast<const int8_t(*)[(n - 1) * kStride + kStep]>(at);
      int64_t x;
      if constexpr (n == 1) {
        asm volatile("th.vsetvli zero,%[vl],e8,m2\n\t"
            RILLM_MADD("a", "b", "0", "0") RILLM_MADD("a", "b", "0", "1")
            RILLM_MADD("a", "b", "0", "2") RILLM_MADD("a", "b", "0", "3")
            : [a] "+vr"(sums[0].half[0]), [b] "+vr"(sums[0].half[1]), [x] "=&r"(x)
            : [vl] "r"(vl), [q] "r"(at), "m"(from), [w0] "vr"(w[0]), [w1] "vr"(w[1]),
              [w2] "vr"(w[2]), [w3] "vr"(w[3])
            : "vl", "vtype");
      } else {
        asm volatile("th.vsetvli zero,%[vl],e8,m2\n\t"
            RILLM_MADD("a", "b", "0", "0") RILLM_MADD("c", "d", "%[next]", "0")
            RILLM_MADD("a", "b", "0", "1") RILLM_MADD("c", "d", "%[next]", "1")
            : [a] "+vr"(sums[0].half[0]), [b] "+vr"(sums[0].half[1]), [c] "+vr"(sums[1].half[0]),
              [d] "+vr"(sums[1].half[1]), [x] "=&r"(x)
            : [vl] "r"(vl), [q] "r"(at), "m"(from), [next] "i"(kStride), [w0] "vr"(w[0]),
              [w1] "vr"(w[1])
            : "vl", "vtype");
      }
    });
  }

  // The same for all columns of int8 codes, of which int16 holds the products of a pair. The sums
  // start at 0.
  template <int kColumns, int n, class Unit>
  RILLM_INLINE static void add_pairs(T (&sums)[n], const int8_t* q, Unit&& unit) {
    static_assert(n == 1);
    sums[0] = each<T>([](auto) { return Part::splat(int32_t{0}); });
    const int64_t vl = kHalfRows, half = kLanes;
    unroll<kColumns / 2>([&](auto pair) RILLM_INLINE {
      const W w[2] = {unit(std::integral_constant<int, 2 * pair>{}),
                      unit(std::integral_constant<int, 2 * pair + 1>{})};
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
          : [a] "+vr"(sums[0].part[0]), [b] "+vr"(sums[0].part[1]), [c] "+vr"(sums[0].part[2]),
            [d] "+vr"(sums[0].part[3]), [x] "=&r"(x), [y] "=&r"(y)
          : [vl] "r"(vl), [half] "r"(half), [q] "r"(at), "m"(from), [w0] "vr"(w[0]),
            [w1] "vr"(w[1])
          : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "vl", "vtype");
    });
  }

  template <int column>
  RILLM_INLINE static S madd(S sum, int8_t x, W w) {
    const int64_t vl = kHalfRows;
    asm volatile("th.vsetvli zero,%[vl],e8,m2\n\t"
        "th.vwmacc.vx %[a],%[x],%[w]\n\t"
        "rillm_high \"th.vwmacc.vx %[b],%[x]\", %[w]\n\t"
        : [a] "+vr"(sum.half[0]), [b] "+vr"(sum.half[1])
        : [vl] "r"(vl), [x] "r"(int64_t{x}), [w] "vr"(w)
        : "vl", "vtype");
    return sum;
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
  // clang-format on
};

#undef RILLM_MADD

}  // namespace rillm
