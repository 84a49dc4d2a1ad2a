// How the scales of one block of kRows rows lie in memory, and how a strip's are read.
//
//     half field 0: kRows x binary16 | half field 1 (where there is one) | byte 0: kRows bytes |
//     byte 1: kRows bytes | ...
//
// Fields and packing are those of the GGUF block (see Scales in formats/format.h): 6-bit scales
// stay 6-bit, because decode pays for bytes. Each reader gives, for sub-block `sub` of the block,
// the float scale of every row, and its min where the layout has one.
#pragma once

#include "formats/format.h"
#include "isa/simd.h"

namespace rillm {

struct ScaleFields {
  int num_halfs, num_bytes;  // per row
  int block_size, sub_size;  // weights that share the halfs / that share one scale
};

inline constexpr ScaleFields scale_fields(Scales scales) {
  switch (scales) {
    case Scales::G32:
      return {1, 0, 32, 32};
    case Scales::G32Min:
      return {2, 0, 32, 32};
    case Scales::K32Min:
      return {2, 12, 256, 32};
    case Scales::K32:
      return {1, 6, 256, 32};
    case Scales::K16I8:
      return {1, 16, 256, 16};
    case Scales::K16S6:
      return {1, 12, 256, 16};
    case Scales::K16Min4:
      return {2, 16, 256, 16};
    case Scales::None:
      break;
  }
  return {0, 0, 1, 1};
}
inline constexpr int scale_bytes(Scales scales) {
  const ScaleFields fields = scale_fields(scales);
  return Tile::kRows * (2 * fields.num_halfs + fields.num_bytes);
}

template <Scales scales>
class ScaleReader {
 public:
  static constexpr ScaleFields kFields = scale_fields(scales);
  static constexpr bool kHasMin = kFields.num_halfs == 2;

  explicit ScaleReader(const uint8_t* data)
      : bytes_(data + 2 * kFields.num_halfs * Tile::kRows), d_(half(data, 0)) {
    if constexpr (kHasMin) m_ = half(data, 1);
  }

  Tile::F scale(int sub) const {
    if constexpr (kFields.num_bytes == 0) return d_;
    return Tile::mul(d_, Tile::to_float(scale_code(sub)));
  }
  // What is added to scale * code. Q4_1 stores it; the K-quants store what is subtracted.
  Tile::F min(int sub) const {
    if constexpr (kFields.num_bytes == 0) return m_;
    return Tile::mul(Tile::sub(Tile::zero(), m_), Tile::to_float(min_code(sub)));
  }

  // The parts of the above: the block's floats, and the integers of sub-block `sub`.
  const Tile::F& d() const { return d_; }
  const Tile::F& m() const { return m_; }
  Tile::I scale_code(int sub) const {
    if constexpr (scales == Scales::K32Min) {
      if (sub < 4) return Tile::iand(byte(sub), 63);
      return Tile::ior(Tile::iand(byte(sub + 4), 15),
                       Tile::template ishl<4>(Tile::template ishr<6>(byte(sub - 4))));
    } else if constexpr (scales == Scales::K32) {
      const Tile::I pair = byte(sub / 2);
      const Tile::I low = Tile::iand(sub % 2 ? Tile::template ishr<4>(pair) : pair, 15);
      const Tile::I high = two_bits(byte(4 + sub / 4), sub % 4);
      return Tile::isub(Tile::ior(low, Tile::template ishl<4>(high)), Tile::iset1(32));
    } else if constexpr (scales == Scales::K16I8) {
      return Tile::iload_i8(bytes_ + sub * Tile::kRows);
    } else if constexpr (scales == Scales::K16S6) {
      const Tile::I pair = byte(sub % 8);
      const Tile::I low = Tile::iand(sub < 8 ? pair : Tile::template ishr<4>(pair), 15);
      const Tile::I high = two_bits(byte(8 + sub % 4), sub / 4);
      return Tile::isub(Tile::ior(low, Tile::template ishl<4>(high)), Tile::iset1(32));
    } else {
      return Tile::iand(byte(sub), 15);  // K16Min4
    }
  }
  Tile::I min_code(int sub) const {
    if constexpr (scales == Scales::K32Min) {
      if (sub < 4) return Tile::iand(byte(sub + 4), 63);
      return Tile::ior(Tile::template ishr<4>(byte(sub + 4)),
                       Tile::template ishl<4>(Tile::template ishr<6>(byte(sub))));
    } else {
      return Tile::template ishr<4>(byte(sub));  // K16Min4
    }
  }

 private:
  static Tile::F half(const uint8_t* data, int index) {
    return Tile::load_half(reinterpret_cast<const uint16_t*>(data) + index * Tile::kRows);
  }
  Tile::I byte(int index) const { return Tile::iload_u8(bytes_ + index * Tile::kRows); }

  static Tile::I two_bits(Tile::I a, int place) {
    switch (place) {
      case 0:
        return Tile::iand(a, 3);
      case 1:
        return Tile::iand(Tile::template ishr<2>(a), 3);
      case 2:
        return Tile::iand(Tile::template ishr<4>(a), 3);
      default:
        return Tile::template ishr<6>(a);
    }
  }

  const uint8_t* bytes_;
  Tile::F d_, m_;
};

}  // namespace rillm
