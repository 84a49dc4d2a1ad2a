// How the codes of 32 weights of kRows rows (a strip) lie in memory.
//
// A row's 32 codes are cut into units of kGroup codes; a unit vector holds the same unit of all
// rows, row after row, or column after column where the ISA multiplies columns (kColumnMajor):
//
//     byte   row 0: k k+1 .. k+kGroup-1 | row 1: k k+1 .. | ... | row kRows-1
//     byte   k: row 0, 1 .. kRows-1     | k+1: row 0, 1 ..    | ... | k+kGroup-1
//
// A plane of b bits packs 8/b units into one vector: unit u lies in vector u / (8/b), shifted left
// by b * (u mod 8/b). A strip is its low plane, then (for 5 and 6 bits) its high plane.
// So a strip is read front to back, and an unpacked unit costs one shift and one mask.
//
// Where the ISA multiplies columns, codes of 5 and 6 bits are folded instead (layouts/folded.h).
#pragma once

#include "formats/format.h"
#include "isa/simd.h"
#include "layouts/folded.h"
#include "unroll.h"

namespace rillm {

inline constexpr int kStrip = 32;                     // weights of a row in a strip
inline constexpr int kUnits = kStrip / Tile::kGroup;  // units of a strip
inline constexpr int kUnitBytes = Tile::kRows * Tile::kGroup;

inline constexpr int low_bits(Codes codes) {
  return codes == Codes::I8 ? 8 : codes == Codes::U2 || codes == Codes::U2P1 ? 2 : 4;
}
inline constexpr int high_bits(Codes codes) {
  return codes == Codes::U4P1 || codes == Codes::U2P1 ? 1 : codes == Codes::U4P2 ? 2 : 0;
}
// Codes that a unit's vector has in bytes, signed (code - 2^(bits - 1)), instead of planes.
inline constexpr bool folds(Codes codes, bool column_major) {
  return column_major && (codes == Codes::U4P1 || codes == Codes::U4P2);
}
inline constexpr bool is_folded(Codes codes) { return folds(codes, Tile::kColumnMajor); }
inline constexpr int strip_row_bytes(Codes codes) {
  return kStrip * (low_bits(codes) + high_bits(codes)) / 8;
}
inline constexpr int strip_bytes(Codes codes) { return Tile::kRows * strip_row_bytes(codes); }
// The largest code that unpack_strip gives; 255 stands for any byte (see Tile::dot).
inline constexpr int max_code(Codes codes) {
  return codes == Codes::I8 || codes == Codes::Lut4
             ? 255
             : (1 << (low_bits(codes) + high_bits(codes))) - 1;
}

// The unit's codes from a plane of kBits bits, shifted left by kTo (the bits below are 0). The unit
// must be a constant after unrolling, so it is a template parameter.
template <int kBits, int unit, int kTo>
inline Tile::W unpack_bits(const uint8_t* plane) {
  constexpr int kPerVector = 8 / kBits;
  constexpr int kShift = kBits * (unit % kPerVector) - kTo;
  constexpr int kMask = ((1 << kBits) - 1) << kTo;
  const Tile::W packed = Tile::wload(plane + unit / kPerVector * kUnitBytes);
  if constexpr (kBits == 8) {
    return packed;
  } else if constexpr (Tile::kByteShifts && kTo == 0 && kShift + kBits == 8) {
    return Tile::template wshr<kShift>(packed);
  } else if constexpr (kShift == 0) {
    return Tile::wand(packed, kMask);
  } else if constexpr (kShift > 0) {
    return Tile::wand(Tile::template wshr<kShift>(packed), kMask);
  } else {
    return Tile::wand(Tile::template wshl<-kShift>(packed), kMask);
  }
}

template <Codes codes, int unit>
inline Tile::W unpack_unit(const uint8_t* strip) {
  constexpr int kLow = low_bits(codes), kHigh = high_bits(codes);
  if constexpr (is_folded(codes)) {
    return unfold<kLow + kHigh, unit>(strip);
  } else {
    Tile::W code = unpack_bits<kLow, unit, 0>(strip);
    if constexpr (codes == Codes::I8) code = Tile::wint8(code);
    if constexpr (codes == Codes::Lut4) code = Tile::wlut(code, kIq4Values);
    if constexpr (kHigh > 0) {
      constexpr int kHighPlane = Tile::kRows * kStrip * kLow / 8;
      code = Tile::wor(code, unpack_bits<kHigh, unit, kLow>(strip + kHighPlane));
    }
    return code;
  }
}

template <Codes codes>
RILLM_INLINE inline void unpack_strip(const uint8_t* strip, Tile::W (&w)[kUnits]) {
  unroll<kUnits>([&](auto unit) RILLM_INLINE { w[unit] = unpack_unit<codes, unit>(strip); });
}

}  // namespace rillm
