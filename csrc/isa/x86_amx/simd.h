// AMX int8 (Sapphire Rapids and later): AVX-512 with VNNI, and a unit that multiplies 16 tokens by
// the 16 rows of a tile.
//
// Its 8 registers are matrices. The first operand is 16 tokens by 16 or 32 columns, just as
// ops/activations.h stores a group; the second is one unit of a strip (isa/simd.h) in each of its
// rows, so codes are unpacked into it as they are. Sums are exact int32, the same that vpdpbusd
// makes.
#pragma once

#include "isa/x86_amx/permission.h"
#include "isa/x86_avx512/simd.h"

#define RILLM_MATRIX_UNIT  // see isa/simd.h

namespace rillm {

// Assembly, because GCC 12's intrinsics do not say that they read and write memory.
struct MatrixUnit {
  static constexpr int kTokens = 16;
  static constexpr int kSums = 4, kInputs = 2;  // registers 0 .. 3, 4 and 5; codes are in 6 and 7

  static bool request() { return may_use_tiles(); }

  // While it lives, this thread's unit multiplies `columns` columns. A thread that has no use for
  // its registers gives them up, so that nobody saves and loads them for it.
  template <int columns>
  class Use {
   public:
    Use() {
      struct {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
      } shape;
      static_assert(sizeof shape == 64);
      for (int i = 0; i < 8; ++i) {
        const bool is_input = i >= kSums && i < kSums + kInputs;
        shape.row_bytes[i] = is_input ? columns : 64;
        shape.rows[i] = i < kSums + kInputs ? kTokens : columns / Tile::kGroup;
      }
      asm volatile("ldtilecfg %0" ::"m"(shape) : "memory");
    }
    Use(const Use&) = delete;
    ~Use() { asm volatile("tilerelease" ::: "memory"); }
  };

  template <int input>
  RILLM_INLINE static void load_input(const uint8_t* tokens, int64_t stride) {
    asm volatile("tileloadd (%[from],%[stride]), %%tmm%c[to]" ::[from] "r"(tokens),
                 [stride] "r"(stride), [to] "i"(kSums + input)
                 : "memory");
  }
  // sum = input * codes
  template <int sum, int input>
  RILLM_INLINE static void multiply(const int8_t* codes) {
    load_codes<sum % 2>(codes);
    asm volatile("tilezero %%tmm%c[to]" ::[to] "i"(sum) : "memory");
    add_product<sum, input, sum % 2>();
  }
  template <int sum>
  RILLM_INLINE static void store(int32_t* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c[sum], (%[to],%[stride])" ::[sum] "i"(sum), [to] "r"(to),
                 [stride] "r"(stride)
                 : "memory");
  }

  template <int place>
  RILLM_INLINE static void load_codes(const int8_t* codes) {
    asm volatile("tileloadd (%[from],%[stride]), %%tmm%c[to]" ::[from] "r"(codes),
                 [stride] "r"(int64_t{64}), [to] "i"(6 + place)
                 : "memory");
  }
  template <int sum, int input, int place>
  RILLM_INLINE static void add_product() {
    asm volatile("tdpbssd %%tmm%c[codes], %%tmm%c[input], %%tmm%c[sum]" ::[codes] "i"(6 + place),
                 [input] "i"(kSums + input), [sum] "i"(sum)
                 : "memory");
  }

  static Tile::F to_float(const int32_t* sums) { return Tile::to_float(_mm512_loadu_si512(sums)); }
  // Unpacked codes as they are multiplied here: signed bytes.
  static void store_codes(int8_t* to, Tile::W code, int offset) {
    _mm512_store_si512(to, _mm512_sub_epi8(code, _mm512_set1_epi8(static_cast<char>(offset))));
  }
};

}  // namespace rillm
