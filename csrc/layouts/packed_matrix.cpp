#include "layouts/packed_matrix.h"

#include "layouts/pack.h"

namespace rillm {

PackedMatrix::PackedMatrix(const Format& source, int64_t num_rows, int64_t num_cols)
    : format(source),
      rows(num_rows),
      cols(num_cols),
      num_tiles((rows + Tile::kRows - 1) / Tile::kRows),
      tile_bytes(bytes_of_row(format, cols) * Tile::kRows) {}

PackedMatrix::PackedMatrix(ThreadTeam& team, const Format& source, const CoreTensor& tensor)
    : PackedMatrix(source, tensor.rows, tensor.cols) {
  memory = Memory(num_bytes());
  data = memory.data();
  pack_matrix(team, kOwnLayout, format, tensor, memory.data());
}

PackedMatrix::PackedMatrix(const Format& source, const CoreTensor& tensor)
    : PackedMatrix(source, tensor.rows, tensor.cols) {
  data = static_cast<const uint8_t*>(tensor.data);
}

}  // namespace rillm
