// XTheadVector (RVV 0.7.1) at VLEN 128, for C910 and C920v1: RVV 1.0's kernels, and what differs.
//
// 0.7.1 has no fractional LMUL and no vsext/vzext: the load widens narrow integers. It has no
// register vlenb either, and whole registers are moved and spilled under the vtype that is set. GCC
// 15 takes the intrinsics and fixed-length types of 1.0 for it, but a register move is opaque to it
// (it sets vl), so that its register allocator cannot remove one: every vget, and every accumulator
// that is handed from intrinsic to intrinsic, may cost two vmv.v.v and two vsetvli. Hence the tile
// multiplies and halves its groups in assembly.
#pragma once

// The intrinsics are declared with the type of the widened element, and read the narrow one.
#define RILLM_GROUP_LOADS(m, half, quarter)                                  \
  static I32 load_i16(const uint16_t* p) {                                   \
    return __riscv_th_vlh_v_i32##m(reinterpret_cast<const int*>(p), kLanes); \
  }                                                                          \
  static I32 load_i8(const uint8_t* p) {                                     \
    return __riscv_th_vlb_v_i32##m(reinterpret_cast<const int*>(p), kLanes); \
  }

#include "isa/riscv_rvv/simd.h"
#include "isa/riscv_xthead/tile.h"
