// RVV 1.0 at a known VLEN: 128, 256, 512 or 1024, one variant each.
//
// A lane is a weight row. One vwmacc.vx multiplies a column of a tile (int8, one code of every row)
// with one activation and adds to int16 sums; after as many columns as int16 can hold the sums are
// widened, scaled and added in float32. So there is no reduction, no strided or segment load and no
// shuffle, and a multiply costs one scalar load beside it.
//
// Shapes: a tile has 64 rows where VLEN is 128, else 128. Its column is a group of m4 at VLEN 128
// and 256, of m2 at 512 and m1 at 1024, so that a small matrix still has tiles for every thread.
// Codes are unpacked at m4; int16 sums and floats are groups of up to m8, which halves the
// instructions that scale a strip. XTheadVector's floats stay at m4: C910 and C920 collapse at m8.
#pragma once

#include "isa/riscv_rvv/lmul.h"
#include "isa/riscv_rvv/tile.h"

namespace rillm {

// A scalar that becomes a vector only where no .vf or .vx form takes it.
template <class Vectors>
struct Splat {
  float value;
  operator typename Vectors::F() const { return Vectors::splat(value); }
};

// The elementwise vectors: at most 32 lanes (rows of activations are cut into 32s).
template <int kLmul>
struct FloatVectors : Group<kLmul> {
  using Base = Group<kLmul>;
  using Base::kLanes;
  using F = typename Base::F32;
  using I = typename Base::I32;
  using S = Splat<FloatVectors>;

  static F zero() { return Base::splat(0.0f); }
  static S set1(float x) { return {x}; }
  static S set1_half(uint16_t h) { return {half_to_float(h)}; }
  static void store(float* p, F a) { __riscv_vse32(p, a, kLanes); }
  static F add(F a, F b) { return __riscv_vfadd(a, b, kLanes); }
  static F add(S a, F b) { return __riscv_vfadd(b, a.value, kLanes); }
  static F sub(F a, F b) { return __riscv_vfsub(a, b, kLanes); }
  static F sub(S a, F b) { return __riscv_vfrsub(b, a.value, kLanes); }
  static F mul(F a, F b) { return __riscv_vfmul(a, b, kLanes); }
  static F mul(F a, S b) { return __riscv_vfmul(a, b.value, kLanes); }
  static F mul(S a, F b) { return __riscv_vfmul(b, a.value, kLanes); }
  static F div(F a, F b) { return __riscv_vfdiv(a, b, kLanes); }
  static F fma(F a, F b, F c) { return __riscv_vfmacc(c, a, b, kLanes); }
  static F fma(F a, S b, F c) { return __riscv_vfmacc(c, b.value, a, kLanes); }
  static F fma(F a, F b, S c) { return __riscv_vfmadd(a, b, F(c), kLanes); }
  static F fma(F a, S b, S c) { return __riscv_vfmadd(a, b.value, F(c), kLanes); }
  static F max(F a, F b) { return __riscv_vfmax(a, b, kLanes); }
  static F max(F a, S b) { return __riscv_vfmax(a, b.value, kLanes); }
  static F abs(F a) { return __riscv_vfabs(a, kLanes); }

  static I round(F a) { return __riscv_vfcvt_x(a, kLanes); }
  static F scale2(F a, I n) {
    return Base::as_float(__riscv_vadd(Base::as_int(a), __riscv_vsll(n, 23, kLanes), kLanes));
  }
  static F to_float(I a) { return __riscv_vfcvt_f(a, kLanes); }
  static float reduce_add(F a) {
    const auto sum = __riscv_vfredusum(a, __riscv_vfmv_s_f_f32m1(0.0f, 1), kLanes);
    return __riscv_vfmv_f_s_f32m1_f32(sum);
  }
  static float reduce_max(F a) {
    const auto top = __riscv_vfredmax(a, __riscv_vfmv_s_f_f32m1(-__FLT_MAX__, 1), kLanes);
    return __riscv_vfmv_f_s_f32m1_f32(top);
  }

  static void istore(int32_t* p, I a) { __riscv_vse32(p, a, kLanes); }
  static I iload_i8(const uint8_t* p) { return Base::load_i8(p); }
};

struct Simd : FloatVectors<(kVlen < 512 ? 2 : 1)> {
  // 16 integers as bytes (the low ones), and their sum.
  static int32_t pack16(const int32_t* from, int8_t* to) {
    using Sixteen = Group<(kVlen < 512 ? 512 / kVlen : 1)>;
    const auto a = Sixteen::load_i32(from, 16);
    __riscv_vse8(to, __riscv_vncvt_x(__riscv_vncvt_x(a, 16), 16), 16);
    const auto zero = __riscv_vmv_s_x_i32m1(0, 1);
    return __riscv_vmv_x_s_i32m1_i32(__riscv_vredsum(a, zero, 16));
  }

  static constexpr int kScores = 8;  // 16 of the 32 registers at m2, and m1 needs no more
};

#if !defined(__riscv_xtheadvector)  // which has a Tile of its own
using Tile = RowTile;
#endif

}  // namespace rillm
