// GGUF blocks -> row tiles (layouts/packed_matrix.h) of any variant. Runs when a model is loaded or
// a packed file is written.
#pragma once

#include "core.h"
#include "layouts/layout.h"
#include "thread_team.h"

namespace rillm {

inline int64_t bytes_of_row(const Format& format, int64_t cols) {
  return cols / format.block_size * format.block_bytes;
}

// Bytes of a matrix [rows, cols] that is packed: its last tile is padded with rows of zeros.
int64_t packed_bytes(const Layout& layout, const Format& format, int64_t rows, int64_t cols);

// num_rows rows of `cols` weights -> one tile. Rows beyond num_rows are left as they are.
void pack_tile(const Layout& layout, const Format& format, const uint8_t* rows, int64_t cols,
               int num_rows, uint8_t* to);

// A whole matrix, into packed_bytes bytes of zeros, on all threads of the team: a thread packs (and
// so first touches) the tiles that it will multiply. `tensor` was checked.
void pack_matrix(ThreadTeam& team, const Layout& layout, const Format& format,
                 const CoreTensor& tensor, uint8_t* to);

}  // namespace rillm
