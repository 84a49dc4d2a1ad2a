// Quantised matmul for more tokens than registers hold sums of (dot_block).
//
// A strip of two tiles is unpacked once, into the first-level cache, and multiplied with all tokens
// of the group, a few at a time; their float sums live in the cache too. Two tiles share every
// activation that is loaded: with one, loads and not products would be the limit. A row's sum is
// made of the same operations in the same order as in group_kernel.h, so it has the same bits.
#pragma once

#include "ops/group_kernel.h"

namespace rillm {
namespace {

template <Codes codes, Scales scales, int offset>
struct BlockKernel {
  static constexpr int kTiles = 2;  // that run takes, or 1
  static constexpr int kRegisterTokens = Tile::kRegisterTokens;
  using Alone = QuantizedKernel<codes, scales, offset>;
  using BlockScale = typename Alone::BlockScale;
  static constexpr int kMaxCode = max_code(codes);
  static constexpr int kParts = Tile::template kParts<kMaxCode>;
  static constexpr int kOffset = offset + Tile::template kBlockOffset<kMaxCode>;
  static constexpr int kSubs = Alone::kSubs;
  static constexpr int kSubUnits = Alone::kSubUnits;
  static constexpr bool kHasMin = Alone::Reader::kHasMin;
  static constexpr int kTogether = Tile::template kBlockTokens<kMaxCode, kSubUnits>;
  static_assert(2 * kRegisterTokens % kTogether == 0);

  // What the layout needs of a strip's activations (ops/activations.h) for each of n tokens.
  struct Factors {
    Factors(const uint8_t* strip, int n) {
      d = reinterpret_cast<const float*>(strip + 32 * n);
      const auto* sums = reinterpret_cast<const int32_t*>(strip + 36 * n);
      for (int sub = 0; sub < kSubs; ++sub) {
        for (int token = 0; token < n; ++token) {
          const int32_t sum = kSubs == 2 ? sums[n * sub + token] : sums[token] + sums[n + token];
          if constexpr (kOffset != 0) start[sub][token] = -kOffset * sum;
          if constexpr (kHasMin) min_factor[sub][token] = d[token] * static_cast<float>(sum);
        }
      }
    }
    const float* d;
    alignas(64) int32_t start[kSubs][Tile::kMaxTokens];
    alignas(64) float min_factor[kSubs][Tile::kMaxTokens];
  };

  template <int tiles>
  struct Strip {
    alignas(64) Tile::W units[kUnits * tiles * kParts];  // [unit][tile][part]
    Tile::F scale[kSubs][tiles], min[kSubs][tiles];
  };

  // Adds one strip times kTogether tokens to their sums y [token][tile][row].
  template <int tiles>
  RILLM_INLINE static void add_tokens(const Strip<tiles>& strip, const Factors& x, const int8_t* q,
                                      int first, float* y) {
    unroll<kSubs>([&](auto sub) RILLM_INLINE {
      Tile::I sum[kTogether][tiles];
      unroll<kTogether * tiles>([&](auto k) RILLM_INLINE {
        sum[k / tiles][k % tiles] = Tile::iset1(kOffset == 0 ? 0 : x.start[sub][first + k / tiles]);
      });
      Tile::template dot_block<kMaxCode, kSubUnits>(
          sum, strip.units + sub * kSubUnits * tiles * kParts,
          q + kStrip * first + kStrip / kSubs * sub, kStrip);
      unroll<kTogether * tiles>([&](auto k) RILLM_INLINE {
        constexpr int token = k / tiles, tile = k % tiles;
        float* at = y + (first * tiles + k) * Tile::kRows;
        Tile::F value = Tile::fma(Tile::to_float(sum[token][tile]),
                                  Tile::mul(strip.scale[sub][tile], Tile::set1(x.d[first + token])),
                                  Tile::load(at));
        if constexpr (kHasMin) {
          value =
              Tile::fma(strip.min[sub][tile], Tile::set1(x.min_factor[sub][first + token]), value);
        }
        Tile::store(at, value);
      });
    });
  }

  // Tiles [tile, tile + tiles) for n tokens, a group of the activation buffer.
  template <int tiles>
  static void run(const PackedMatrix& w, int64_t tile, const uint8_t* x, int64_t first_token, int n,
                  const MatmulOutput& out) {
    alignas(64) float y[Tile::kMaxTokens * tiles * Tile::kRows];
    std::fill_n(y, n * tiles * Tile::kRows, 0.0f);
    const uint8_t* activations = x + first_token * q8_row_bytes(w.cols);
    const uint8_t* data = w.tile(tile);
    const int64_t num_blocks = w.cols / Alone::kFields.block_size;
    for (int64_t block = 0; block < num_blocks; ++block) {
      BlockScale block_scale[tiles];
      unroll<tiles>([&](auto t) RILLM_INLINE {
        block_scale[t] = BlockScale(data + t * w.tile_bytes);
        prefetch(data + t * w.tile_bytes, scale_bytes(scales));
      });
      data += scale_bytes(scales);
#pragma GCC unroll 1
      for (int index = 0; index < Alone::kStrips; ++index) {
        Strip<tiles> strip;
        unroll<tiles>([&](auto t) RILLM_INLINE {
          const uint8_t* from = data + t * w.tile_bytes;
          prefetch(from, strip_bytes(codes));
          unroll<kUnits>([&](auto unit) RILLM_INLINE {
            Tile::template split<kMaxCode>(unpack_unit<codes, unit>(from),
                                           strip.units + (unit * tiles + t) * kParts);
          });
          unroll<kSubs>([&](auto sub) RILLM_INLINE {
            strip.scale[sub][t] = block_scale[t].scale[index * kSubs + sub];
            if constexpr (kHasMin) strip.min[sub][t] = block_scale[t].min[index * kSubs + sub];
          });
        });
        const Factors factors(activations, n);
        const auto* q = reinterpret_cast<const int8_t*>(activations);
#pragma GCC unroll 1
        for (int first = 0; first < n; first += kTogether) {
          add_tokens<tiles>(strip, factors, q, first, y);
        }
        data += strip_bytes(codes);
        activations += n * kStripActivationBytes;
      }
    }
    for (int token = 0; token < n; ++token) {
      for (int t = 0; t < tiles; ++t) {
        store_rows(Tile::load(y + (token * tiles + t) * Tile::kRows), out, first_token + token,
                   (tile + t) * Tile::kRows, w.rows);
      }
    }
  }
};

}  // namespace
}  // namespace rillm
