// Quantised matmul where a unit multiplies 16 tokens by the rows of a tile at once (MatrixUnit).
//
// A part is the columns that share a scale: 32, or 16 of them. One product of the unit is a part of
// 16 tokens and one tile, 16 x 16 sums, exact int32. What follows each product is the work of the
// vector unit, as many operations as in group_kernel.h and in the same order, so a row's sum has
// the same bits:
//
//   y[token] += sum * (scale * d[token]);  y[token] += min * min_factor[token]
//
// That is 48 operations for a product (64 with mins), 24 (32) cycles at two a cycle, where the unit
// needs 16: the vector unit is the limit, and everything else is arranged to leave it alone.
//   - Sums go through the first-level cache. While the unit multiplies kParts parts of two tiles,
//     the products before them are added to y, cut into slices that stand between the tile
//     instructions, because out-of-order execution sees only about four products ahead.
//   - For a product there are 44 loads (22 cycles at two a cycle): an input is loaded for two
//     tiles, so is every factor of a token, and y for kParts parts; and 20 stores (one a cycle).
//   - Codes and scales of eight strips are unpacked for up to kBlockTokens tokens.
#pragma once

#include "ops/group_kernel.h"

namespace rillm {
namespace {

template <int subs, bool has_min>
class MatrixLoop {
 public:
  static constexpr int kTokens = MatrixUnit::kTokens;
  static constexpr int kRows = Tile::kRows;
  static constexpr int kTiles = 2;
  static constexpr int kParts = 4;
  static constexpr int kColumns = kStrip / subs;  // of a part
  static constexpr int kSteps = kParts * kTiles;  // products
  static constexpr int kSliceTokens = kTokens / kSteps;
  static constexpr int64_t kStripBytes = kTokens * kStripActivationBytes;

  // kParts parts (or fewer, for alone) of a group of tokens and two tiles.
  struct Work {
    const uint8_t* strip;        // the first strip's activations (ops/activations.h)
    const int8_t* codes;         // [part][tile][kColumns * kRows]
    const float *scales, *mins;  // [part][tile][kRows]
    float* y;                    // [token][tile][kRows]
  };

  // Has the unit multiply `work`, and adds what it was given before to that work's y.
  void push(const Work& work) {
    if (is_full_) {
      run<true, true>(&work);
    } else {
      run<true, false>(&work);
    }
    before_ = work;
    is_full_ = true;
    turn_ ^= 1;
  }
  void finish() {
    if (is_full_) run<false, true>(nullptr);
    is_full_ = false;
  }
  // The same at once, for a number of parts that is left over. After finish().
  void alone(const Work& work, int parts) {
    int32_t* sums = sums_[0][0][0][0];
    for (int part = 0; part < parts; ++part) {
      const uint8_t* strip = work.strip + part / subs * kStripBytes;
      MatrixUnit::load_input<0>(strip + part % subs * kColumns, kStrip);
      find_min_factors(strip, part % subs, min_factors_[0][0]);
      for (int tile = 0; tile < kTiles; ++tile) {
        const int at = part * kTiles + tile;
        MatrixUnit::multiply<0, 0>(work.codes + at * kColumns * kRows);
        MatrixUnit::store<0>(sums, sizeof sums_[0]);
        const Tile::F scale = Tile::load(work.scales + at * kRows);
        for (int token = 0; token < kTokens; ++token) {
          float* y = work.y + (token * kTiles + tile) * kRows;
          Tile::F value = Tile::fma(MatrixUnit::to_float(sums_[token][0][0][0]),
                                    Tile::mul(scale, factor(strip, token)), Tile::load(y));
          if constexpr (has_min) {
            value = Tile::fma(Tile::load(work.mins + at * kRows),
                              Tile::set1(min_factors_[0][0][token]), value);
          }
          Tile::store(y, value);
        }
      }
    }
  }

 private:
  static Tile::F factor(const uint8_t* strip, int token) {
    return Tile::set1(reinterpret_cast<const float*>(strip + kStrip * kTokens)[token]);
  }

  // d * sum of the part's codes, of every token. The sums are small: they add up exactly.
  static void find_min_factors(const uint8_t* strip, int sub, float* to) {
    static_assert(kTokens == kRows);
    if constexpr (has_min) {
      const auto* d = reinterpret_cast<const float*>(strip + kStrip * kTokens);
      const auto* sums = reinterpret_cast<const int32_t*>(d + kTokens);
      Tile::F sum = MatrixUnit::to_float(sums + sub * kTokens);
      if constexpr (subs == 1) sum = Tile::add(sum, MatrixUnit::to_float(sums + kTokens));
      Tile::store(to, Tile::mul(Tile::load(d), sum));
    }
  }

  template <bool multiplies, bool adds>
  __attribute__((noinline)) void run(const Work* work) {
    Tile::F scale[kSteps], min[kSteps];
    if constexpr (adds) {
      unroll<kSteps>([&](auto i) RILLM_INLINE {
        scale[i] = Tile::load(before_.scales + i * kRows);
        if constexpr (has_min) min[i] = Tile::load(before_.mins + i * kRows);
      });
    }
    const int turn = turn_, before = turn_ ^ 1;
    const auto& min_factors = min_factors_[before];
    unroll<kSteps>([&](auto step) RILLM_INLINE {
      constexpr int part = step / kTiles, tile = step % kTiles;
      if constexpr (multiplies) {
        if constexpr (tile == 0) {
          const uint8_t* strip = work->strip + part / subs * kStripBytes;
          MatrixUnit::load_input<part % 2>(strip + part % subs * kColumns, kStrip);
          find_min_factors(strip, part % subs, min_factors_[turn][part]);
        }
        MatrixUnit::multiply<step % MatrixUnit::kSums, part % 2>(work->codes +
                                                                 step * kColumns * kRows);
      }
      if constexpr (adds) {
        unroll<kSliceTokens>([&](auto i) RILLM_INLINE {
          constexpr int token = step * kSliceTokens + i;
          Tile::F y[kTiles];
          float* to = before_.y + token * kTiles * kRows;
          unroll<kTiles>([&](auto t) RILLM_INLINE { y[t] = Tile::load(to + t * kRows); });
          unroll<kParts>([&](auto p) RILLM_INLINE {
            const Tile::F d = factor(before_.strip + p / subs * kStripBytes, token);
            unroll<kTiles>([&](auto t) RILLM_INLINE {
              y[t] = Tile::fma(MatrixUnit::to_float(sums_[token][before][p][t]),
                               Tile::mul(scale[p * kTiles + t], d), y[t]);
            });
            if constexpr (has_min) {
              const Tile::F factor = Tile::set1(min_factors[p][token]);
              unroll<kTiles>([&](auto t) RILLM_INLINE {
                y[t] = Tile::fma(min[p * kTiles + t], factor, y[t]);
              });
            }
          });
          unroll<kTiles>([&](auto t) RILLM_INLINE { Tile::store(to + t * kRows, y[t]); });
        });
      }
      if constexpr (multiplies) {
        MatrixUnit::store<step % MatrixUnit::kSums>(sums_[0][turn][part][tile], sizeof sums_[0]);
      }
    });
  }

  Work before_ = {};
  bool is_full_ = false;
  int turn_ = 0;
  // Tokens apart, so that no sum that is read has an address that ends (in 12 bits) like that of
  // one which is being stored: a processor would make it wait.
  alignas(64) int32_t sums_[kTokens][2][kParts][kTiles][kRows];
  alignas(64) float min_factors_[2][kParts][kTokens];
};

template <Codes codes, Scales scales, int offset>
struct MatrixKernel {
  static constexpr int kTokens = MatrixUnit::kTokens;
  static constexpr int kBlockTokens = 64;  // of which y (8 KB) and the codes stay in the cache
  using Alone = QuantizedKernel<codes, scales, offset>;
  static constexpr int kSubs = Alone::kSubs;
  using Loop = MatrixLoop<kSubs, Alone::Reader::kHasMin>;
  static constexpr int kTiles = Loop::kTiles;
  static constexpr int kMaxStrips = 8;  // that are unpacked together: a block of 256
  static constexpr int kMaxParts = kMaxStrips * kSubs;
  static constexpr int kPartBytes = Loop::kColumns * Tile::kRows;

  // Eight strips of two tiles, or the fewer that are left.
  struct Unpacked {
    alignas(64) int8_t parts[kMaxParts * kTiles * kPartBytes];
    alignas(64) float scale[2][kMaxParts * kTiles * Tile::kRows];  // those before are in use
    alignas(64) float min[2][kMaxParts * kTiles * Tile::kRows];
  };

  // One block of a tile; `part` is its first. Returns where the next one begins.
  static const uint8_t* unpack(const uint8_t* data, int part, int tile, int turn, Unpacked& to) {
    const typename Alone::BlockScale block(data);
    prefetch(data, scale_bytes(scales));
    data += scale_bytes(scales);
    for (int strip = 0; strip < Alone::kStrips; ++strip, data += strip_bytes(codes)) {
      prefetch(data, strip_bytes(codes));
      unroll<kUnits>([&](auto unit) RILLM_INLINE {
        constexpr int sub = unit / Alone::kSubUnits, in_part = unit % Alone::kSubUnits;
        const int at = (part + strip * kSubs + sub) * kTiles + tile;
        MatrixUnit::store_codes(to.parts + at * kPartBytes + in_part * kUnitBytes,
                                unpack_unit<codes, unit>(data), offset);
      });
    }
    for (int i = 0; i < Alone::kStrips * kSubs; ++i) {
      const int at = ((part + i) * kTiles + tile) * Tile::kRows;
      Tile::store(to.scale[turn] + at, block.scale[i]);
      if constexpr (Alone::Reader::kHasMin) Tile::store(to.min[turn] + at, block.min[i]);
    }
    return data;
  }

  // Tiles [tile, tile + num_tiles), one or two, for tokens [begin, end), whole groups.
  static void run(const PackedMatrix& w, int64_t tile, int num_tiles, const uint8_t* x,
                  int64_t begin, int64_t end, const MatmulOutput& out) {
    const MatrixUnit::Use<Loop::kColumns> use;
    for (; begin < end; begin += kBlockTokens) {
      run_block(w, tile, num_tiles, x, begin, std::min(end, begin + kBlockTokens), out);
    }
  }

 private:
  static void run_block(const PackedMatrix& w, int64_t tile, int num_tiles, const uint8_t* x,
                        int64_t begin, int64_t end, const MatmulOutput& out) {
    constexpr int64_t kGroupSums = kTokens * kTiles * Tile::kRows;
    alignas(64) float y[kBlockTokens / kTokens * kGroupSums];
    std::fill_n(y, (end - begin) * kTiles * Tile::kRows, 0.0f);
    Unpacked unpacked;
    Loop loop;
    // A tile without a neighbour is multiplied twice: there is at most one, the matrix's last.
    const uint8_t* data[kTiles] = {w.tile(tile), w.tile(tile + num_tiles - 1)};
    const int64_t strips = w.cols / kStrip, group_bytes = kTokens * q8_row_bytes(w.cols);
    for (int64_t strip = 0; strip < strips; strip += kMaxStrips) {
      const int turn = static_cast<int>(strip / kMaxStrips % 2);
      const auto count = static_cast<int>(std::min<int64_t>(kMaxStrips, strips - strip));
      for (int t = 0; t < kTiles; ++t) {
        for (int i = 0; i < count; i += Alone::kStrips) {
          data[t] = unpack(data[t], i * kSubs, t, turn, unpacked);
        }
      }
      const uint8_t* activations = x + begin / kTokens * group_bytes + strip * Loop::kStripBytes;
      const int parts = count * kSubs, rest = parts % Loop::kParts;
      const auto work = [&](int64_t group, int part) {
        return typename Loop::Work{
            activations + group * group_bytes + part / kSubs * Loop::kStripBytes,
            unpacked.parts + part * kTiles * kPartBytes,
            unpacked.scale[turn] + part * kTiles * Tile::kRows,
            unpacked.min[turn] + part * kTiles * Tile::kRows, y + group * kGroupSums};
      };
      for (int64_t group = 0; group < (end - begin) / kTokens; ++group) {
        for (int part = 0; part < parts - rest; part += Loop::kParts) loop.push(work(group, part));
      }
      if (rest == 0) continue;
      loop.finish();
      for (int64_t group = 0; group < (end - begin) / kTokens; ++group) {
        loop.alone(work(group, parts - rest), rest);
      }
    }
    loop.finish();
    for (int64_t token = begin; token < end; ++token) {
      for (int t = 0; t < num_tiles; ++t) {
        const float* sums = y + ((token - begin) * kTiles + t) * Tile::kRows;
        store_rows(Tile::load(sums), out, token, (tile + t) * Tile::kRows, w.rows);
      }
    }
  }
};

}  // namespace
}  // namespace rillm
