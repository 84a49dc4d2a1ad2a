// How codes of 5 and 6 bits lie in a strip where the ISA multiplies columns (kColumnMajor).
//
// Planes of 4 bits and of 1 or 2 take four operations for a code. Here most codes have a byte of
// their own, at its top, signed (code - 2^(bits - 1)); the bits below are `spare`:
//
//     6 bits   4 units in 3 vectors:   u0 u0 u0 u0 u0 u0 s0 s0 | u1 .. s1 s1 | u2 .. s2 s2
//     5 bits   8 units in 5 vectors:   u0 u0 u0 u0 u0 s0 s0 s0 | u1 .. | u2 .. | u3 .. | u4 ..
//
// The other units' codes come out at the top of a sum of bytes, modulo 256, that shifts the spare
// bits of each to different places:
//
//     6 bits   u3 = (64 b0 + 16 b1 + 4 b2) >> 2
//     5 bits   u5 = (32 b0 + 8 b1) >> 3   u6 = (32 b2 + 8 b3) >> 3   u7 = (32 b4 + 4 b1 + 2 b3) >>
//     3
//
// The codes of u0, u1 .. are in these sums too. The spare bits are chosen so that all of it adds up
// to the code, so nothing has to be masked: 7 operations for 4 codes, 15 for 8.
#pragma once

#include "formats/format.h"
#include "isa/simd.h"

namespace rillm {

// Units that are packed together, and the vectors that they take.
template <int bits>
struct Folded {
  static constexpr int kUnits = bits == 5 ? 8 : 4;
  static constexpr int kVectors = bits * kUnits / 8;
  // Which of u0, u1 .. a unit is, in the order in which they are multiplied: units that share bytes
  // are neighbours.
  static constexpr int kNames[8] = {
      bits == 5 ? 4 : 0, bits == 5 ? 7 : 3, bits == 5 ? 0 : 1, bits == 5 ? 5 : 2, 1, 2, 6, 3};
};

// The bytes of a group of units, from their codes in the order u0, u1 ...
inline void fold6(const uint8_t* u, uint8_t* b) {
  const int spare = u[3] - 16 * u[1] - 4 * u[2];
  for (int i = 0; i < 3; ++i) {
    b[i] = static_cast<uint8_t>(u[i] << 2 | (spare >> (4 - 2 * i) & 3));
  }
}
inline void fold5(const uint8_t* u, uint8_t* b) {
  int spare[5];
  spare[1] = u[5] & 3;
  spare[3] = u[6] & 3;
  const int rest = u[7] - 4 * u[1] - 2 * u[3] - ((4 * spare[1] + 2 * spare[3]) >> 3);
  spare[3] |= (rest & 1) << 2;
  spare[1] |= (rest >> 1 & 1) << 2;
  spare[4] = rest >> 2 & 7;
  spare[0] = (u[5] - 8 * u[1] - spare[1]) >> 2 & 7;
  spare[2] = (u[6] - 8 * u[3] - spare[3]) >> 2 & 7;
  for (int i = 0; i < 5; ++i) b[i] = static_cast<uint8_t>(u[i] << 3 | spare[i]);
}

// The signed codes of unit `unit` of a strip.
template <int bits, int unit, class Vectors = Tile>  // dependent: other tiles lack the names
inline typename Vectors::W unfold(const uint8_t* strip) {
  using Layout = Folded<bits>;
  constexpr int kBytes = Tile::kRows * Tile::kGroup, kShift = 8 - bits;
  constexpr int kName = Layout::kNames[unit % Layout::kUnits];
  strip += unit / Layout::kUnits * Layout::kVectors * kBytes;
  const auto b = [&](int i) { return Vectors::wload(strip + i * kBytes); };
  typename Vectors::W code;
  if constexpr (kName < Layout::kVectors) {
    code = b(kName);
  } else if constexpr (bits == 6) {
    code = Vectors::wmacc(Vectors::wmacc(Vectors::template wshl<6>(b(0)), 16, b(1)), 4, b(2));
  } else if constexpr (kName == 7) {
    code = Vectors::wmacc(Vectors::wmacc(Vectors::template wshl<5>(b(4)), 4, b(1)), 2, b(3));
  } else {
    constexpr int kFirst = 2 * (kName - 5);
    code = Vectors::wmacc(Vectors::template wshl<5>(b(kFirst)), 8, b(kFirst + 1));
  }
  return Vectors::template wsra<kShift>(code);
}

}  // namespace rillm
