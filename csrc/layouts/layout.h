// The shape of a variant's row tiles: all that the packed form of a matrix depends on.
//
// Packing is plain integers, so any build can pack for any variant: a workstation for a board.
#pragma once

#include <cstdint>

#include "formats/format.h"
#include "isa/simd.h"

namespace rillm {

struct Layout {
  int rows, group;    // Tile::kRows, Tile::kGroup
  bool column_major;  // Tile::kColumnMajor
  bool operator==(const Layout&) const = default;
};

inline constexpr Layout kOwnLayout{Tile::kRows, Tile::kGroup, Tile::kColumnMajor};

// The layout of a row of isa/variants.cmake, whichever processor it is for; null for other names.
const Layout* find_layout(const char* variant);

// A number for the packed bytes that a format's weights become, made by packing some: it changes
// with the order of any byte, so no version has to be kept by hand.
uint64_t layout_id(const Layout& layout, const Format& format);

}  // namespace rillm
