#include "layouts/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "layouts/planes.h"
#include "layouts/scales.h"

namespace rillm {
namespace {

constexpr int kMaxBlock = 256;

// The bits from kFrom on of a row's 32 codes, to its places in a plane of kBits bits. Eight codes
// are masked and shifted together, in the bytes of a word; then the units of a vector that lie in
// one word are laid over the first of them.
template <int kBits, int kFrom>
void pack_plane(const uint8_t* codes, int row, uint8_t* plane) {
  constexpr int kPerVector = 8 / kBits, kPerWord = std::min(kPerVector, 8 / Tile::kGroup);
  constexpr int kBytes = kPerWord * Tile::kGroup;  // of a word that one vector gets
  constexpr uint64_t kMask = ~uint64_t{0} / 255 * ((1 << kBits) - 1);
  for (int vector = 0; vector < kUnits / kPerVector; vector += 8 / kBytes) {
    uint64_t words = 0, packed = 0;
    for (int unit = 0; unit < kPerVector; unit += kPerWord, codes += 8) {
      uint64_t word;
      std::memcpy(&word, codes, sizeof word);
      words |= (word >> kFrom & kMask) << (kBits * unit);
    }
    for (int i = 0; i < kPerWord; ++i) packed |= words >> (8 * Tile::kGroup * i) << (kBits * i);
    for (int byte = 0; byte < 8; byte += kBytes, plane += kUnitBytes) {
      const uint64_t unit = packed >> (8 * byte);
      if constexpr (Tile::kColumnMajor) {
        for (int k = 0; k < Tile::kGroup; ++k) {
          plane[unit_byte(row, k)] = static_cast<uint8_t>(unit >> (8 * k));
        }
      } else {
        std::memcpy(plane + unit_byte(row, 0), &unit, Tile::kGroup);
      }
    }
  }
}

// The row's part of a block of a tile.
template <Codes kCodes>
void pack_block(const Format& format, const uint8_t* block, int row, uint8_t* to) {
  uint8_t codes[kMaxBlock];
  BlockScales scales;
  format.unpack(block, codes, &scales);

  const ScaleFields fields = scale_fields(format.scales);
  for (int i = 0; i < fields.num_halfs; ++i, to += 2 * Tile::kRows) {
    std::memcpy(to + 2 * row, &scales.half[i], 2);
  }
  for (int i = 0; i < fields.num_bytes; ++i, to += Tile::kRows) to[row] = scales.bytes[i];

  constexpr int kLow = low_bits(kCodes), kHigh = high_bits(kCodes);
  for (int k = 0; k < format.block_size; k += kStrip, to += strip_bytes(kCodes)) {
    if constexpr (kCodes == Codes::I8) {  // unpack gives excess-128 codes
      for (int i = 0; i < kStrip; ++i) codes[k + i] ^= 0x80;
    }
    pack_plane<kLow, 0>(codes + k, row, to);
    if constexpr (kHigh > 0) {
      pack_plane<kHigh, kLow>(codes + k, row, to + Tile::kRows * kStrip * kLow / 8);
    }
  }
}

// Block after block, so that the tile is written front to back and what is being written is in the
// nearest cache.
template <Codes kCodes>
void pack_blocks(const Format& format, const uint8_t* rows, int64_t cols, int num_rows,
                 uint8_t* to) {
  const int64_t num_blocks = cols / format.block_size, row_bytes = num_blocks * format.block_bytes;
  for (int64_t block = 0; block < num_blocks; ++block) {
    for (int row = 0; row < num_rows; ++row) {
      pack_block<kCodes>(format, rows + row * row_bytes, row, to);
    }
    rows += format.block_bytes;
    to += packed_block_bytes(format);
  }
}

template <class Value>
void pack_floats(const uint8_t* rows, int64_t cols, int num_rows, uint8_t* to) {
  for (int64_t col = 0; col < cols; ++col, to += sizeof(Value) * Tile::kRows) {
    for (int row = 0; row < num_rows; ++row) {
      std::memcpy(to + row * sizeof(Value), rows + (row * cols + col) * sizeof(Value),
                  sizeof(Value));
    }
  }
}

void pack_tile(const Format& format, const uint8_t* rows, int64_t cols, int num_rows, uint8_t* to) {
  switch (format.codes) {
    case Codes::U4:
      return pack_blocks<Codes::U4>(format, rows, cols, num_rows, to);
    case Codes::U4P1:
      return pack_blocks<Codes::U4P1>(format, rows, cols, num_rows, to);
    case Codes::U4P2:
      return pack_blocks<Codes::U4P2>(format, rows, cols, num_rows, to);
    case Codes::U2:
      return pack_blocks<Codes::U2>(format, rows, cols, num_rows, to);
    case Codes::U2P1:
      return pack_blocks<Codes::U2P1>(format, rows, cols, num_rows, to);
    case Codes::I8:
      return pack_blocks<Codes::I8>(format, rows, cols, num_rows, to);
    case Codes::Lut4:
      return pack_blocks<Codes::Lut4>(format, rows, cols, num_rows, to);
    case Codes::None:
      if (format.block_bytes == 4) return pack_floats<uint32_t>(rows, cols, num_rows, to);
      return pack_floats<uint16_t>(rows, cols, num_rows, to);
  }
}

}  // namespace

int64_t packed_block_bytes(const Format& format) {
  return scale_bytes(format.scales) + format.block_size / kStrip * strip_bytes(format.codes);
}

PackedMatrix::PackedMatrix(ThreadTeam* team, const Format& source, const CoreTensor& tensor)
    : format(source), rows(tensor.rows), cols(tensor.cols) {
  const int64_t blocks_per_row = cols / format.block_size;
  const int64_t row_bytes = blocks_per_row * format.block_bytes;
  const int64_t block_bytes =
      is_quantized() ? packed_block_bytes(format) : int64_t{format.block_bytes} * Tile::kRows;
  num_tiles = (rows + Tile::kRows - 1) / Tile::kRows;
  tile_bytes = blocks_per_row * block_bytes;
  memory = Memory(static_cast<uint64_t>(num_tiles * tile_bytes));

  const auto* data = static_cast<const uint8_t*>(tensor.data);
  team->parallel([&](int thread) {
    team->for_chunks(thread, num_tiles, [&](int64_t tile) {
      const int64_t first = tile * Tile::kRows;
      const auto num_rows = static_cast<int>(std::min<int64_t>(Tile::kRows, rows - first));
      pack_tile(format, data + first * row_bytes, cols, num_rows,
                memory.data() + tile * tile_bytes);
    });
  });
}

}  // namespace rillm
