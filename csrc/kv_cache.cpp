#include "kv_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "float16.h"
#include "formats/format.h"
#include "isa/simd.h"
#include "unroll.h"

using rillm::F16Chunk;
using rillm::Q8Chunk;
using rillm::Simd;

namespace {
constexpr int32_t kF16 = 1;
constexpr int kChunk = 32;
}  // namespace

CoreCache::CoreCache(const CoreCacheConfig& cache) : config(cache) {
  const bool is_half = config.ggml_type == kF16;
  row_bytes = config.head_dim / kChunk * (is_half ? F16Chunk::kBytes : Q8Chunk::kBytes);
  plane_bytes = int64_t{config.num_kv_heads} * config.block_size * row_bytes;
  // abi.cpp bounds the shape of a plane; with layers and blocks the product may overflow.
  constexpr int64_t kMaxBytes = int64_t{1} << 46;
  const int64_t num_planes = int64_t{2} * config.num_layers;
  if (plane_bytes > kMaxBytes / num_planes / config.num_blocks) throw std::bad_alloc();
  block_bytes = num_planes * plane_bytes;
  memory = rillm::Memory(static_cast<uint64_t>(config.num_blocks * block_bytes));
}

void CoreCache::store(const float* values, uint8_t* row) const {
  if (config.ggml_type == kF16) {
    for (int i = 0; i < config.head_dim; i += Simd::kLanes) {
      Simd::store_half(reinterpret_cast<uint16_t*>(row) + i, Simd::load(values + i));
    }
    return;
  }
  for (int i = 0; i < config.head_dim; i += kChunk, row += Q8Chunk::kBytes, values += kChunk) {
    float max = 0.0f;
    for (int k = 0; k < kChunk; ++k) max = std::fmax(max, std::fabs(values[k]));
    const uint16_t d = rillm::float_to_half(max / 127.0f);
    const float inverse = max > 0.0f ? 127.0f / max : 0.0f;
    std::memcpy(row, &d, 2);
    for (int k = 0; k < kChunk; ++k) {
      row[2 + k] = static_cast<uint8_t>(static_cast<int8_t>(std::lrintf(values[k] * inverse)));
    }
  }
}
