// The paged KV cache: keys and values of all layers, in blocks that sequences share.
//
//   [layer][keys, values][block][kv head][position in block][row of head_dim values]
//
// A row is binary16 or GGUF Q8_0 blocks. The block size is a multiple of 16, so that the groups of
// keys that attention reads together never straddle two blocks.
#pragma once

#include "core.h"
#include "memory.h"

struct CoreCache {
  explicit CoreCache(const CoreCacheConfig& config);

  // Row of one slot (block * block_size + position) and head.
  uint8_t* row(int32_t layer, bool value, int64_t slot, int32_t head) const {
    const int64_t block = slot / config.block_size, position = slot % config.block_size;
    return plane(layer, value) + block * plane_block_bytes +
           (head * config.block_size + position) * row_bytes;
  }
  uint8_t* plane(int32_t layer, bool value) const {
    return memory.data() + (int64_t{2} * layer + value) * config.num_blocks * plane_block_bytes;
  }
  void store(const float* values, uint8_t* row) const;  // [head_dim] -> one row
  // Rows of a head that follow one another in a block -> [num_rows, head_dim].
  void load(const uint8_t* rows, int32_t num_rows, float* values) const;

  CoreCacheConfig config;
  int64_t row_bytes, plane_block_bytes;
  rillm::Memory memory;
};
