// 8-bit activations: what quantised matmuls read.
//
// Every 32 floats of a row (a strip) become int8 codes and one float32 scale d = max|x| / 127, so
// x ~ d * q. (llama.cpp scales 256 together for K-quants; 32 is finer at the same cost, because d
// is applied to a strip's integer sum anyway.) The sums of 16 codes let a matmul add offset * sum
// and min * sum without touching the codes again; an ISA that multiplies columns gets the sum of
// all 32 too, and so codes that lie at multiples of 8 bytes.
//
// Rows are stored in groups of 1, 2, 4 .. Tile::kMaxTokens tokens that a matmul kernel takes
// together; strip by strip, so that a kernel walks one pointer:
//
//   group of n:  strip 0: int8 q [n][32] | float d [n] | int32 sums [kSums][n] | strip 1: ...
//
// What a token's numbers are does not depend on the group it is in.
#pragma once

#include <cstdint>

#include "isa/simd.h"

namespace rillm {

#ifdef RILLM_COLUMN_TILES
inline constexpr int kSums = 3;
#else
inline constexpr int kSums = 2;
#endif
inline constexpr int64_t kStripActivationBytes = 32 + 4 + kSums * 4;  // of one token

inline constexpr int64_t q8_row_bytes(int64_t width) { return width / 32 * kStripActivationBytes; }

// The group that `token` of `num_tokens` is in: full groups first, then the rest by powers of two.
struct TokenGroup {
  int64_t first;
  int size;
};
inline TokenGroup group_of(int64_t token, int64_t num_tokens) {
  int64_t first = token / Tile::kMaxTokens * Tile::kMaxTokens;
  int size = Tile::kMaxTokens;
  while (first + size > num_tokens || token >= first + size) {
    if (first + size <= num_tokens) first += size;
    size /= 2;
  }
  return {first, size};
}

// x [width], row `token` of num_tokens, into its place in the buffer. width % 32 == 0.
void quantize_row(const float* x, uint8_t* buffer, int64_t token, int64_t num_tokens,
                  int64_t width);

}  // namespace rillm
