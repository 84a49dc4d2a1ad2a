// A weight matrix [rows, cols] in the layout that this variant's matmul streams.
//
// Rows are cut into tiles of kRows rows (the last one padded with zeros). A tile is read front to
// back by one thread:
//
//   quantised:  block 0: scales (layouts/scales.h), strip 0, strip 1, ... (layouts/planes.h) |
//               block 1: ...                               (a block is 32 or 256 columns)
//   float:      column 0: kRows values | column 1: kRows values | ...
//
// The bytes per weight are those of the GGUF file.
#pragma once

#include "core.h"
#include "formats/format.h"
#include "memory.h"
#include "thread_team.h"

namespace rillm {

struct PackedMatrix {
  // Packs GGUF blocks. Throws std::bad_alloc. `tensor` was checked: known type, rows of whole
  // blocks, all bytes there.
  PackedMatrix(ThreadTeam& team, const Format& format, const CoreTensor& tensor);
  // Reads what was packed before, where it lies: tensor.data has num_bytes() bytes.
  PackedMatrix(const Format& format, const CoreTensor& packed);

  bool is_quantized() const { return format.codes != Codes::None; }
  const uint8_t* tile(int64_t index) const { return data + index * tile_bytes; }
  uint64_t num_bytes() const { return static_cast<uint64_t>(num_tiles * tile_bytes); }

  const Format& format;
  int64_t rows, cols, num_tiles, tile_bytes;
  const uint8_t* data;
  Memory memory;  // empty where `data` is another's

 private:
  PackedMatrix(const Format& format, int64_t rows, int64_t cols);
};

}  // namespace rillm
