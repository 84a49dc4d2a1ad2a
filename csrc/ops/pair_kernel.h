// Quantised matmul of one or two tokens with two tiles at once, for ISAs with dot_units.
//
// Two tiles share what has to be done for the activations of a strip: a broadcast for every unit,
// and the scalars. The scales of a block stay bytes until their strip. A row's sum is made of the
// same operations in the same order as in group_kernel.h, so it has the same bits.
#pragma once

#include "ops/group_kernel.h"

namespace rillm {
namespace {

// The scales of one block of a tile, each made when its strip comes.
template <class Kernel, Scales scales>
class LazyScales {
 public:
  explicit LazyScales(const uint8_t* data) : block_(data) {}
  Tile::F scale(int sub) const { return block_.scale[sub]; }
  Tile::F min(int sub) const { return block_.min[sub]; }

 private:
  typename Kernel::BlockScale block_;
};

template <class Kernel>
class LazyScales<Kernel, Scales::K32Min> {
 public:
  explicit LazyScales(const uint8_t* data) : reader_(data) {
    Tile::unpack_k32(data + 4 * Tile::kRows, codes_);
  }
  Tile::F scale(int sub) const { return Tile::mul(reader_.d(), code(sub)); }
  Tile::F min(int sub) const {
    return Tile::mul(Tile::sub(Tile::zero(), reader_.m()), code(8 + sub));
  }

 private:
  Tile::F code(int index) const {
    return Tile::to_float(Tile::iload_u8(codes_ + index * Tile::kRows));
  }
  ScaleReader<Scales::K32Min> reader_;
  alignas(64) uint8_t codes_[16 * Tile::kRows];  // 8 scales, 8 mins
};

template <class Kernel>
class LazyScales<Kernel, Scales::K16I8> {
 public:
  explicit LazyScales(const uint8_t* data) : reader_(data) {}
  Tile::F scale(int sub) const { return reader_.scale(sub); }
  Tile::F min(int) const { return Tile::zero(); }

 private:
  ScaleReader<Scales::K16I8> reader_;
};

template <Codes codes, Scales scales, int offset>
struct PairKernel {
  static constexpr int kTiles = 2;
  using Alone = QuantizedKernel<codes, scales, offset>;
  static constexpr int kMaxCode = max_code(codes);
  static constexpr int kSubs = Alone::kSubs;
  static constexpr int kSubUnits = Alone::kSubUnits;
  static constexpr bool kHasMin = Alone::Reader::kHasMin;

  // Tiles [tile, tile + 2) for n tokens.
  template <int n>
  static void run(const PackedMatrix& w, int64_t tile, const uint8_t* x, int64_t first_token,
                  const MatmulOutput& out) {
    constexpr int tiles = kTiles;
    Tile::F y[n][tiles];
    unroll<n * tiles>([&](auto k) RILLM_INLINE { y[k / tiles][k % tiles] = Tile::zero(); });
    const uint8_t* activations = x + first_token * q8_row_bytes(w.cols);
    const uint8_t* data[tiles] = {w.tile(tile), w.tile(tile + 1)};
    const int64_t num_blocks = w.cols / Alone::kFields.block_size;
    for (int64_t block = 0; block < num_blocks; ++block) {
      const LazyScales<Alone, scales> block_scales[tiles] = {LazyScales<Alone, scales>(data[0]),
                                                             LazyScales<Alone, scales>(data[1])};
      unroll<tiles>([&](auto t) RILLM_INLINE {
        prefetch(data[t], scale_bytes(scales));
        data[t] += scale_bytes(scales);
      });
#pragma GCC unroll 1
      for (int strip = 0; strip < Alone::kStrips; ++strip) {
        unroll<tiles>([&](auto t) RILLM_INLINE { prefetch(data[t], strip_bytes(codes)); });
        const StripActivations<n, kSubs, offset, kHasMin> in(activations);
        unroll<kSubs>([&](auto sub) RILLM_INLINE {
          Tile::I sum[n][tiles];
          unroll<n * tiles>([&](auto k) RILLM_INLINE {
            sum[k / tiles][k % tiles] = Tile::iset1(offset == 0 ? 0 : in.start[sub][k / tiles]);
          });
          Tile::template dot_units<kMaxCode, kSubUnits>(
              sum, in.q + kStrip / kSubs * sub, kStrip, [&](auto unit, auto t) RILLM_INLINE {
                return unpack_unit<codes, sub * kSubUnits + unit>(data[t]);
              });
          unroll<tiles>([&](auto t) RILLM_INLINE {
            const Tile::F scale = block_scales[t].scale(strip * kSubs + sub);
            Tile::F min;
            if constexpr (kHasMin) min = block_scales[t].min(strip * kSubs + sub);
            unroll<n>([&](auto token) RILLM_INLINE {
              Tile::F& to = y[token][t];
              to = Tile::fma(Tile::to_float(sum[token][t]),
                             Tile::mul(scale, Tile::set1(in.d[token])), to);
              if constexpr (kHasMin) {
                to = Tile::fma(min, Tile::set1(in.min_factor[sub][token]), to);
              }
            });
          });
        });
        unroll<tiles>([&](auto t) RILLM_INLINE { data[t] += strip_bytes(codes); });
        activations += n * kStripActivationBytes;
      }
    }
    unroll<n * tiles>([&](auto k) RILLM_INLINE {
      constexpr int token = k / tiles, t = k % tiles;
      store_rows(y[token][t], out, first_token + token, (tile + t) * Tile::kRows, w.rows);
    });
  }
};

}  // namespace
}  // namespace rillm
