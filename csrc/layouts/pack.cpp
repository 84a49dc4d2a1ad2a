#include "layouts/pack.h"

#include <algorithm>
#include <cstring>

#include "layouts/planes.h"
#include "layouts/scales.h"

namespace rillm {
namespace {

constexpr int kMaxBlock = 256;

// For tiles of `rows` rows whose units have kGroup columns, stored column after column (or row
// after row).
template <int kGroup, bool kColumnMajor>
struct Packer {
  const int rows;

  // The bits from kFrom on of a row's 32 codes, to its places in a plane of kBits bits. Eight codes
  // are masked and shifted together, in the bytes of a word; then the units of a vector that lie in
  // one word are laid over the first of them.
  template <int kBits, int kFrom>
  void pack_plane(const uint8_t* codes, int row, uint8_t* plane) const {
    constexpr int kPerVector = 8 / kBits, kPerWord = std::min(kPerVector, 8 / kGroup);
    constexpr int kBytes = kPerWord * kGroup;  // of a word that one vector gets
    constexpr uint64_t kMask = ~uint64_t{0} / 255 * ((1 << kBits) - 1);
    for (int vector = 0; vector < kStrip / kGroup / kPerVector; vector += 8 / kBytes) {
      uint64_t words = 0, packed = 0;
      for (int unit = 0; unit < kPerVector; unit += kPerWord, codes += 8) {
        uint64_t word;
        std::memcpy(&word, codes, sizeof word);
        words |= (word >> kFrom & kMask) << (kBits * unit);
      }
      for (int i = 0; i < kPerWord; ++i) packed |= words >> (8 * kGroup * i) << (kBits * i);
      for (int byte = 0; byte < 8; byte += kBytes, plane += rows * kGroup) {
        const uint64_t unit = packed >> (8 * byte);
        if constexpr (kColumnMajor) {
          for (int k = 0; k < kGroup; ++k) {
            plane[k * rows + row] = static_cast<uint8_t>(unit >> (8 * k));
          }
        } else {
          std::memcpy(plane + row * kGroup, &unit, kGroup);
        }
      }
    }
  }

  // A row's 32 codes to its places in a strip of folded codes.
  template <int kBits>
  void pack_folded(const uint8_t* codes, int row, uint8_t* strip) const {
    using Fold = Folded<kBits>;
    for (int k = 0; k < kStrip;
         k += Fold::kUnits * kGroup, strip += Fold::kVectors * rows * kGroup) {
      for (int column = 0; column < kGroup; ++column) {
        uint8_t units[Fold::kUnits], bytes[Fold::kVectors];
        for (int i = 0; i < Fold::kUnits; ++i) {
          const int code = codes[k + i * kGroup + column];
          units[Fold::kNames[i]] = static_cast<uint8_t>(code ^ 1 << (kBits - 1));
        }
        if constexpr (kBits == 5) fold5(units, bytes);
        if constexpr (kBits == 6) fold6(units, bytes);
        for (int i = 0; i < Fold::kVectors; ++i) {
          strip[(i * kGroup + column) * rows + row] = bytes[i];
        }
      }
    }
  }

  // The row's part of a block of a tile.
  template <Codes kCodes>
  void pack_block(const Format& format, const uint8_t* block, int row, uint8_t* to) const {
    uint8_t codes[kMaxBlock];
    BlockScales scales;
    format.unpack(block, codes, &scales);

    const ScaleFields fields = scale_fields(format.scales);
    for (int i = 0; i < fields.num_halfs; ++i, to += 2 * rows) {
      std::memcpy(to + 2 * row, &scales.half[i], 2);
    }
    for (int i = 0; i < fields.num_bytes; ++i, to += rows) to[row] = scales.bytes[i];

    constexpr int kLow = low_bits(kCodes), kHigh = high_bits(kCodes);
    for (int k = 0; k < format.block_size; k += kStrip, to += rows * strip_row_bytes(kCodes)) {
      if constexpr (kCodes == Codes::I8) {  // unpack gives excess-128 codes
        for (int i = 0; i < kStrip; ++i) codes[k + i] ^= 0x80;
      }
      if constexpr (folds(kCodes, kColumnMajor)) {
        pack_folded<kLow + kHigh>(codes + k, row, to);
      } else {
        pack_plane<kLow, 0>(codes + k, row, to);
        if constexpr (kHigh > 0) {
          pack_plane<kHigh, kLow>(codes + k, row, to + rows * kStrip * kLow / 8);
        }
      }
    }
  }

  // Block after block, so that the tile is written front to back and what is being written is in
  // the nearest cache.
  template <Codes kCodes>
  void pack_blocks(const Format& format, const uint8_t* from, int64_t cols, int num_rows,
                   uint8_t* to) const {
    const int64_t num_blocks = cols / format.block_size,
                  row_bytes = num_blocks * format.block_bytes;
    for (int64_t block = 0; block < num_blocks; ++block) {
      for (int row = 0; row < num_rows; ++row) {
        pack_block<kCodes>(format, from + row * row_bytes, row, to);
      }
      from += format.block_bytes;
      to += int64_t{format.block_bytes} * rows;
    }
  }

  void pack(const Format& format, const uint8_t* from, int64_t cols, int num_rows,
            uint8_t* to) const {
    switch (format.codes) {
      case Codes::U4:
        return pack_blocks<Codes::U4>(format, from, cols, num_rows, to);
      case Codes::U4P1:
        return pack_blocks<Codes::U4P1>(format, from, cols, num_rows, to);
      case Codes::U4P2:
        return pack_blocks<Codes::U4P2>(format, from, cols, num_rows, to);
      case Codes::U2:
        return pack_blocks<Codes::U2>(format, from, cols, num_rows, to);
      case Codes::U2P1:
        return pack_blocks<Codes::U2P1>(format, from, cols, num_rows, to);
      case Codes::I8:
        return pack_blocks<Codes::I8>(format, from, cols, num_rows, to);
      case Codes::Lut4:
        return pack_blocks<Codes::Lut4>(format, from, cols, num_rows, to);
      case Codes::None:
        break;  // pack_floats
    }
  }
};

template <class Value>
void pack_floats(int rows, const uint8_t* from, int64_t cols, int num_rows, uint8_t* to) {
  for (int64_t col = 0; col < cols; ++col, to += sizeof(Value) * rows) {
    for (int row = 0; row < num_rows; ++row) {
      std::memcpy(to + row * sizeof(Value), from + (row * cols + col) * sizeof(Value),
                  sizeof(Value));
    }
  }
}

}  // namespace

int64_t packed_bytes(const Layout& layout, const Format& format, int64_t rows, int64_t cols) {
  return (rows + layout.rows - 1) / layout.rows * layout.rows * bytes_of_row(format, cols);
}

void pack_tile(const Layout& layout, const Format& format, const uint8_t* rows, int64_t cols,
               int num_rows, uint8_t* to) {
  if (format.codes == Codes::None) {
    if (format.block_bytes == 4)
      return pack_floats<uint32_t>(layout.rows, rows, cols, num_rows, to);
    return pack_floats<uint16_t>(layout.rows, rows, cols, num_rows, to);
  }
  const auto pack = [&]<int kGroup, bool kColumnMajor>() {
    Packer<kGroup, kColumnMajor>{layout.rows}.pack(format, rows, cols, num_rows, to);
  };
  if (!layout.column_major) return pack.template operator()<4, false>();
  if (layout.group == 1) return pack.template operator()<1, true>();
  if (layout.group == 2) return pack.template operator()<2, true>();
  return pack.template operator()<4, true>();
}

void pack_matrix(ThreadTeam& team, const Layout& layout, const Format& format,
                 const CoreTensor& tensor, uint8_t* to) {
  const auto* data = static_cast<const uint8_t*>(tensor.data);
  const int64_t row_bytes = bytes_of_row(format, tensor.cols);
  team.parallel([&](int thread) {
    team.for_chunks(thread, (tensor.rows + layout.rows - 1) / layout.rows, [&](int64_t tile) {
      const int64_t first = tile * layout.rows;
      const auto num_rows = static_cast<int>(std::min<int64_t>(layout.rows, tensor.rows - first));
      pack_tile(layout, format, data + first * row_bytes, tensor.cols, num_rows,
                to + first * row_bytes);
    });
  });
}

}  // namespace rillm
