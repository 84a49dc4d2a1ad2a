// The paged KV cache: keys and values of all layers, in blocks that sequences share.
//
//   [block][layer][keys, values][kv head][position in block][row of head_dim values]
//
// A block is one piece, so the kernel clears memory for it when the first sequence comes that far,
// a page at a time. (With layers outermost a block lies in as many pages as there are planes: every
// few thousand tokens a step waited until all of them, 2 MB each, were cleared.)
//
// A row is binary16 or GGUF Q8_0 blocks. The block size is a multiple of 16, so that the groups of
// keys that attention reads together never straddle two blocks.
#pragma once

#include <cstring>

#include "core.h"
#include "isa/simd.h"
#include "memory.h"
#include "unroll.h"

namespace rillm {

// What rows consist of: chunks of 32 values.
struct F16Chunk {
  static constexpr int kBytes = 64;
  RILLM_INLINE static void load(const uint8_t* chunk, float* values) {
    const auto* halfs = reinterpret_cast<const uint16_t*>(chunk);
    unroll<32 / Simd::kLanes>([&](auto i) RILLM_INLINE {
      Simd::store(values + i * Simd::kLanes, Simd::load_half(halfs + i * Simd::kLanes));
    });
  }
};

struct Q8Chunk {  // binary16 d, 32 int8
  static constexpr int kBytes = 34;
  RILLM_INLINE static void load(const uint8_t* chunk, float* values) {
    uint16_t half;
    std::memcpy(&half, chunk, 2);
    const auto d = Simd::set1_half(half);
    unroll<32 / Simd::kLanes>([&](auto i) RILLM_INLINE {
      constexpr int at = i * Simd::kLanes;
      Simd::store(values + at, Simd::mul(Simd::to_float(Simd::iload_i8(chunk + 2 + at)), d));
    });
  }
};

}  // namespace rillm

struct CoreCache {
  explicit CoreCache(const CoreCacheConfig& config);

  // Row of one slot (block * block_size + position) and head.
  uint8_t* row(int32_t layer, bool value, int64_t slot, int32_t head) const {
    const int64_t block = slot / config.block_size, position = slot % config.block_size;
    const int64_t plane = int64_t{2} * layer + value;
    return this->block(block) + plane * plane_bytes +
           (head * config.block_size + position) * row_bytes;
  }
  uint8_t* block(int64_t index) const { return memory.data() + index * block_bytes; }
  void store(const float* values, uint8_t* row) const;  // [head_dim] -> one row

  CoreCacheConfig config;
  int64_t row_bytes, plane_bytes, block_bytes;  // plane: keys or values of a layer in a block
  rillm::Memory memory;
};
