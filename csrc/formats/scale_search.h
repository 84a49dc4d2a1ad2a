// Finds the scale of sub-blocks in x ~ scale * q, with q from a grid of values (least squares).
#pragma once

#include <span>

#include "formats/lanes.h"

namespace rillm {

// q is an integer in [low, high]; its code is q - low.
struct UniformGrid {
  float low, high;
};
// q is one of kIq4Values; its code is the index.
struct Iq4Grid {};

// The scales of blocks that hold one as a half. Tries inverse scales that put the largest weight of
// a lane on each of `targets`, with the scale that least squares gives for the codes; then rounds
// once more by the best, and takes the nearest half or a neighbour if that gives less error.
template <int kSize, class Grid>
void search_half_scale(const SubBlocks<kSize>& subs, const Grid& grid,
                       std::span<const float> targets, Lanes* scale);

// The same without the second rounding and the neighbours: for few targets, in a fraction of the
// time.
template <int kSize, class Grid>
void quick_half_scale(const SubBlocks<kSize>& subs, const Grid& grid,
                      std::span<const float> targets, Lanes* scale);

struct SuperScale {
  float d[2];            // halfs, one for each super-block of the group
  int8_t scale[kLanes];  // sub-block scale = d * scale
  Lanes rounded;         // that product
};

// Searches as search_half_scale does, for super-blocks of 256 weights whose sub-blocks share a half
// d and hold integer scales in [low, high].
template <int kSize, class Grid>
void search_super_scale(const SubBlocks<kSize>& subs, const Grid& grid,
                        std::span<const float> targets, float low, float high, SuperScale* out);

// Codes in weight order: [lane][kSize].
template <int kSize, class Grid>
void round_codes(const SubBlocks<kSize>& subs, const Grid& grid, const Lanes& scale,
                 uint8_t* codes);

}  // namespace rillm
