// Quantised matmul where the ISA multiplies one column of a tile with one activation (RVV).
//
// The products of a few columns, a run, are summed in integers (ops/column_sums.h) and then scaled.
//
// One token: codes are unpacked where they are used.
// Many tokens: a strip is unpacked once, centred, into memory that stays in the first-level cache;
// what is done for every token of it the Tile does (add_strip, add_runs), in assembly.
// The integer sums are exact and what follows is the same, so both give the same bits.
#pragma once

#include <algorithm>

#include "ops/column_sums.h"
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

  using Sums = ColumnSums<codes, offset, kSubColumns>;
  static constexpr bool kBytes = Sums::kBytes;
  static constexpr int kCentre = Sums::kCentre, kRun = Sums::kRun, kRuns = Sums::kRuns;
  static constexpr int kAddBack = offset == 0 ? kCentre : 0;

  // Two sub-blocks of a strip: their scales are multiplied with the int16 sums in int32, and the
  // block's scale with the float sums of all its strips.
  static constexpr bool kIntegerScales = kSubs == 2;
  static constexpr bool kHasCodes = kFields.num_bytes > 0;

  // The scales of a block as they lie in memory; a sub-block's are unpacked when it comes to it.
  struct PackedScales : Reader {
    using Reader::Reader;

    struct Sub {
      explicit Sub(const PackedScales& of) : block(of) {}
      const PackedScales& block;
      std::conditional_t<kIntegerScales, Tile::S, Tile::ScaleCodes> scale, min;
      template <int i>
      Tile::P factor() const {
        if constexpr (!kHasCodes) return Tile::pload(block.d().part[i]);
        return Tile::pmul(Tile::pload(block.d().part[i]), Tile::template to_float<i>(scale));
      }
      // What a row adds for every unit of the activations' sum, where it does.
      template <int i>
      Tile::P constant(Tile::P factor) const {
        if constexpr (!kHasCodes)
          return Tile::pfma(factor, kAddBack, Tile::pload(block.m().part[i]));
        return Tile::pfnma(Tile::pload(block.m().part[i]), Tile::template to_float<i>(min),
                           Tile::pmul(factor, kAddBack));
      }
    };
    RILLM_INLINE Sub sub(int index) const {
      Sub sub{*this};
      if constexpr (kHasCodes) Tile::set_scales(sub.scale, Reader::scale_code(index));
      if constexpr (kHasCodes && Reader::kHasMin) {
        Tile::set_scales(sub.min, Reader::min_code(index));
      }
      return sub;
    }
  };

  // The same, unpacked once for many tokens.
  struct UnpackedScales {
    explicit UnpackedScales(const PackedScales& packed) {
      if constexpr (kIntegerScales) d_ = packed.d();
      if constexpr (kIntegerScales && Reader::kHasMin) m_ = packed.m();
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

  // One scale, one token: y += d * (factor * sum of code * x + constant * sum of x).
  template <class ToFloat>
  RILLM_INLINE static void add_scaled(const typename PackedScales::Sub& sub, const Activations& x,
                                      ToFloat&& to_float, Tile::F* y) {
    const float d = x.d();
    float sum = 0.0f;
    if constexpr (Reader::kHasMin) sum = static_cast<float>(x.sum(0, kStrip));
    asm volatile("" : "+r"(y));  // one pointer, not one for each part that is kept on the stack
    unroll<Tile::kParts>([&](auto part) RILLM_INLINE {
      Tile::P strip = to_float(part);
      const Tile::P factor = sub.template factor<part>();
      strip = Tile::pmul(strip, factor);
      if constexpr (Reader::kHasMin) {
        strip = Tile::pfma(sub.template constant<part>(factor), sum, strip);
      }
      Tile::padd(y->part[part], strip, d);
    });
  }

  // Two scales, one token: sums += d * (sum of scale * sum of code * x). Where a row has a min,
  // y -= m * d * (sum of min * sum of x).
  RILLM_INLINE static void add_integer(const PackedScales& scale, int strip, const uint8_t* data,
                                       const Activations& x, Tile::F* block_sums, Tile::F* y) {
    Tile::T total;
    unroll<kSubs>([&](auto sub) RILLM_INLINE {
      Tile::S sums[kRuns];
      unroll<kRuns>([&](auto run) RILLM_INLINE {
        sums[run] = Sums::template sum_packed<(sub * kRuns + run) * kRun>(x, data);
      });
      const auto& factor = scale.sub(kSubs * strip + sub).scale;
      asm volatile("" : "+r"(block_sums));  // one pointer, as in add_scaled
      unroll<Tile::kWides>([&](auto wide) RILLM_INLINE {
        Tile::template add_product<wide, sub == 0>(total.wide[wide], factor, sums);
        if constexpr (sub == kSubs - 1) {
          constexpr int kParts = Tile::kParts / Tile::kWides;
          unroll<kParts>([&](auto i) RILLM_INLINE {
            constexpr int kPart = wide * kParts + i;
            Tile::padd(block_sums->part[kPart], Tile::template to_float<kPart>(total), x.d());
          });
        }
      });
    });
    if constexpr (Reader::kHasMin) add_mins(scale, strip, x, y);
  }
  template <class Scale>
  RILLM_INLINE static void add_mins(const Scale& scale, int strip, const Activations& x,
                                    Tile::F* y) {
    asm volatile("" : "+r"(y));
    const auto& first = scale.sub(kSubs * strip);
    const auto& second = scale.sub(kSubs * strip + 1);
    const int32_t sum = x.sum(0, kSubColumns), next = x.sum(kSubColumns, kSubColumns);
    unroll<Tile::kParts>([&](auto part) RILLM_INLINE {
      const Tile::P mins = Tile::template products_to_float<part>(first.min, sum, second.min, next);
      Tile::padd(y->part[part], Tile::pmul(mins, Tile::pload(scale.m().part[part])), -x.d());
    });
  }
  // At the end of a block: y += block's d * sums.
  template <int n>
  RILLM_INLINE static void add_block(const Tile::F& d, const Tile::F* block_sums, Tile::F* y) {
    unroll<n>([&](auto token) RILLM_INLINE {
      unroll<Tile::kParts>([&](auto part) RILLM_INLINE {
        Tile::padd(y[token].part[part], Tile::pload(d.part[part]),
                   Tile::pload(block_sums[token].part[part]));
      });
    });
  }

  // The same for a strip of one scale.
  RILLM_INLINE static void add_token(const PackedScales& scale, int strip, const uint8_t* data,
                                     const Activations& x, Tile::F* y) {
    Tile::S sums[kRuns];
    unroll<kRuns>([&](auto run)
                      RILLM_INLINE { sums[run] = Sums::template sum_packed<run * kRun>(x, data); });
    constexpr bool kAtOnce = kRuns == 1 && Tile::kFloatsAtOnce;
    Tile::P floats[Tile::kParts];
    if constexpr (kAtOnce) Tile::to_floats(sums[0], floats);
    const auto to_float = [&](auto part) RILLM_INLINE {
      if constexpr (kAtOnce) {
        return floats[part];
      } else if constexpr (kRuns == 1) {
        return Tile::template to_float<part>(sums[0]);
      } else {
        return Tile::template sum_to_float<part>(sums[0], sums[1]);
      }
    };
    add_scaled(scale.sub(strip), x, to_float, y);
  }

  // A block for one token; data and activations move on.
  RILLM_INLINE static void add_alone(const uint8_t*& data, const uint8_t*& activations,
                                     Tile::F& y) {
    prefetch_next<scale_bytes(scales)>(data);
    const PackedScales scale(data);
    Tile::F block_sums = Tile::zero();
    data += scale_bytes(scales);
    unroll<kStrips>([&](auto strip) RILLM_INLINE {
      asm volatile("" : "+r"(data), "+r"(activations));
      prefetch_next<strip_bytes(codes)>(data);
      const Activations x = {reinterpret_cast<const int8_t*>(activations), activations + kStrip, 4};
      if constexpr (kBytes) {
        static_assert(!kHasCodes || codes == Codes::Lut4);
        Tile::add_bytes(1, data, x.q, x.ds(), scale.d(), &y);
      } else if constexpr (kIntegerScales) {
        add_integer(scale, strip, data, x, &block_sums, &y);
      } else {
        add_token(scale, strip, data, x, &y);
      }
      data += strip_bytes(codes);
      activations += kStripActivationBytes;
    });
    if constexpr (kIntegerScales) add_block<1>(scale.d(), &block_sums, &y);
  }

  static void run_alone(const uint8_t* data, const uint8_t* activations, int64_t num_blocks,
                        Tile::F& y) {
    constexpr bool kWhole = Tile::kWholeQ6 && codes == Codes::U4P2 && scales == Scales::K16I8;
    for (int64_t block = 0; block < num_blocks; ++block) {
      if constexpr (kWhole) {
        Tile::add_q6_block(data, activations, y);
        data += scale_bytes(scales) + kStrips * strip_bytes(codes);
        activations += kStrips * kStripActivationBytes;
      } else {
        add_alone(data, activations, y);
      }
    }
  }

  // Adds one strip of the tile times n tokens to their sums.
  template <int n>
  RILLM_INLINE static void add_strip(const uint8_t* data, const UnpackedScales& scale, int strip,
                                     const uint8_t* activations, Tile::F* block_sums, Tile::F* y) {
    alignas(64) uint8_t buffer[kUnits * kUnitBytes];
    const uint8_t* from = data;
    if constexpr (codes != Codes::I8) {
      constexpr int kStep = std::min(kUnits, 4);
      unroll<kUnits / kStep>([&](auto step) RILLM_INLINE {
        Tile::W w[kStep];
        unroll<kStep>([&](auto i)
                          RILLM_INLINE { w[i] = unpack_unit<codes, step * kStep + i>(data); });
        unroll<kStep>([&](auto i) RILLM_INLINE {
          if constexpr (Sums::kUnsigned) w[i] = Tile::wsub(w[i], kCentre);
          constexpr int kUnit = step * kStep + i;
          constexpr int kPlace = kIntegerScales ? Tile::pair_place(kUnit) : kUnit;
          Tile::wstore(buffer + kPlace * kUnitBytes, w[i]);
        });
      });
      from = buffer;
    }
    const Activations x = {reinterpret_cast<const int8_t*>(activations), activations + kStrip * n,
                           4 * n};
    if constexpr (kBytes) {
      Tile::add_bytes(n, from, x.q, x.ds(), scale.sub(strip).factors, y);
    } else if constexpr (kIntegerScales) {
      const auto& sub = scale.sub(kSubs * strip);
      const auto& next = scale.sub(kSubs * strip + 1);
      Tile::template add_runs<n>(from, x.q, x.ds(), sub.scale, next.scale, block_sums);
      if constexpr (Reader::kHasMin) {
#pragma GCC unroll 1
        for (int token = 0; token < n; ++token) add_mins(scale, strip, x.from(token), y + token);
      }
    } else {
      const auto& sub = scale.sub(strip);
      Tile::template add_strip<n, kRuns, Reader::kHasMin>(from, x.q, x.ds(), sub.factors,
                                                          sub.constants, y);
    }
  }

  template <int n>
  static void run_batch(const uint8_t* data, const uint8_t* activations, int64_t num_blocks,
                        Tile::F (&y)[n]) {
    for (int64_t block = 0; block < num_blocks; ++block) {
      prefetch_next<scale_bytes(scales)>(data);
      const UnpackedScales scale{PackedScales(data)};
      Tile::F block_sums[n];
      if constexpr (kIntegerScales) {
        unroll<n>([&](auto token) RILLM_INLINE { block_sums[token] = Tile::zero(); });
      }
      data += scale_bytes(scales);
#pragma GCC unroll 1
      for (int strip = 0; strip < kStrips; ++strip) {
        prefetch_next<strip_bytes(codes)>(data);
        add_strip<n>(data, scale, strip, activations, block_sums, y);
        data += strip_bytes(codes);
        activations += n * kStripActivationBytes;
      }
      if constexpr (kIntegerScales) add_block<n>(scale.d(), block_sums, y);
    }
  }

  template <int n>
  static void run(const PackedMatrix& w, int64_t tile, const uint8_t* x, int64_t first_token,
                  const MatmulOutput& out) {
    Tile::F y[n];
    unroll<n>([&](auto token) RILLM_INLINE { y[token] = Tile::zero(); });
    const uint8_t* activations = x + first_token * q8_row_bytes(w.cols);
    const int64_t num_blocks = w.cols / kFields.block_size;
    if constexpr (n == 1 && codes != Codes::Lut4) {
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
