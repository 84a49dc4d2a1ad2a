// Plain C++: runs everywhere, is the fallback, and is what every other ISA is checked against.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>

#include "float16.h"
#include "unroll.h"

namespace rillm {

struct Simd {
  static constexpr int kLanes = 4;  // small enough for the registers of any target
  static constexpr int kRows = kLanes;
  static constexpr int kGroup = 4;
  static constexpr bool kColumnMajor = false;
  static constexpr bool kByteShifts = true;
  static constexpr int kMaxTokens = 4;  // more would only spill
  static constexpr int kMaxFloatTokens = kMaxTokens;
  static constexpr int kByteOffset = 0;
  static constexpr int kScores = 8;

  struct F {
    float v[kLanes];
  };
  struct I {
    int32_t v[kLanes];
  };
  struct W {
    uint8_t v[kLanes * kGroup];
  };

  template <class Out, class Fn>
  static Out each(Fn&& fn) {
    Out out;
    for (int i = 0; i < static_cast<int>(std::size(out.v)); ++i) {
      out.v[i] = static_cast<std::remove_reference_t<decltype(out.v[0])>>(fn(i));
    }
    return out;
  }

  static F zero() { return set1(0.0f); }
  static F set1(float x) {
    return each<F>([&](int) { return x; });
  }
  static F load(const float* p) {
    return each<F>([&](int i) { return p[i]; });
  }
  static void store(float* p, F a) { std::memcpy(p, a.v, sizeof a.v); }
  static F add(F a, F b) {
    return each<F>([&](int i) { return a.v[i] + b.v[i]; });
  }
  static F sub(F a, F b) {
    return each<F>([&](int i) { return a.v[i] - b.v[i]; });
  }
  static F mul(F a, F b) {
    return each<F>([&](int i) { return a.v[i] * b.v[i]; });
  }
  static F fma(F a, F b, F c) {
#ifdef __FP_FAST_FMAF
    return each<F>([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
#else  // a library call per lane would be far slower than two roundings
    return each<F>([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
#endif
  }
  static F div(F a, F b) {
    return each<F>([&](int i) { return a.v[i] / b.v[i]; });
  }
  static F max(F a, F b) {
    return each<F>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F abs(F a) {
    return each<F>([&](int i) { return std::fabs(a.v[i]); });
  }
  static F load_half(const uint16_t* p) {
    return each<F>([&](int i) { return half_to_float(p[i]); });
  }
  static F set1_half(uint16_t h) { return set1(half_to_float(h)); }
  static void store_half(uint16_t* p, F a) {
    for (int i = 0; i < kLanes; ++i) p[i] = float_to_half(a.v[i]);
  }
  static F load_bfloat16(const uint16_t* p) {
    return each<F>([&](int i) { return bfloat16_to_float(p[i]); });
  }
  static I round(F a) {
    return each<I>([&](int i) { return std::lrintf(a.v[i]); });
  }
  static F scale2(F a, I n) {
    return each<F>([&](int i) {
      return std::bit_cast<float>(std::bit_cast<int32_t>(a.v[i]) + (n.v[i] << 23));
    });
  }
  static F to_float(I a) {
    return each<F>([&](int i) { return a.v[i]; });
  }
  static float reduce_add(F a) { return (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]); }
  static float reduce_max(F a) {
    return std::max(std::max(a.v[0], a.v[1]), std::max(a.v[2], a.v[3]));
  }

  static void istore(int32_t* p, I a) { std::memcpy(p, a.v, sizeof a.v); }
  static I iset1(int32_t x) {
    return each<I>([&](int) { return x; });
  }
  static I iadd(I a, I b) {
    return each<I>([&](int i) { return a.v[i] + b.v[i]; });
  }
  static I isub(I a, I b) {
    return each<I>([&](int i) { return a.v[i] - b.v[i]; });
  }
  static I iload_u8(const uint8_t* p) {
    return each<I>([&](int i) { return p[i]; });
  }
  static I iload_i8(const uint8_t* p) {
    return each<I>([&](int i) { return static_cast<int8_t>(p[i]); });
  }
  static I iand(I a, int32_t mask) {
    return each<I>([&](int i) { return a.v[i] & mask; });
  }
  static I ior(I a, I b) {
    return each<I>([&](int i) { return a.v[i] | b.v[i]; });
  }
  template <int n>
  static I ishl(I a) {
    return each<I>([&](int i) { return a.v[i] << n; });
  }
  template <int n>
  static I ishr(I a) {
    return each<I>([&](int i) { return a.v[i] >> n; });
  }

  static W wload(const uint8_t* p) {
    return each<W>([&](int i) { return p[i]; });
  }
  static W wand(W a, uint8_t mask) {
    return each<W>([&](int i) { return a.v[i] & mask; });
  }
  static W wor(W a, W b) {
    return each<W>([&](int i) { return a.v[i] | b.v[i]; });
  }
  template <int n>
  static W wshl(W a) {
    return each<W>([&](int i) { return a.v[i] << n; });
  }
  template <int n>
  static W wshr(W a) {
    return each<W>([&](int i) { return a.v[i] >> n; });
  }
  static W wint8(W a) { return a; }
  static W wlut(W a, const int8_t* table) {
    return each<W>([&](int i) { return static_cast<uint8_t>(table[a.v[i]]); });
  }

  template <int kMaxCode, int n>
  RILLM_INLINE static I dot(I sum, const W (&w)[n], const int8_t* x) {
    for (int unit = 0; unit < n; ++unit) {
      for (int row = 0; row < kLanes; ++row) {
        for (int k = 0; k < kGroup; ++k) {
          const uint8_t byte = w[unit].v[row * kGroup + k];
          const int code = kMaxCode == 255 ? static_cast<int8_t>(byte) : byte;
          sum.v[row] += code * x[unit * kGroup + k];
        }
      }
    }
    return sum;
  }
};
using Tile = Simd;

}  // namespace rillm
