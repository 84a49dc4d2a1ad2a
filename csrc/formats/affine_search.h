// Finds scale and min of sub-blocks in x ~ scale * q + min, q an integer in [0, high].
#pragma once

#include "formats/lanes.h"

namespace rillm {

// Quick: two ranges of codes and the nearest halfs. Full: 26 ranges, and the neighbours of the
// halfs.
enum class Effort { Quick, Full };

// Scale and min of each lane, as halfs.
template <int kSize>
void search_half_affine(const SubBlocks<kSize>& subs, float high, Effort effort, Lanes* scale,
                        Lanes* min);

struct SuperAffine {
  float d[2], dmin[2];                 // halfs, one for each super-block of the group
  uint8_t scale[kLanes], min[kLanes];  // sub-block scale = d * scale, min = -(dmin * min)
  Lanes rounded_scale, rounded_min;    // those products
};

// Super-blocks of 256 weights; min <= 0, integer scales and mins in [0, limit].
template <int kSize>
void search_super_affine(const SubBlocks<kSize>& subs, float high, float limit, SuperAffine* out);

// Codes in weight order: [lane][kSize].
template <int kSize>
void round_affine_codes(const SubBlocks<kSize>& subs, float high, const Lanes& scale,
                        const Lanes& min, uint8_t* codes);

}  // namespace rillm
