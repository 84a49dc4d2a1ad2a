#include "layouts/layout.h"

#include <algorithm>
#include <string_view>
#include <vector>

#include "layouts/pack.h"

namespace rillm {
namespace {

struct Row {
  std::string_view variant;
  Layout layout;
};

constexpr Row kRows[] = {
    {"scalar", {4, 4, false}},         {"x86_avx2", {8, 4, false}},
    {"x86_avx512", {16, 4, false}},    {"x86_amx", {16, 4, false}},
    {"riscv_rvv128", {64, 1, true}},   {"riscv_rvv128_f16", {64, 1, true}},
    {"riscv_rvv256", {128, 1, true}},  {"riscv_rvv256_f16", {128, 1, true}},
    {"riscv_rvv512", {128, 2, true}},  {"riscv_rvv512_f16", {128, 2, true}},
    {"riscv_rvv1024", {128, 4, true}}, {"riscv_rvv1024_f16", {128, 4, true}},
    {"riscv_xthead", {64, 1, true}},
};

constexpr const Layout* find(std::string_view variant) {
  for (const Row& row : kRows) {
    if (row.variant == variant) return &row.layout;
  }
  return nullptr;
}
static_assert(find(RILLM_VARIANT) != nullptr && *find(RILLM_VARIANT) == kOwnLayout,
              "the table above must have the tile of every variant");

}  // namespace

const Layout* find_layout(const char* variant) { return find(variant); }

uint64_t layout_id(const Layout& layout, const Format& format) {
  // Two blocks of every row of a tile, of bytes that repeat nowhere (a linear congruential series).
  const int64_t cols = 2 * std::max(format.block_size, 32);
  const int64_t row_bytes = cols / format.block_size * format.block_bytes;
  std::vector<uint8_t> blocks(static_cast<size_t>(layout.rows * row_bytes)), packed(blocks.size());
  uint32_t state = 1;
  for (uint8_t& byte : blocks)
    byte = static_cast<uint8_t>((state = state * 1664525 + 1013904223) >> 24);
  pack_tile(layout, format, blocks.data(), cols, layout.rows, packed.data());
  uint64_t hash = 14695981039346656037u;  // FNV-1a
  const auto add = [&](uint8_t byte) { hash = (hash ^ byte) * 1099511628211u; };
  add(static_cast<uint8_t>(format.ggml_type));
  add(static_cast<uint8_t>(layout.rows));
  for (const uint8_t byte : packed) add(byte);
  return hash;
}

}  // namespace rillm
