// RVV intrinsics spell the register group (LMUL) in every name that has no vector argument to tell
// it from. Here those are given one name for all groups; the others have overloads.
//
// The types are the fixed-length ones (-mrvv-vector-bits=zvl), so that vectors can be members and
// elements of arrays: the core is compiled once for each VLEN, and the probe compares VLEN.
#pragma once

#include <riscv_vector.h>

#include <cstdint>

#include "float16.h"

#if !defined(__riscv_v_fixed_vlen)
#error "compile with -mrvv-vector-bits=zvl"
#endif

#define RILLM_VECTOR(type, eighths) \
  type __attribute__((riscv_rvv_vector_bits(__riscv_v_fixed_vlen / 8 * (eighths))))

// What assembly that uses all vector registers overwrites.
#define RILLM_ALL_VECTORS                                                                        \
  "vl", "vtype", "memory", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10",    \
      "v11", "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", \
      "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31"

namespace rillm {

inline constexpr int kVlen = __riscv_v_fixed_vlen;  // bits of a vector register

// Loads of narrower integers, widened to 32-bit lanes: what RVV 1.0 and XTheadVector do
// differently.
#if !defined(RILLM_GROUP_LOADS)
#define RILLM_GROUP_LOADS(m, half, quarter)                                                \
  static vuint16##half##_t load_u16(const uint16_t* p) {                                   \
    return __riscv_vle16_v_u16##half(p, kLanes);                                           \
  }                                                                                        \
  static void store_u16(uint16_t* p, vuint16##half##_t a) { __riscv_vse16(p, a, kLanes); } \
  static I32 load_i16(const uint16_t* p) {                                                 \
    const auto* bits = reinterpret_cast<const int16_t*>(p);                                \
    return __riscv_vsext_vf2(__riscv_vle16_v_i16##half(bits, kLanes), kLanes);             \
  }                                                                                        \
  static I32 load_i8(const uint8_t* p) {                                                   \
    const auto* bytes = reinterpret_cast<const int8_t*>(p);                                \
    return __riscv_vsext_vf4(__riscv_vle8_v_i8##quarter(bytes, kLanes), kLanes);           \
  }
#endif

// Groups of kLmul registers of 32-bit lanes, with the narrower groups of as many lanes.
template <int kLmul>
struct Group;

#define RILLM_GROUP(lmul, m, half, quarter)                                               \
  template <>                                                                             \
  struct Group<lmul> {                                                                    \
    static constexpr int kLanes = lmul * kVlen / 32;                                      \
    using F32 = RILLM_VECTOR(vfloat32##m##_t, 8 * lmul);                                  \
    using I32 = RILLM_VECTOR(vint32##m##_t, 8 * lmul);                                    \
    static F32 load(const float* p) { return __riscv_vle32_v_f32##m(p, kLanes); }         \
    static I32 load_i32(const int32_t* p, int n) { return __riscv_vle32_v_i32##m(p, n); } \
    static F32 splat(float x) { return __riscv_vfmv_v_f_f32##m(x, kLanes); }              \
    static I32 splat(int32_t x) { return __riscv_vmv_v_x_i32##m(x, kLanes); }             \
    static F32 as_float(I32 a) { return __riscv_vreinterpret_v_i32##m##_f32##m(a); }      \
    static I32 as_int(F32 a) { return __riscv_vreinterpret_v_f32##m##_i32##m(a); }        \
    RILLM_GROUP_LOADS(m, half, quarter)                                                   \
    static F32 load_bfloat16(const uint16_t* p) {                                         \
      return as_float(__riscv_vsll(load_i16(p), 16, kLanes));                             \
    }                                                                                     \
    RILLM_GROUP_HALF(m, half)                                                             \
  };

#if defined(__riscv_zvfhmin) || defined(__riscv_zvfh)
#define RILLM_GROUP_HALF(m, half)                                                               \
  static F32 load_half(const uint16_t* p) {                                                     \
    return __riscv_vfwcvt_f(__riscv_vreinterpret_v_u16##half##_f16##half(load_u16(p)), kLanes); \
  }                                                                                             \
  static void store_half(uint16_t* p, F32 a) {                                                  \
    store_u16(p, __riscv_vreinterpret_v_f16##half##_u16##half(__riscv_vfncvt_f(a, kLanes)));    \
  }
#else
#define RILLM_GROUP_HALF(m, half)                                                  \
  static F32 load_half(const uint16_t* p) {                                        \
    /* Exponent and mantissa in float32's place, times 2^112 to move the bias:     \
       exact, subnormals too; the sign comes with the load. Infinity would become  \
       65536: no weight, scale or cached value is infinite. */                     \
    const I32 bits = __riscv_vsll(load_i16(p), 13, kLanes);                        \
    const I32 kept = __riscv_vand(bits, static_cast<int32_t>(0x8fffffff), kLanes); \
    return __riscv_vfmul(as_float(kept), 0x1p112f, kLanes);                        \
  }                                                                                \
  static void store_half(uint16_t* p, F32 a) {                                     \
    float lanes[kLanes];                                                           \
    __riscv_vse32(lanes, a, kLanes);                                               \
    for (int i = 0; i < kLanes; ++i) p[i] = float_to_half(lanes[i]);               \
  }
#endif

RILLM_GROUP(1, m1, mf2, mf4)
RILLM_GROUP(2, m2, m1, mf2)
RILLM_GROUP(4, m4, m2, m1)
RILLM_GROUP(8, m8, m4, m2)

#undef RILLM_GROUP
#undef RILLM_GROUP_HALF
#undef RILLM_GROUP_LOADS

}  // namespace rillm
