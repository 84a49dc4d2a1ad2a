// The integer part of column_kernel.h: one strip's codes times the activations of a few tokens.
//
// The products go to int16 sums, as many as surely fit: a run. With kCentre subtracted a code is
// small and so is the sum, so a run is 32 columns for 4-bit codes, 16 for 5, 8 for 6 and 2 for
// bytes. Where the layout has a min and no offset, the min takes the centre back.
#pragma once

#include <algorithm>
#include <cstring>

#include "ops/activations.h"
#include "ops/matmul_parts.h"
#include "unroll.h"

namespace rillm {
namespace {

// One strip of a token of a group (ops/activations.h) and of those after it.
struct Activations {
  const int8_t* q;
  const uint8_t* numbers;
  int64_t stride;  // bytes between a token's numbers

  Activations from(int token) const { return {q + kStrip * token, numbers + 4 * token, stride}; }
  float d() const { return read<float>(0); }
  const float* ds() const { return reinterpret_cast<const float*>(numbers); }
  // The sum of activations first .. first + count - 1: a half of the strip, or all of it.
  int32_t sum(int first, int count) const {
    return read<int32_t>(count == kStrip ? 3 : 1 + first / 16);
  }
  template <class Number>
  Number read(int index) const {
    Number number;
    const void* from = numbers + index * stride;
    std::memcpy(&number, __builtin_assume_aligned(from, 4), sizeof number);
    return number;
  }
};

// sub_columns: columns of a strip that share a scale.
template <Codes codes, int offset, int sub_columns>
struct ColumnSums {
  static constexpr int kMaxCode = max_code(codes);
  static constexpr bool kBytes = kMaxCode == 255;
  static constexpr bool kOverflows = kMaxCode * 127 * sub_columns > 32767;
  static constexpr int kCentre = kBytes        ? 0
                                 : offset != 0 ? offset
                                 : kOverflows  ? (kMaxCode + 1) / 2
                                               : 0;
  static constexpr int run_columns() {
    const int bound = kBytes ? 128 : std::max(kCentre, kMaxCode - kCentre);
    int run = sub_columns;
    while (run * bound * 127 > 32767) run /= 2;
    return run;
  }
  static constexpr int kRun = run_columns();
  static constexpr int kRuns = sub_columns / kRun;
  static_assert(kBytes ? kRun == 2 : kRuns <= 2);
  // Codes are unsigned where they are unpacked: sums start at -kCentre * sum x, wrap, and wrap
  // back.
  static constexpr bool kUnsigned = kCentre != 0 && !is_folded(codes);
  static_assert(!kUnsigned || kRun >= 16);  // of which the sums of x are kept

  // Units that are unpacked together share the bytes that they come from, and the vector unit
  // changes its register grouping (vsetvli) less often. Step i of a run begins at unit begin(i).
  static constexpr int kUnitsOfRun = kRun / Tile::kGroup;
  static constexpr int begin(int step) {
    constexpr int kOf5Bits[] = {0, 2, 5};  // of 8 units: these keep the fewest bytes
    if (is_folded(codes) && kMaxCode == 31 && kUnitsOfRun % 8 == 0) {
      return step / 3 * 8 + kOf5Bits[step % 3];
    }
    return step * std::min(kUnitsOfRun, Tile::kMaxUnits);
  }
  static constexpr int count_steps() {
    int step = 0;
    while (begin(step) < kUnitsOfRun) ++step;
    return step;
  }

  // One token: the integer sums of the run that begins at column `first`, from packed codes.
  template <int first>
  RILLM_INLINE static Tile::S sum_packed(const Activations& x, const uint8_t* strip) {
    if constexpr (packed_columns(codes) > 0) {
      static_assert(packed_columns(codes) == kRun);
      const int start = kUnsigned ? -kCentre * x.sum(first, kRun) : 0;
      return Tile::template sum_packed<codes, first>(start, x.q, strip);
    }
    Tile::Run run =
        kUnsigned ? Tile::Run(x.q + first, -kCentre * x.sum(first, kRun)) : Tile::Run(x.q + first);
    unroll<count_steps()>([&](auto step) RILLM_INLINE {
      constexpr int kBegin = first / Tile::kGroup + begin(step);
      constexpr int kUnits = std::min(begin(step + 1), kUnitsOfRun) - begin(step);
      Tile::W w[kUnits];
      unroll<kUnits>([&](auto i) RILLM_INLINE { w[i] = unpack_unit<codes, kBegin + i>(strip); });
      Tile::template add_units<kBegin * Tile::kGroup, !kUnsigned && step == 0>(run, x.q, w);
    });
    return run.sum();
  }
};

}  // namespace
}  // namespace rillm
