// Quantised matmul where the ISA multiplies one column of a tile with one activation (RVV).
//
// The products go to int16 sums, as many as surely fit: a run. With kCentre subtracted a code is
// small and so is the sum, so a run is 32 columns for 4-bit codes, 16 for 5, 8 for 6 and 2 for
// bytes. Where the layout has a min and no offset, the min takes the centre back.
//
// One token: codes are unpacked where they are used and stay unsigned. A run starts at -kCentre *
// sum x and ends at the sum of (code - kCentre) * x; on the way it may wrap, and wraps back.
// Many tokens: a strip is unpacked once, centred, into memory that stays in the first-level cache,
// and then multiplied with kDotTokens tokens at a time, whose sums fill half of the registers.
// The integer sums are exact and what follows is the same, so both give the same bits.
#pragma once

#include <bit>
#include <cstring>

#include "ops/matmul_parts.h"
#include "unroll.h"

namespace rillm {
namespace {

// prefetch() for a constant number of bytes: one register with offsets, not a sum for each line.
template <int num_bytes>
RILLM_INLINE inline void prefetch_next(const uint8_t* from) {
  constexpr int kLines = (num_bytes + 63) / 64, kReach = 32;  // lines that an offset reaches
  from += kPrefetchBytes;
  unroll<(kLines + kReach - 1) / kReach>([&](auto part) RILLM_INLINE {
    asm volatile("" : "+r"(from));
    constexpr int kRest = kLines - part * kReach;
    unroll<(kRest < kReach ? kRest : kReach)>(
        [&](auto i) RILLM_INLINE { __builtin_prefetch(from + i * 64); });
    from += kReach * 64;
  });
}

template <Codes codes, Scales scales, int offset>
struct QuantizedKernel {
  static constexpr int kMaxTokens = Tile::kMaxTokens;
  static constexpr ScaleFields kFields = scale_fields(scales);
  static constexpr int kStrips = kFields.block_size / kStrip;
  static constexpr int kSubs = kFields.sub_size < kStrip ? 2 : 1;  // scales of a strip
  static constexpr int kSubColumns = kStrip / kSubs;
  using Reader = ScaleReader<scales>;

  static constexpr int kMaxCode = max_code(codes);
  static constexpr bool kBytes = kMaxCode == 255;
  static constexpr bool kOverflows = kMaxCode * 127 * kSubColumns > 32767;
  static constexpr int kCentre = kBytes        ? 0
                                 : offset != 0 ? offset
                                 : kOverflows  ? (kMaxCode + 1) / 2
                                               : 0;
  static constexpr int kAddBack = offset == 0 ? kCentre : 0;
  static constexpr int run_columns() {
    const int bound = kBytes ? 128 : std::max(kCentre, kMaxCode - kCentre);
    int run = kSubColumns;
    while (run * bound * 127 > 32767) run /= 2;
    return run;
  }
  static constexpr int kRun = run_columns();
  static constexpr int kRuns = kSubColumns / kRun;
  static_assert(kCentre == 0 || kRun % Tile::kSumColumns == 0);
  static_assert(kBytes ? kRun == 2 : kRuns <= 2);

  // Two sub-blocks of a strip: their scales are multiplied with the int16 sums and added in int32.
  static constexpr bool kIntegerScales = kSubs == 2;
  static constexpr bool kHasCodes = kFields.num_bytes > 0;

  // Registers of a token's sums, and the tokens whose sums fill half of the 32: a power of two,
  // as the sizes of groups are.
  static constexpr int kSumRegisters = Tile::kParts * (kBytes || kIntegerScales ? 6 : 2 * kRuns);
  static constexpr int kDotTokens = std::bit_floor(std::clamp(20u / kSumRegisters, 1u, 4u));

  // The scales of a block as they lie in memory; a sub-block's are unpacked when it comes to it.
  struct PackedScales : Reader {
    using Reader::Reader;

    struct Sub {
      const PackedScales& block;
      Tile::S scale, min;
      template <int i>
      Tile::P factor() const {
        if constexpr (!kHasCodes) return block.d().part[i];
        return Tile::pmul(block.d().part[i], Tile::template to_float<i>(scale));
      }
      // What a row adds for every unit of the activations' sum, where it does.
      template <int i>
      Tile::P constant(Tile::P factor) const {
        if constexpr (!kHasCodes) return Tile::pfma(factor, kAddBack, block.m().part[i]);
        return Tile::pfnma(block.m().part[i], Tile::template to_float<i>(min),
                           Tile::pmul(factor, kAddBack));
      }
    };
    RILLM_INLINE Sub sub(int index) const {
      Sub sub = {*this, {}, {}};
      if constexpr (kHasCodes) sub.scale = Tile::to_int16(Reader::scale_code(index));
      if constexpr (kHasCodes && Reader::kHasMin) {
        sub.min = Tile::to_int16(Reader::min_code(index));
      }
      return sub;
    }
  };

  // The same, unpacked once for many tokens.
  struct UnpackedScales {
    explicit UnpackedScales(const PackedScales& packed) : d_(packed.d()) {
      if constexpr (Reader::kHasMin) m_ = packed.m();
      unroll<kStrips * kSubs>([&](auto i) RILLM_INLINE {
        const auto from = packed.sub(i);
        if constexpr (kIntegerScales) {
          subs_[i].scale = from.scale;
          if constexpr (Reader::kHasMin) subs_[i].min = from.min;
        } else {
          unroll<Tile::kParts>([&](auto part) RILLM_INLINE {
            const Tile::P factor = from.template factor<part>();
            subs_[i].factors.part[part] = factor;
            if constexpr (Reader::kHasMin) {
              subs_[i].constants.part[part] = from.template constant<part>(factor);
            }
          });
        }
      });
    }
    struct FloatSub {
      Tile::F factors, constants;
      template <int i>
      Tile::P factor() const {
        return factors.part[i];
      }
      template <int i>
      Tile::P constant(Tile::P) const {
        return constants.part[i];
      }
    };
    struct IntegerSub {
      Tile::S scale, min;
    };
    using Sub = std::conditional_t<kIntegerScales, IntegerSub, FloatSub>;

    const Sub& sub(int index) const { return subs_[index]; }
    const Tile::F& d() const { return d_; }
    const Tile::F& m() const { return m_; }

   private:
    Tile::F d_, m_;
    Sub subs_[kStrips * kSubs];
  };

  // One strip of some tokens of a group (ops/activations.h), from the token that q points at.
  struct Activations {
    const int8_t* q;
    const uint8_t* numbers;
    int64_t stride;  // bytes between a token's numbers

    float d(int token) const { return read<float>(token, 0); }
    // The sum of `count` activations from column `first`.
    int32_t sum(int token, int first, int count) const {
      int32_t total = 0;
      for (int k = first; k < first + count; k += Tile::kSumColumns) {
        total += read<int32_t>(token, 1 + k / Tile::kSumColumns);
      }
      return total;
    }
    template <class Number>
    Number read(int token, int index) const {
      Number number;
      const void* from = numbers + 4 * token + index * stride;
      std::memcpy(&number, __builtin_assume_aligned(from, 4), sizeof number);
      return number;
    }
  };

  // The run's integer sums for n tokens; unit(index) gives the codes of kGroup columns.
  template <int n, bool centred, int first, class Unit>
    requires(Tile::kColumnBlocks)
  RILLM_INLINE static void sum_run(const Activations& x, Unit&& unit, Tile::S (&sums)[n]) {
    unroll<n>([&](auto token) RILLM_INLINE {
      const bool is_at_0 = centred || kCentre == 0;
      sums[token] = Tile::sset1(is_at_0 ? 0 : -kCentre * x.sum(token, first, kRun));
    });
    using Blocks = std::enable_if_t<(n > 0), Tile>;  // dependent: other tiles have no such name
    Blocks::template add_columns<first, kRun, kStrip>(sums, x.q, unit);
  }
  template <int n, bool centred, int first, class Unit>
  RILLM_INLINE static void sum_run(const Activations& x, Unit&& unit, Tile::S (&sums)[n]) {
    // Two sums in turn, where one group of registers would have products wait for each other.
    constexpr int kChains = n * Tile::kHalves == 1 && kRun > 8 ? 2 : 1;
    // Units that are unpacked together share the bytes that they come from, and the vector unit
    // changes its register grouping (vsetvli) less often.
    constexpr int kUnitsOfRun = kRun / Tile::kGroup;
    constexpr int kStep = std::min(kUnitsOfRun, centred                                      ? 8
                                                : Tile::kGroup == 1 && high_bits(codes) == 0 ? 4
                                                                                             : 2);
    Tile::S chain[n][kChains];
    if constexpr (!centred && kCentre != 0) {
      unroll<n>([&](auto token) RILLM_INLINE {
        chain[token][0] = Tile::sset1(-kCentre * x.sum(token, first, kRun));
      });
    }
    const int8_t* q = x.q;
    unroll<kUnitsOfRun / kStep>([&](auto step) RILLM_INLINE {
      constexpr int kUnit = first / Tile::kGroup + step * kStep;
      // Keeps the compiler from loading all activations first and spilling them, and pin keeps it
      // from moving the unpacking between the multiplications again.
      asm volatile("" : "+r"(q));
      Tile::W w[kStep];
      if constexpr (!centred) {
        unroll<kStep>([&](auto i)
                          RILLM_INLINE { w[i] = unit(std::integral_constant<int, kUnit + i>{}); });
        unroll<kStep>([&](auto i) RILLM_INLINE { Tile::pin(w[i]); });
      }
      unroll<kStep * Tile::kGroup>([&](auto k) RILLM_INLINE {
        constexpr int kOfRun = step * kStep * Tile::kGroup + k;
        constexpr bool kStarts = kOfRun < kChains && (centred || kCentre == 0 || kOfRun > 0);
        if constexpr (centred && k % Tile::kGroup == 0) {
          w[k / Tile::kGroup] = unit(std::integral_constant<int, kUnit + k / Tile::kGroup>{});
        }
        unroll<n>([&](auto token) RILLM_INLINE {
          constexpr int kColumn = k % Tile::kGroup;
          const int8_t activation = q[kStrip * token + first + kOfRun];
          Tile::S& sum = chain[token][kOfRun % kChains];
          if constexpr (kStarts) {
            sum = Tile::template product<kColumn>(activation, w[k / Tile::kGroup]);
          } else {
            sum = Tile::template madd<kColumn>(sum, activation, w[k / Tile::kGroup]);
          }
        });
      });
    });
    unroll<n>([&](auto token) RILLM_INLINE {
      sums[token] = chain[token][0];
      if constexpr (kChains == 2) sums[token] = Tile::sadd(sums[token], chain[token][1]);
    });
  }

  // Bytes: pairs of columns, added in int32.
  template <int n, class Unit>
    requires(Tile::kColumnBlocks)
  RILLM_INLINE static void sum_pairs(const Activations& x, Unit&& unit, Tile::T (&sums)[n]) {
    using Blocks = std::enable_if_t<(n > 0), Tile>;  // as above
    Blocks::template add_pairs<kStrip>(sums, x.q, unit);
  }
  template <int n, class Unit>
  RILLM_INLINE static void sum_pairs(const Activations& x, Unit&& unit, Tile::T (&sums)[n]) {
    constexpr int kStep = std::max(1, 2 / Tile::kGroup);
    const int8_t* q = x.q;
    unroll<kUnits / kStep>([&](auto step) RILLM_INLINE {
      asm volatile("" : "+r"(q));  // as in sum_run
      Tile::W w[kStep];
      unroll<kStep>([&](auto i) RILLM_INLINE {
        w[i] = unit(std::integral_constant<int, step * kStep + i>{});
      });
      unroll<kStep * Tile::kGroup / 2>([&](auto pair) RILLM_INLINE {
        constexpr int kEven = 2 * pair, kOdd = 2 * pair + 1;
        constexpr int kColumn = step * kStep * Tile::kGroup + kEven;
        unroll<n>([&](auto token) RILLM_INLINE {
          const int8_t* activation = q + kStrip * token + kColumn;
          Tile::S sum =
              Tile::template product<kEven % Tile::kGroup>(activation[0], w[kEven / Tile::kGroup]);
          sum =
              Tile::template madd<kOdd % Tile::kGroup>(sum, activation[1], w[kOdd / Tile::kGroup]);
          sums[token] = kColumn == 0 ? Tile::widen(sum) : Tile::tadd(sums[token], sum);
        });
      });
    });
  }

  // One scale for the strip: y += d * (factor * sum of code * x + constant * sum of x).
  template <int n, class Sub, class ToFloat>
  RILLM_INLINE static void add_scaled(const Sub& sub, const Activations& x, ToFloat&& to_float,
                                      Tile::F* y) {
    float d[n], sum[n];
    unroll<n>([&](auto token) RILLM_INLINE {
      d[token] = x.d(token);
      if constexpr (Reader::kHasMin) sum[token] = static_cast<float>(x.sum(token, 0, kStrip));
    });
    asm volatile("" : "+r"(y));  // one pointer, not one for each part that is kept on the stack
    unroll<Tile::kParts>([&](auto part) RILLM_INLINE {
      Tile::P strip[n];
      unroll<n>([&](auto token) RILLM_INLINE { strip[token] = to_float(token, part); });
      const Tile::P factor = sub.template factor<part>();
      Tile::P constant;
      if constexpr (Reader::kHasMin) constant = sub.template constant<part>(factor);
      unroll<n>([&](auto token) RILLM_INLINE {
        strip[token] = Tile::pmul(strip[token], factor);
        if constexpr (Reader::kHasMin) {
          strip[token] = Tile::pfma(constant, sum[token], strip[token]);
        }
        Tile::P& to = y[token].part[part];
        to = Tile::pfma(strip[token], d[token], to);
      });
    });
  }

  // Two scales: y += d * (block's d * (sum of scale * sum of code * x) - m * (sum of min * sum x)).
  template <int n, bool centred, class Scale, class Unit>
  RILLM_INLINE static void add_integer(const Scale& scale, int strip, Unit&& unit,
                                       const Activations& x, Tile::F* y) {
    Tile::T total[n];
    unroll<kSubs * kRuns>([&](auto run) RILLM_INLINE {
      Tile::S sums[n];
      sum_run<n, centred, run * kRun>(x, unit, sums);
      const auto& factor = scale.sub(kSubs * strip + run / kRuns).scale;
      unroll<n>([&](auto token) RILLM_INLINE {
        total[token] = run == 0 ? Tile::tproduct(factor, sums[token])
                                : Tile::tmadd(total[token], factor, sums[token]);
      });
    });
    asm volatile("" : "+r"(y));  // as above
    unroll<n>([&](auto token) RILLM_INLINE {
      unroll<Tile::kParts>([&](auto part) RILLM_INLINE {
        Tile::P& to = y[token].part[part];
        const Tile::P sum = Tile::template to_float<part>(total[token]);
        to = Tile::pfma(Tile::pmul(sum, scale.d().part[part]), x.d(token), to);
      });
    });
    if constexpr (Reader::kHasMin) {
      const auto& first = scale.sub(kSubs * strip);
      const auto& second = scale.sub(kSubs * strip + 1);
      unroll<n>([&](auto token) RILLM_INLINE {
        const int32_t sum = x.sum(token, 0, kSubColumns);
        const int32_t next = x.sum(token, kSubColumns, kSubColumns);
        unroll<Tile::kParts>([&](auto part) RILLM_INLINE {
          Tile::P& to = y[token].part[part];
          const Tile::P mins =
              Tile::template products_to_float<part>(first.min, sum, second.min, next);
          to = Tile::pfma(Tile::pmul(mins, scale.m().part[part]), -x.d(token), to);
        });
      });
    }
  }

  // Adds one strip of the tile times n tokens to their sums.
  template <int n, bool centred, class Scale, class Unit>
  RILLM_INLINE static void add_tokens(const Scale& scale, int strip, Unit&& unit,
                                      const Activations& x, Tile::F* y) {
    if constexpr (kIntegerScales) {
      add_integer<n, centred>(scale, strip, unit, x, y);
    } else if constexpr (kBytes) {
      Tile::T sums[n];
      sum_pairs<n>(x, unit, sums);
      const auto to_float = [&](auto token, auto part)
                                RILLM_INLINE { return Tile::template to_float<part>(sums[token]); };
      add_scaled<n>(scale.sub(strip), x, to_float, y);
    } else {
      Tile::S sums[kRuns][n];
      unroll<kRuns>([&](auto run)
                        RILLM_INLINE { sum_run<n, centred, run * kRun>(x, unit, sums[run]); });
      const auto to_float = [&](auto token, auto part) RILLM_INLINE {
        if constexpr (kRuns == 1) {
          return Tile::template to_float<part>(sums[0][token]);
        } else {
          return Tile::template sum_to_float<part>(sums[0][token], sums[1][token]);
        }
      };
      add_scaled<n>(scale.sub(strip), x, to_float, y);
    }
  }

  static void run_alone(const uint8_t* data, const uint8_t* activations, int64_t num_blocks,
                        Tile::F& y) {
    for (int64_t block = 0; block < num_blocks; ++block) {
      prefetch_next<scale_bytes(scales)>(data);
      const PackedScales scale(data);
      data += scale_bytes(scales);
      unroll<kStrips>([&](auto strip) RILLM_INLINE {
        asm volatile("" : "+r"(data), "+r"(activations));
        prefetch_next<strip_bytes(codes)>(data);
        const Activations x = {reinterpret_cast<const int8_t*>(activations), activations + kStrip,
                               4};
        const auto unit = [&](auto i) RILLM_INLINE { return unpack_unit<codes, i>(data); };
        add_tokens<1, false>(scale, strip, unit, x, &y);
        data += strip_bytes(codes);
        activations += kStripActivationBytes;
      });
    }
  }

  // Adds one strip of the tile times n tokens to their sums.
  template <int n>
  RILLM_INLINE static void add_strip(const uint8_t* data, const UnpackedScales& scale, int strip,
                                     const uint8_t* activations, Tile::F (&y)[n]) {
    constexpr int kTokens = std::min(n, kDotTokens);
    alignas(64) uint8_t buffer[kUnits * kUnitBytes];
    const uint8_t* from = data;
    if constexpr (codes != Codes::I8) {
      constexpr int kStep = std::min(kUnits, 4);
      unroll<kUnits / kStep>([&](auto step) RILLM_INLINE {
        Tile::W w[kStep];
        unroll<kStep>([&](auto i)
                          RILLM_INLINE { w[i] = unpack_unit<codes, step * kStep + i>(data); });
        unroll<kStep>([&](auto i) RILLM_INLINE {
          if constexpr (kCentre != 0) w[i] = Tile::wsub(w[i], kCentre);
          Tile::wstore(buffer + (step * kStep + i) * kUnitBytes, w[i]);
        });
      });
      from = buffer;
    }
    const auto unit = [&](auto i) RILLM_INLINE { return Tile::wload(from + i * kUnitBytes); };
    const UnpackedScales* scales_of_block = &scale;
    const auto* q = reinterpret_cast<const int8_t*>(activations);
    const uint8_t* numbers = activations + kStrip * n;
    Tile::F* to = y;
#pragma GCC unroll 1
    for (int first = 0; first < n; first += kTokens) {
      // Else the compiler loads all units before the loop and keeps an address for every vector.
      asm volatile("" : "+r"(from), "+r"(scales_of_block));
      add_tokens<kTokens, true>(*scales_of_block, strip, unit, Activations{q, numbers, 4 * n}, to);
      q += kTokens * kStrip;
      numbers += 4 * kTokens;
      to += kTokens;
    }
  }

  template <int n>
  static void run_batch(const uint8_t* data, const uint8_t* activations, int64_t num_blocks,
                        Tile::F (&y)[n]) {
    for (int64_t block = 0; block < num_blocks; ++block) {
      prefetch_next<scale_bytes(scales)>(data);
      const UnpackedScales scale{PackedScales(data)};
      data += scale_bytes(scales);
#pragma GCC unroll 1
      for (int strip = 0; strip < kStrips; ++strip) {
        prefetch_next<strip_bytes(codes)>(data);
        add_strip<n>(data, scale, strip, activations, y);
        data += strip_bytes(codes);
        activations += n * kStripActivationBytes;
      }
    }
  }

  template <int n>
  static void run(const PackedMatrix& w, int64_t tile, const uint8_t* x, int64_t first_token,
                  const MatmulOutput& out) {
    Tile::F y[n];
    unroll<n>([&](auto token) RILLM_INLINE { y[token] = Tile::zero(); });
    const uint8_t* activations = x + first_token * q8_row_bytes(w.cols);
    const int64_t num_blocks = w.cols / kFields.block_size;
    if constexpr (n == 1) {
      run_alone(w.tile(tile), activations, num_blocks, y[0]);
    } else {
      run_batch<n>(w.tile(tile), activations, num_blocks, y);
    }
    unroll<n>([&](auto token) RILLM_INLINE {
      store_rows(y[token], out, first_token + token, tile * Tile::kRows, w.rows);
    });
  }
};

}  // namespace
}  // namespace rillm
