// AVX-512 with VNNI (Ice Lake, Sapphire Rapids, Zen 4 and later): 16 rows a tile.
//
// vpdpbusd multiplies unsigned codes by signed activations, four bytes of a row at once, and takes
// the activations as a broadcast memory operand, so one token costs one instruction per unit.
#pragma once

// GCC's own header starts from a register that it leaves undefined on purpose (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "unroll.h"

namespace rillm {

struct Simd {
  static constexpr int kLanes = 16;
  static constexpr int kRows = kLanes;
  static constexpr int kGroup = 4;
  static constexpr bool kColumnMajor = false;
  static constexpr bool kByteShifts = false;
  static constexpr int kMaxTokens = 16;  // 16 sums + 8 units + scales fill the 32 registers
  static constexpr int kMaxFloatTokens = kMaxTokens;
  static constexpr int kByteOffset = 128;
  static constexpr int kScores = 16;

  using F = __m512;
  using I = __m512i;
  using W = __m512i;

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F a) { _mm512_storeu_ps(p, a); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static F load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F set1_half(uint16_t h) {
    return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(h)));
  }
  static void store_half(uint16_t* p, F a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static F load_bfloat16(const uint16_t* p) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
  }
  static I round(F a) { return _mm512_cvtps_epi32(a); }
  static F scale2(F a, I n) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_slli_epi32(n, 23)));
  }
  static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  static float reduce_add(F a) { return _mm512_reduce_add_ps(a); }
  static float reduce_max(F a) { return _mm512_reduce_max_ps(a); }

  static void istore(int32_t* p, I a) { _mm512_storeu_si512(p, a); }
  static I iset1(int32_t x) { return _mm512_set1_epi32(x); }
  static I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
  static I isub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I iload_u8(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I iload_i8(const uint8_t* p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I iand(I a, int32_t mask) { return _mm512_and_si512(a, iset1(mask)); }
  static I ior(I a, I b) { return _mm512_or_si512(a, b); }
  template <int n>
  static I ishl(I a) {
    return _mm512_slli_epi32(a, n);
  }
  template <int n>
  static I ishr(I a) {
    return _mm512_srai_epi32(a, n);
  }

  static W wload(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static W wand(W a, uint8_t mask) {
    return _mm512_and_si512(a, _mm512_set1_epi8(static_cast<char>(mask)));
  }
  static W wor(W a, W b) { return _mm512_or_si512(a, b); }
  template <int n>
  static W wshl(W a) {
    return _mm512_slli_epi16(a, n);
  }
  template <int n>
  static W wshr(W a) {
    return _mm512_srli_epi16(a, n);
  }
  static W wint8(W a) { return _mm512_xor_si512(a, _mm512_set1_epi8(static_cast<char>(0x80))); }
  static W wlut(W a, const int8_t* table) {
    const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm512_shuffle_epi8(wint8(_mm512_broadcast_i32x4(entries)), a);
  }

  template <int kMaxCode, int n>
  RILLM_INLINE static I dot(I sum, const W (&w)[n], const int8_t* x) {
    unroll<n>([&](auto unit) RILLM_INLINE {
      int32_t group;
      std::memcpy(&group, x + unit * kGroup, sizeof group);
      sum = _mm512_dpbusd_epi32(sum, w[unit], _mm512_set1_epi32(group));
    });
    return sum;
  }
};
using Tile = Simd;

}  // namespace rillm
