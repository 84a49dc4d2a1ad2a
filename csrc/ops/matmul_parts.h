// What the matmul kernels share. These three headers are parts of matmul.cpp: nothing else may
// include them, and what they define is local to it.
#pragma once

#include "layouts/planes.h"
#include "layouts/scales.h"
#include "ops/matmul.h"

namespace rillm {
namespace {

// How far ahead of its use a tile is asked for. The tile is one stream, and the hardware prefetcher
// follows it, but not across pages, and small cores have none worth the name.
constexpr int64_t kPrefetchBytes = 4096;

inline void prefetch(const uint8_t* from, int64_t num_bytes) {
  for (int64_t i = 0; i < num_bytes; i += 64) __builtin_prefetch(from + kPrefetchBytes + i);
}

// Stores one token's kRows sums, or the first `rows` of them in the last tile.
void store_rows(const Tile::F& sums, const MatmulOutput& out, int64_t token, int64_t row,
                int64_t rows) {
  float* y = out.y + token * out.stride + row;
  const float* residual = out.residual;
  if (residual != nullptr) residual += token * out.stride + row;
  const int64_t count = rows - row;
  if (count >= Tile::kRows) {
    if (out.bias == nullptr && residual == nullptr) return Tile::store(y, sums);
    const auto one = Tile::set1(1.0f);  // not every Tile has an add
    Tile::F total = sums;
    if (out.bias != nullptr) total = Tile::fma(Tile::load(out.bias + row), one, total);
    if (residual != nullptr) total = Tile::fma(Tile::load(residual), one, total);
    return Tile::store(y, total);
  }
  alignas(64) float values[Tile::kRows];
  Tile::store(values, sums);
  for (int64_t i = 0; i < count; ++i) {
    if (out.bias != nullptr) values[i] += out.bias[row + i];
    if (residual != nullptr) values[i] += residual[i];
    y[i] = values[i];
  }
}

}  // namespace
}  // namespace rillm
