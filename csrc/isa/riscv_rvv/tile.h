// The row tiles of RVV: what layouts/ and the column kernel need (contract in isa/simd.h).
#pragma once

#include "isa/riscv_rvv/packed.h"
#include "isa/riscv_rvv/strips.h"
#include "isa/riscv_rvv/wide_strips.h"
#include "unroll.h"

#define RILLM_COLUMN_TILES  // see isa/simd.h

namespace rillm {

struct RowTile : StripTile {
  static constexpr bool kColumnMajor = true;
  static constexpr bool kByteShifts = true;
  static constexpr int kMaxTokens = 16;
  static constexpr int kByteOffset = 0;
  static constexpr int kMaxFloatTokens = kVlen / (2 * kRows);  // their sums fill 16 registers

  // The int16 sums of the rows of Wide i, and of part i of F but for XTheadVector.
#if __riscv_v_fixed_vlen < 512
  template <int i>
  static vint16m4_t wide_of(const S& a) {
    return __riscv_vget_v_i16m8_i16m4(a.rows, i);
  }
#else
  template <int>
  static SumGroup wide_of(const S& a) {
    return a.rows;
  }
#endif

  struct Scalar {
    float value;
  };

  // make(index) for every part, or half.
  template <class Out, class Make>
  RILLM_INLINE static Out each(Make&& make) {
    Out out;
    unroll<kParts>([&](auto i) RILLM_INLINE { out.part[i] = make(i); });
    return out;
  }

  static F zero() {
    return each<F>([](auto) { return Part::splat(0.0f); });
  }
  static Scalar set1(float x) { return {x}; }
  static F load(const float* p) {
    return each<F>([&](auto i) { return Part::load(p + i * kLanes); });
  }
  static void store(float* p, const F& a) {
    unroll<kParts>([&](auto i) { __riscv_vse32(p + i * kLanes, a.part[i], kLanes); });
  }
  static F sub(const F& a, const F& b) {
    return each<F>([&](auto i) { return __riscv_vfsub(a.part[i], b.part[i], kLanes); });
  }
  static F mul(const F& a, const F& b) {
    return each<F>([&](auto i) { return __riscv_vfmul(a.part[i], b.part[i], kLanes); });
  }
  static F mul(const F& a, Scalar b) {
    return each<F>([&](auto i) { return __riscv_vfmul(a.part[i], b.value, kLanes); });
  }
  static F fma(const F& a, const F& b, const F& c) {
    return each<F>([&](auto i) { return __riscv_vfmacc(c.part[i], a.part[i], b.part[i], kLanes); });
  }
  static F fma(const F& a, Scalar b, const F& c) {
    return each<F>([&](auto i) { return __riscv_vfmacc(c.part[i], b.value, a.part[i], kLanes); });
  }
  static F load_half(const uint16_t* p) {
    return each<F>([&](auto i) { return Part::load_half(p + i * kLanes); });
  }
  static F load_bfloat16(const uint16_t* p) {
    return each<F>([&](auto i) { return Part::load_bfloat16(p + i * kLanes); });
  }

  static int iset1(int x) { return x; }
  static I iload_u8(const uint8_t* p) { return RILLM_B(__riscv_vle8_v_u8)(p, kRows); }
  static I iload_i8(const uint8_t* p) { return iload_u8(p); }
  static I isub(I a, int b) { return __riscv_vsub(a, static_cast<uint8_t>(b), kRows); }
  static I iand(I a, int mask) { return __riscv_vand(a, static_cast<uint8_t>(mask), kRows); }
  static I ior(I a, I b) { return __riscv_vor(a, b, kRows); }
  template <int n>
  static I ishl(I a) {
    return __riscv_vsll(a, n, kRows);
  }
  template <int n>
  static I ishr(I a) {
    return __riscv_vsrl(a, n, kRows);
  }
  static S to_int16(I a) { return {__riscv_vwcvt_x(RILLM_B(__riscv_vreinterpret_i8)(a), kRows)}; }

  // Whole registers: these loads and stores do not depend on vtype, so that none has to be set.
  static W wload(const uint8_t* p) { return *reinterpret_cast<const W*>(p); }
  static void wstore(uint8_t* p, W a) { *reinterpret_cast<W*>(p) = a; }
  static W wand(W a, uint8_t mask) { return __riscv_vand(a, mask, kRows * kGroup); }
  static W wor(W a, W b) { return __riscv_vor(a, b, kRows * kGroup); }
  static W wsub(W a, uint8_t x) { return __riscv_vsub(a, x, kRows * kGroup); }
  template <int n>
  static W wshl(W a) {
    return __riscv_vsll(a, n, kRows * kGroup);
  }
  template <int n>
  static W wshr(W a) {
    return __riscv_vsrl(a, n, kRows * kGroup);
  }
  template <int n>
  static W wsra(W a) {
    const auto shifted = __riscv_vsra(__riscv_vreinterpret_i8m4(a), n, kRows * kGroup);
    return __riscv_vreinterpret_u8m4(shifted);
  }
  static W wmacc(W sum, uint8_t factor, W a) {  // sum + factor * a, modulo 256
    return __riscv_vmacc(sum, factor, a, kRows * kGroup);
  }
  static W wint8(W a) { return a; }
  static W wlut(W a,
                const int8_t* table) {  // at m1: vrgather is quadratic in LMUL
    constexpr int kBytes = kVlen / 8;
    const auto* entries = reinterpret_cast<const uint8_t*>(table);
    const vuint8m1_t lut = __riscv_vle8_v_u8m1(entries, 16);
    return __riscv_vcreate_v_u8m1_u8m4(
        __riscv_vrgather(lut, __riscv_vget_v_u8m4_u8m1(a, 0), kBytes),
        __riscv_vrgather(lut, __riscv_vget_v_u8m4_u8m1(a, 1), kBytes),
        __riscv_vrgather(lut, __riscv_vget_v_u8m4_u8m1(a, 2), kBytes),
        __riscv_vrgather(lut, __riscv_vget_v_u8m4_u8m1(a, 3), kBytes));
  }

  template <Codes codes, int first>
  RILLM_INLINE static S sum_packed(int start, const int8_t* q, const uint8_t* strip) {
    return {rillm::sum_packed<codes, first>(start, q, strip)};
  }

  // A block of Q6_K for one token, whole (riscv_xthead/alone.h), where it is true.
  static constexpr bool kWholeQ6 = false;
  static void add_q6_block(const uint8_t* block, const uint8_t* activations, F& y);

  // A sub-block's scale of every row, of which a part becomes float at a time.
  using ScaleCodes = S;
  static void set_scales(ScaleCodes& scales, I a) { scales = to_int16(a); }

  // total += factor * (sums of one run, or of two), or =, in the rows of Wide i.
  template <int i, bool sets, int num_runs>
  RILLM_INLINE static void add_product(Wide& total, const S& factor, const S (&sums)[num_runs]) {
    WideGroup sum;
    if constexpr (sets) {
      sum = __riscv_vwmul(wide_of<i>(factor), wide_of<i>(sums[0]), kWideRows);
    } else {
      sum = __riscv_vwmacc(total, wide_of<i>(factor), wide_of<i>(sums[0]), kWideRows);
    }
    if constexpr (num_runs == 2) {
      sum = __riscv_vwmacc(sum, wide_of<i>(factor), wide_of<i>(sums[1]), kWideRows);
    }
    total = sum;
  }

  // One part of the lanes at a time: a whole F may fill half of the registers.
  using P = Part::F32;
  static constexpr bool kFloatsAtOnce = false;
  static void to_floats(const S&, P (&)[kParts]);  // where it is true
  template <int i>
  static P to_float(const S& a) {
    return __riscv_vfwcvt_f(wide_of<i>(a), kLanes);
  }
#if !defined(__riscv_xtheadvector)
  template <int i>
  static P to_float(const T& a) {
    return __riscv_vfcvt_f(WideGroup(a.wide[i]), kLanes);
  }
  template <int i>
  static P sum_to_float(const S& a, const S& b) {
    return __riscv_vfcvt_f(__riscv_vwadd_vv(wide_of<i>(a), wide_of<i>(b), kLanes), kLanes);
  }
#endif
  template <int i>  // of a * x + b * y
  static P products_to_float(const S& a, int x, const S& b, int y) {
    const auto sum = __riscv_vwmul(wide_of<i>(a), static_cast<int16_t>(x), kLanes);
    return __riscv_vfcvt_f(__riscv_vwmacc(sum, static_cast<int16_t>(y), wide_of<i>(b), kLanes),
                           kLanes);
  }
  static P pmul(P a, P b) { return __riscv_vfmul(a, b, kLanes); }
  static P pmul(P a, float b) { return __riscv_vfmul(a, b, kLanes); }
  static P pfma(P a, float b, P c) { return __riscv_vfmacc(c, b, a, kLanes); }
  static P pfma(P a, P b, P c) { return __riscv_vfmacc(c, a, b, kLanes); }
  // From memory, and in memory: sum += a * b.
  static P pload(const P& a) { return a; }
  static void padd(P& sum, P a, float b) { sum = pfma(a, b, sum); }
  static void padd(P& sum, P a, P b) { sum = pfma(a, b, sum); }
  static P pfnma(P a, P b, P c) { return __riscv_vfnmsac(c, a, b, kLanes); }  // c - a * b
};

#undef RILLM_S
#undef RILLM_B
#undef RILLM_WIDE

}  // namespace rillm
