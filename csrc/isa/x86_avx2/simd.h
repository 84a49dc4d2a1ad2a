// AVX2 + FMA + F16C (Haswell, Zen and later): 8 rows a tile.
//
// vpmaddubsw adds two products in int16 and saturates, so how many of its results may be added
// before widening depends on how large the codes can be.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "unroll.h"

#define RILLM_BLOCK_TILES  // see isa/simd.h

namespace rillm {

struct Simd {
  static constexpr int kLanes = 8;
  static constexpr int kRows = kLanes;
  static constexpr int kGroup = 4;
  static constexpr bool kColumnMajor = false;
  static constexpr bool kByteShifts = false;
  static constexpr int kRegisterTokens = 2;  // 4 spill: 8 units, sums and scales in 16 registers
  static constexpr int kMaxTokens = 64;
  static constexpr int kMaxFloatTokens = 4;
  static constexpr int kByteOffset = 0;
  static constexpr int kScores = 8;

  using F = __m256;
  using I = __m256i;
  using W = __m256i;

  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F a) { _mm256_storeu_ps(p, a); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F abs(F a) { return _mm256_andnot_ps(set1(-0.0f), a); }
  static F load_half(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static F set1_half(uint16_t h) {
    return _mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(h)));
  }
  static void store_half(uint16_t* p, F a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static F load_bfloat16(const uint16_t* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
  }
  static I round(F a) { return _mm256_cvtps_epi32(a); }
  static F scale2(F a, I n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(n, 23)));
  }
  static F to_float(I a) { return _mm256_cvtepi32_ps(a); }
  static float reduce_add(F a) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }
  static float reduce_max(F a) {
    __m128 top = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    top = _mm_max_ps(top, _mm_movehl_ps(top, top));
    return _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
  }

  static void istore(int32_t* p, I a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
  static I iset1(int32_t x) { return _mm256_set1_epi32(x); }
  static I iadd(I a, I b) { return _mm256_add_epi32(a, b); }
  static I isub(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I iload_u8(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static I iload_i8(const uint8_t* p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static I iand(I a, int32_t mask) { return _mm256_and_si256(a, iset1(mask)); }
  static I ior(I a, I b) { return _mm256_or_si256(a, b); }
  template <int n>
  static I ishl(I a) {
    return _mm256_slli_epi32(a, n);
  }
  template <int n>
  static I ishr(I a) {
    return _mm256_srai_epi32(a, n);
  }

  static W wload(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static W wand(W a, uint8_t mask) {
    return _mm256_and_si256(a, _mm256_set1_epi8(static_cast<char>(mask)));
  }
  static W wor(W a, W b) { return _mm256_or_si256(a, b); }
  template <int n>
  static W wshl(W a) {
    return _mm256_slli_epi16(a, n);
  }
  template <int n>
  static W wshr(W a) {
    return _mm256_srli_epi16(a, n);
  }
  static W wint8(W a) { return a; }
  static W wlut(W a, const int8_t* table) {
    const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), a);
  }

  // Has a sum in its register now. GCC would turn a chain of adds into a tree and keep all products
  // until the end, in memory.
  RILLM_INLINE static void keep(__m256i& sum) { asm("" : "+x"(sum)); }

  // Of n units, how many have int16 pair sums (each at most 2 * code * 127) that fit into int16
  // together. One of signed bytes, whose sign goes to the activations: 2 * 128 * 127 fits.
  template <int kMaxCode, int n>
  static constexpr int kFit = std::clamp(32767 / (2 * 127 * kMaxCode), 1, n);

  template <int kMaxCode, int n>
  RILLM_INLINE static I dot(I sum, const W (&w)[n], const int8_t* x) {
    constexpr bool kSigned = kMaxCode == 255;
    constexpr int kRun = kFit<kMaxCode, n>;
    const __m256i ones = _mm256_set1_epi16(1);
    unroll<(n + kRun - 1) / kRun>([&](auto run) RILLM_INLINE {
      __m256i pairs = _mm256_setzero_si256();
      unroll<std::min(kRun, n - run * kRun)>([&](auto i) RILLM_INLINE {
        constexpr int unit = run * kRun + i;
        int32_t group;
        std::memcpy(&group, x + unit * kGroup, sizeof group);
        const __m256i activations = _mm256_set1_epi32(group);
        if constexpr (kSigned) {  // |w| * (x with w's sign): 128 * 127 * 2 still fits
          pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w[unit]),
                                       _mm256_sign_epi8(activations, w[unit]));
        } else {
          pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[unit], activations));
          keep(pairs);
        }
      });
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    });
    return sum;
  }

  // The same for two tiles and one or two tokens: each activation is fetched once for both tiles.
  // code(unit, tile) unpacks.
  template <int kMaxCode, int n, int tokens, int tiles, class Code>
  RILLM_INLINE static void dot_units(I (&sum)[tokens][tiles], const int8_t* x, int64_t x_stride,
                                     Code&& code) {
    constexpr bool kSigned = kMaxCode == 255;
    constexpr int kRun = kFit<kMaxCode, n>;
    const __m256i ones = _mm256_set1_epi16(1);
    unroll<(n + kRun - 1) / kRun>([&](auto run) RILLM_INLINE {
      __m256i pairs[tokens][tiles];
      unroll<std::min(kRun, n - run * kRun)>([&](auto i) RILLM_INLINE {
        constexpr int unit = run * kRun + i;
        __m256i activations[tokens];
        unroll<tokens>([&](auto token) RILLM_INLINE {
          int32_t group;
          std::memcpy(&group, x + token * x_stride + unit * kGroup, sizeof group);
          activations[token] = _mm256_set1_epi32(group);
          keep(activations[token]);
        });
        unroll<tiles>([&](auto tile) RILLM_INLINE {
          const W codes = code(std::integral_constant<int, unit>{}, tile);
          unroll<tokens>([&](auto token) RILLM_INLINE {
            const __m256i products =
                kSigned ? _mm256_maddubs_epi16(_mm256_abs_epi8(codes),
                                               _mm256_sign_epi8(activations[token], codes))
                        : _mm256_maddubs_epi16(codes, activations[token]);
            __m256i& to = pairs[token][tile];
            to = i == 0 ? products : _mm256_add_epi16(to, products);
            keep(to);
          });
        });
      });
      unroll<tokens * tiles>([&](auto k) RILLM_INLINE {
        I& to = sum[k / tiles][k % tiles];
        to = iadd(to, _mm256_madd_epi16(pairs[k / tiles][k % tiles], ones));
      });
    });
  }

  // The 12 bytes of packed scales and mins of each row (Scales::K32Min) -> 8 scales, 8 mins, each
  // of all rows.
  RILLM_INLINE static void unpack_k32(const uint8_t* bytes, uint8_t* to) {
    const W low = wload(bytes), high = wload(bytes + 32), rest = wload(bytes + 64);
    const auto store = [&](int at, W codes) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + at), codes);
    };
    store(0, wand(low, 63));
    store(32, wor(wand(rest, 15), wand(wshr<2>(low), 48)));
    store(64, wand(high, 63));
    store(96, wor(wand(wshr<4>(rest), 15), wand(wshr<2>(high), 48)));
  }

  // What dot_block reads. Bytes are cut into two nibbles: eight units of each fit into int16, which
  // is cheaper than a sign and a widening for every unit.
  template <int kMaxCode>
  static constexpr int kParts = kMaxCode == 255 ? 2 : 1;
  template <int kMaxCode>
  static constexpr int kBlockOffset = kMaxCode == 255 ? 128 : 0;
  template <int kMaxCode>
  RILLM_INLINE static void split(W code, W* to) {
    if constexpr (kMaxCode == 255) {
      const W excess = _mm256_xor_si256(code, _mm256_set1_epi8(static_cast<char>(0x80)));
      to[0] = wand(excess, 15);
      to[1] = wand(wshr<4>(excess), 15);
    } else {
      to[0] = code;
    }
  }
  // Two tiles by four tokens are 8 int16 sums, two codes and an activation. Where the sums do not
  // fit into int16 up to the end, int32 ones need the other registers.
  template <int kMaxCode, int n>
  static constexpr int kBlockTokens = kFit<kMaxCode, n> < n ? 2 : 4;

  template <int kMaxCode, int n, int tiles, int tokens>
  RILLM_INLINE static void dot_block(I (&sum)[tokens][tiles], const W* w, const int8_t* x,
                                     int64_t x_stride) {
    constexpr bool kBytes = kMaxCode == 255;
    constexpr int kNum = kParts<kMaxCode>;
    constexpr int kPart = kBytes ? 15 : kMaxCode;
    constexpr int kRun = kFit<kPart, n>;
    static_assert(!kBytes || kRun == n);
    unroll<(n + kRun - 1) / kRun>([&](auto run) RILLM_INLINE {
      __m256i pairs[kNum][tokens][tiles];
      unroll<std::min(kRun, n - run * kRun)>([&](auto i) RILLM_INLINE {
        constexpr int unit = run * kRun + i;
        __m256i code[tiles * kNum];
        unroll<tiles * kNum>([&](auto k) RILLM_INLINE {
          code[k] = w[unit * tiles * kNum + k];
          asm volatile("" : "+x"(code[k]));  // once per call: hoisted, they would spill
        });
        unroll<tokens>([&](auto token) RILLM_INLINE {
          int32_t group;
          std::memcpy(&group, x + token * x_stride + unit * kGroup, sizeof group);
          const __m256i activations = _mm256_set1_epi32(group);
          unroll<tiles * kNum>([&](auto k) RILLM_INLINE {
            constexpr int tile = k / kNum, part = k % kNum;
            const __m256i products = _mm256_maddubs_epi16(code[k], activations);
            __m256i& to = pairs[part][token][tile];
            to = i == 0 ? products : _mm256_add_epi16(to, products);
            keep(to);
          });
        });
      });
      unroll<tokens * tiles * kNum>([&](auto k) RILLM_INLINE {
        constexpr int part = k / (tokens * tiles), token = k / tiles % tokens, tile = k % tiles;
        I& to = sum[token][tile];
        to = iadd(
            to, _mm256_madd_epi16(pairs[part][token][tile], _mm256_set1_epi16(part == 0 ? 1 : 16)));
      });
    });
  }
};
using Tile = Simd;

}  // namespace rillm
