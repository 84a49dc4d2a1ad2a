// Quantised matmul where the ISA multiplies groups of kGroup columns of every row at once (dot),
// for so many tokens that their sums stay in registers.
#pragma once

#include <cstring>

#include "ops/matmul_parts.h"
#include "unroll.h"

namespace rillm {
namespace {

// The activations of one strip for a group of n tokens (ops/activations.h), with what the layout
// needs made for all tokens at once: `start`, the integer sums' first value (-offset * sum x), and
// `min_factor`, what a min is multiplied by (d * sum x).
template <int n, int kSubs, int offset, bool has_min>
struct StripActivations {
  explicit StripActivations(const uint8_t* strip) : q(reinterpret_cast<const int8_t*>(strip)) {
    std::memcpy(d, strip + 32 * n, sizeof d);
    int32_t sums[2][n];
    std::memcpy(sums, strip + 36 * n, sizeof sums);
    for (int sub = 0; sub < kSubs; ++sub) {
      for (int token = 0; token < n; ++token) {
        const int32_t sum = kSubs == 2 ? sums[sub][token] : sums[0][token] + sums[1][token];
        if constexpr (offset != 0) start[sub][token] = -offset * sum;
        if constexpr (has_min) min_factor[sub][token] = d[token] * static_cast<float>(sum);
      }
    }
  }

  const int8_t* q;
  alignas(64) float d[n];
  alignas(64) int32_t start[kSubs][n];
  alignas(64) float min_factor[kSubs][n];
};

template <Codes codes, Scales scales, int offset>
struct BlockKernel;
template <Codes codes, Scales scales, int offset>
struct PairKernel;
template <Codes codes, Scales scales, int offset>
struct MatrixKernel;

template <Codes codes, Scales scales, int offset>
struct QuantizedKernel {
  static constexpr int kMaxTokens = Tile::kMaxTokens;
#ifdef RILLM_BLOCK_TILES
  using Pair = PairKernel<codes, scales, offset>;    // for up to Tile::kRegisterTokens
  using Block = BlockKernel<codes, scales, offset>;  // for more
#endif
#ifdef RILLM_MATRIX_UNIT
  using Matrix = MatrixKernel<codes, scales, offset>;  // for whole groups of its kTokens
#endif
  static constexpr ScaleFields kFields = scale_fields(scales);
  static constexpr int kStrips = kFields.block_size / kStrip;
  static constexpr int kSubs = kFields.sub_size < kStrip ? 2 : 1;  // scales of a strip
  static constexpr int kSubUnits = kUnits / kSubs;
  using Reader = ScaleReader<scales>;

  // The scales of one block of the tile, as floats. Unpacked before the strips, so that the loop
  // over strips stays a loop: its code then fits the instruction cache for any n.
  struct BlockScale {
    BlockScale() = default;
    explicit BlockScale(const uint8_t* data) {
      const Reader reader(data);
      unroll<kStrips * kSubs>([&](auto sub) RILLM_INLINE {
        scale[sub] = reader.scale(sub);
        if constexpr (Reader::kHasMin) min[sub] = reader.min(sub);
      });
    }
    Tile::F scale[kStrips * kSubs];
    Tile::F min[kStrips * kSubs];
  };

  // Adds one strip of the tile times n tokens to their sums.
  template <int n>
  RILLM_INLINE static void add_strip(const uint8_t* data, const Tile::F* scales_of_strip,
                                     const Tile::F* mins_of_strip, const uint8_t* activations,
                                     Tile::F (&y)[n]) {
    const StripActivations<n, kSubs, offset, Reader::kHasMin> x(activations);
    Tile::W w[kUnits];
    unpack_strip<codes>(data, w);
    unroll<kSubs>([&](auto sub) RILLM_INLINE {
      Tile::W part[kSubUnits];
      unroll<kSubUnits>([&](auto unit) RILLM_INLINE { part[unit] = w[sub * kSubUnits + unit]; });
      const Tile::F scale = scales_of_strip[sub];
      unroll<n>([&](auto token) RILLM_INLINE {
        const Tile::I start = offset == 0 ? Tile::iset1(0) : Tile::iset1(x.start[sub][token]);
        const Tile::I sum = Tile::template dot<max_code(codes)>(
            start, part, x.q + kStrip * token + kStrip / kSubs * sub);
        y[token] =
            Tile::fma(Tile::to_float(sum), Tile::mul(scale, Tile::set1(x.d[token])), y[token]);
        if constexpr (Reader::kHasMin) {
          y[token] = Tile::fma(mins_of_strip[sub], Tile::set1(x.min_factor[sub][token]), y[token]);
        }
      });
    });
  }

  template <int n>
  static void run(const PackedMatrix& w, int64_t tile, const uint8_t* x, int64_t first_token,
                  const MatmulOutput& out) {
    Tile::F y[n];
    unroll<n>([&](auto token) RILLM_INLINE { y[token] = Tile::zero(); });
    const uint8_t* activations = x + first_token * q8_row_bytes(w.cols);
    const uint8_t* data = w.tile(tile);
    const int64_t num_blocks = w.cols / kFields.block_size;
    for (int64_t block = 0; block < num_blocks; ++block) {
      const BlockScale block_scale(data);
      prefetch(data, scale_bytes(scales));
      data += scale_bytes(scales);
#pragma GCC unroll 1
      for (int strip = 0; strip < kStrips; ++strip) {
        prefetch(data, strip_bytes(codes));
        add_strip<n>(data, block_scale.scale + strip * kSubs, block_scale.min + strip * kSubs,
                     activations, y);
        data += strip_bytes(codes);
        activations += n * kStripActivationBytes;
      }
    }
    unroll<n>([&](auto token) RILLM_INLINE {
      store_rows(y[token], out, first_token + token, tile * Tile::kRows, w.rows);
    });
  }
};

}  // namespace
}  // namespace rillm
