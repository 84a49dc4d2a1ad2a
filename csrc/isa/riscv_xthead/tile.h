// What a tile of XTheadVector does otherwise than one of RVV 1.0: see simd.h.
#pragma once

#include "isa/riscv_rvv/tile.h"
#include "isa/riscv_xthead/alone.h"

// rillm_part "op a", vN, part, ",c" is the instruction `op a,vM,c` on part 0 .. 3 of a group of
// eight registers: vM = vN + 2 * part, which an operand of an asm statement has no name for.
// rillm_pair "op a", vN, vM, part is `op a,vN',vM'` on the same part of two groups.
asm(R"(
  .macro rillm_part head:req, group:req, part:req, tail
  .set rillm_found, 0
  rillm_part_if \group, \part, v0, v2, v4, v6, "\head", "\tail"
  rillm_part_if \group, \part, v8, v10, v12, v14, "\head", "\tail"
  rillm_part_if \group, \part, v16, v18, v20, v22, "\head", "\tail"
  rillm_part_if \group, \part, v24, v26, v28, v30, "\head", "\tail"
  .ifeq rillm_found
  .error "rillm_part: \group is no group of eight registers"
  .endif
  .endm
  .macro rillm_part_if group, part, first, second, third, fourth, head, tail
  .ifc \group,\first
  .set rillm_found, 1
  .ifeq \part - 0
  \head,\first\tail
  .endif
  .ifeq \part - 1
  \head,\second\tail
  .endif
  .ifeq \part - 2
  \head,\third\tail
  .endif
  .ifeq \part - 3
  \head,\fourth\tail
  .endif
  .endif
  .endm
  .macro rillm_pair head:req, group:req, other:req, part:req
  rillm_pair_if \group, v0, v2, v4, v6, "\head", \other, \part
  rillm_pair_if \group, v8, v10, v12, v14, "\head", \other, \part
  rillm_pair_if \group, v16, v18, v20, v22, "\head", \other, \part
  rillm_pair_if \group, v24, v26, v28, v30, "\head", \other, \part
  .endm
  .macro rillm_pair_if group, first, second, third, fourth, head, other, part
  .ifc \group,\first
  .ifeq \part - 0
  rillm_part "\head,\first", \other, 0
  .endif
  .ifeq \part - 1
  rillm_part "\head,\second", \other, 1
  .endif
  .ifeq \part - 2
  rillm_part "\head,\third", \other, 2
  .endif
  .ifeq \part - 3
  rillm_part "\head,\fourth", \other, 3
  .endif
  .endif
  .endm
)");

namespace rillm {

struct Tile : RowTile {
  static_assert(kGroup == 1 && kWides == 2 && kParts == 4);
  // At m4, although vrgather is quadratic in LMUL: 8 cycles on a C910. Four at m1 would cost as
  // much, and moves.
  static W wlut(W a, const int8_t* table) {
    const vuint8m4_t lut = __riscv_vle8_v_u8m4(reinterpret_cast<const uint8_t*>(table), 16);
    return __riscv_vrgather(lut, a, kRows);
  }

  // The sums of a run of columns that are unpacked step by step.
  struct Run {
    Sums a;
    explicit Run(const int8_t*) {}
    Run(const int8_t*, int start) : a(sset1(start)) {}
    S sum() const { return {a}; }
  };
  static constexpr int kMaxUnits = 4;

  static constexpr bool kWholeQ6 = true;
  RILLM_INLINE static void add_q6_block(const uint8_t* block, const uint8_t* activations, F& y) {
    rillm::add_q6_block(block, activations, reinterpret_cast<float*>(&y));
  }

  // clang-format off: assembly, a line for each instruction
  // The activation at `at` from q, of one token, times column w.
#define RILLM_TH_MACC(sum, at, w) "lb %[x]," at "(%[q])\n\tth.vwmacc.vx %[" sum "],%[x],%[" w "]\n\t"
#define RILLM_TH_MUL(sum, at, w) "lb %[x]," at "(%[q])\n\tth.vwmul.vx %[" sum "],%[" w "],%[x]\n\t"
  // Adds the products of n units with the activations q[first] .. , or sets the sums to them.
  template <int first, bool sets, int n>
  RILLM_INLINE static void add_units(Run& run, const int8_t* q, const W (&w)[n]) {
    static_assert(n >= 2 && n <= kMaxUnits);
    const int64_t vl = kRows;
    const int8_t* at = q + first;
    const auto& from = *reinterpret_cast<const int8_t(*)[n]>(at);
    SumGroup a = run.a;
    int64_t x;
#define RILLM_UNITS(constraint, text, ...)                                                       \
  asm volatile("th.vsetvli zero,%[vl],e8,m4\n\t" text                                            \
      : [a] constraint(a), [x] "=&r"(x)                                                          \
      : [vl] "r"(vl), [q] "r"(at), "m"(from), [w0] "vr"(w[0]), [w1] "vr"(w[1])__VA_OPT__(, ) __VA_ARGS__ \
      : "vl", "vtype")
#define RILLM_2_UNITS(op) op("a", "0", "w0") RILLM_TH_MACC("a", "1", "w1")
#define RILLM_3_UNITS(op) RILLM_2_UNITS(op) RILLM_TH_MACC("a", "2", "w2")
#define RILLM_4_UNITS(op) RILLM_3_UNITS(op) RILLM_TH_MACC("a", "3", "w3")
#define RILLM_W3 [w2] "vr"(w[2])
#define RILLM_W4 RILLM_W3, [w3] "vr"(w[3])
    if constexpr (sets) {
      if constexpr (n == 2) RILLM_UNITS("=&vr", RILLM_2_UNITS(RILLM_TH_MUL));
      if constexpr (n == 3) RILLM_UNITS("=&vr", RILLM_3_UNITS(RILLM_TH_MUL), RILLM_W3);
      if constexpr (n == 4) RILLM_UNITS("=&vr", RILLM_4_UNITS(RILLM_TH_MUL), RILLM_W4);
    } else {
      if constexpr (n == 2) RILLM_UNITS("+vr", RILLM_2_UNITS(RILLM_TH_MACC));
      if constexpr (n == 3) RILLM_UNITS("+vr", RILLM_3_UNITS(RILLM_TH_MACC), RILLM_W3);
      if constexpr (n == 4) RILLM_UNITS("+vr", RILLM_4_UNITS(RILLM_TH_MACC), RILLM_W4);
    }
    run.a = a;
#undef RILLM_W4
#undef RILLM_W3
#undef RILLM_4_UNITS
#undef RILLM_3_UNITS
#undef RILLM_2_UNITS
#undef RILLM_UNITS
  }

  // y[token] += d[token] * factors * (sum of 32 columns of bytes * activations), for n tokens:
  // q is [n][32].
  RILLM_INLINE static void add_bytes(int n, const uint8_t* codes, const int8_t* q, const float* d,
                                     const F& factors, F* y) {
#pragma GCC unroll 1
    for (int token = 0; token < n; ++token, q += 32) {
      T sums;
      sum_bytes(sums, q, codes);
      unroll<kParts>([&](auto i) RILLM_INLINE {
        padd(y[token].part[i], pmul(to_float<i>(sums), pload(factors.part[i])), d[token]);
      });
    }
  }
  // The sums of 32 columns of bytes, for one token; int16 holds the products of a pair.
  RILLM_INLINE static void sum_bytes(T& sums, const int8_t* q, const uint8_t* codes) {
    const int64_t vl = kRows, half = kWideRows;
    WideGroup a = __riscv_vmv_v_x_i32m8(0, kWideRows), b = a;
    unroll<16>([&](auto pair) RILLM_INLINE {
      const W w[2] = {wload(codes + 2 * pair * kRows), wload(codes + (2 * pair + 1) * kRows)};
      const int8_t* at = q + 2 * pair;
      const auto& from = *reinterpret_cast<const int8_t(*)[2]>(at);
      int64_t x, y;
      asm volatile("th.vsetvli zero,%[vl],e8,m4\n\t"
          "lb %[x],0(%[q])\n\t"
          "lb %[y],1(%[q])\n\t"
          "th.vwmul.vx v0,%[w0],%[x]\n\t"
          "th.vwmacc.vx v0,%[y],%[w1]\n\t"
          "th.vsetvli zero,%[half],e16,m4\n\t"
          "th.vwadd.wv %[a],%[a],v0\n\t"
          "th.vwadd.wv %[b],%[b],v4\n\t"
          : [a] "+vr"(a), [b] "+vr"(b), [x] "=&r"(x), [y] "=&r"(y)
          : [vl] "r"(vl), [half] "r"(half), [q] "r"(at), "m"(from), [w0] "vr"(w[0]),
            [w1] "vr"(w[1])
          : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "vl", "vtype");
    });
    sums.wide[0] = a;
    sums.wide[1] = b;
  }

  static S to_int16(I a) {
    SumGroup out;
    const int64_t vl = kRows;
    asm("th.vsetvli zero,%[vl],e8,m4\n\tth.vwcvt.x.x.v %[out],%[from]"
        : [out] "=&vr"(out) : [vl] "r"(vl), [from] "vr"(a) : "vl", "vtype");
    return {out};
  }
  template <int i>
  static P to_float(const S& a) {
    vfloat32m4_t out;
    const int64_t vl = kLanes;
    asm("th.vsetvli zero,%[vl],e16,m2\n\trillm_part \"th.vfwcvt.f.x.v %[out]\", %[from], %[part]"
        : [out] "=&vr"(out) : [vl] "r"(vl), [from] "vr"(a.rows), [part] "i"(i) : "vl", "vtype");
    return out;
  }
  static constexpr bool kFloatsAtOnce = true;
  // All parts: one vsetvli for them.
  static void to_floats(const S& a, P (&out)[4]) {
    vfloat32m4_t p0, p1, p2, p3;
    const int64_t vl = kLanes;
#define RILLM_TH_FLOAT(i) "\n\trillm_part \"th.vfwcvt.f.x.v %[p" #i "]\", %[from], " #i
    asm("th.vsetvli zero,%[vl],e16,m2" RILLM_TH_FLOAT(0) RILLM_TH_FLOAT(1) RILLM_TH_FLOAT(2)
        RILLM_TH_FLOAT(3)
        : [p0] "=&vr"(p0), [p1] "=&vr"(p1), [p2] "=&vr"(p2), [p3] "=&vr"(p3)
        : [vl] "r"(vl), [from] "vr"(a.rows) : "vl", "vtype");
#undef RILLM_TH_FLOAT
    out[0] = p0, out[1] = p1, out[2] = p2, out[3] = p3;
  }
  // Bytes in memory: int16 groups would not all find registers.
  struct ScaleCodes {
    uint8_t bytes[kRows];
  };
  static void set_scales(S& scales, I a) { scales = to_int16(a); }
  static void set_scales(ScaleCodes& scales, I a) {
    __riscv_vse8(scales.bytes, vuint8m4_t(a), kRows);
  }
  template <int i>
  static P to_float(const ScaleCodes& a) {
    return __riscv_vfcvt_f(Part::load_i8(a.bytes + i * kLanes), kLanes);
  }
  template <int i>
  static P to_float(const T& a) {
    const auto* sums = reinterpret_cast<const int32_t*>(a.wide);
    return __riscv_vfcvt_f(__riscv_vle32_v_i32m4(sums + i * kLanes, kLanes), kLanes);
  }

  // total += factor * (sums of one run, or of two), or =, in the rows of Wide i. In memory: with
  // both of them the sums of a second sub-block would not find registers.
  template <int i, bool sets, int num_runs>
  RILLM_INLINE static void add_product(Wide& total, const S& factor, const S (&sums)[num_runs]) {
    const int64_t vl = kWideRows;
    auto& memory = reinterpret_cast<uint8_t(&)[sizeof total]>(total);
    const SumGroup a = sums[0].rows, b = sums[num_runs - 1].rows;
    WideGroup sum;
#define RILLM_TH_PRODUCTS(text)                                                      \
  asm(text "th.vsetvli zero,%[vl],e32,m8\n\tth.vse.v %[sum],(%[total])"                          \
      : [sum] "=&vr"(sum), "+m"(memory)                                                \
      : [vl] "r"(vl), [total] "r"(&total), [f] "vr"(factor.rows), [a] "vr"(a), [b] "vr"(b),      \
        [part] "i"(2 * i)                                                                        \
      : "vl", "vtype")
#define RILLM_TH_LOAD "th.vsetvli zero,%[vl],e32,m8\n\tth.vle.v %[sum],(%[total])\n\t"
#define RILLM_TH_E16 "th.vsetvli zero,%[vl],e16,m4\n\t"
#define RILLM_TH_PRODUCT(op, of) "rillm_pair \"" op " %[sum]\", %[f], %[" of "], %[part]\n\t"
#define RILLM_TH_FIRST RILLM_TH_E16 RILLM_TH_PRODUCT("th.vwmul.vv", "a")
#define RILLM_TH_MORE RILLM_TH_LOAD RILLM_TH_E16 RILLM_TH_PRODUCT("th.vwmacc.vv", "a")
#define RILLM_TH_SECOND RILLM_TH_PRODUCT("th.vwmacc.vv", "b")
    if constexpr (sets && num_runs == 1) RILLM_TH_PRODUCTS(RILLM_TH_FIRST);
    if constexpr (sets && num_runs == 2) RILLM_TH_PRODUCTS(RILLM_TH_FIRST RILLM_TH_SECOND);
    if constexpr (!sets && num_runs == 1) RILLM_TH_PRODUCTS(RILLM_TH_MORE);
    if constexpr (!sets && num_runs == 2) RILLM_TH_PRODUCTS(RILLM_TH_MORE RILLM_TH_SECOND);
#undef RILLM_TH_SECOND
#undef RILLM_TH_MORE
#undef RILLM_TH_FIRST
#undef RILLM_TH_PRODUCT
#undef RILLM_TH_E16
#undef RILLM_TH_LOAD
#undef RILLM_TH_PRODUCTS
  }
  template <int i>
  static P sum_to_float(const S& a, const S& b) {
    vint32m4_t out;
    const int64_t vl = kLanes;
    asm("th.vsetvli zero,%[vl],e16,m2\n\t"
        "rillm_pair \"th.vwadd.vv %[out]\", %[a], %[b], %[part]"
        : [out] "=&vr"(out)
        : [vl] "r"(vl), [a] "vr"(a.rows), [b] "vr"(b.rows), [part] "i"(i) : "vl", "vtype");
    return __riscv_vfcvt_f(out, kLanes);
  }
  // clang-format on
  template <int i>  // of a * x + b * y
  static P products_to_float(const S& a, int x, const S& b, int y) {
    const auto sum = __riscv_vwmul(part_of<i>(a), static_cast<int16_t>(x), kLanes);
    return __riscv_vfcvt_f(__riscv_vwmacc(sum, static_cast<int16_t>(y), part_of<i>(b), kLanes),
                           kLanes);
  }
  template <int i>
  static vint16m2_t part_of(const S& a) {
    return __riscv_vget_v_i16m8_i16m2(a.rows, i);
  }

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

#undef RILLM_TH_MUL
#undef RILLM_TH_MACC

}  // namespace rillm
