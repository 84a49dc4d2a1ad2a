// Q5_K: 256 weights in 176 bytes, sub-blocks of 32. w = d * scale * code - dmin * min
//
//     0 half d | 2 half dmin | 4 scales and mins (sub_scales.h)[12] | 16 fifth bits
//     (k_planes.h)[32] | 48 low 4 bits [128]
#include "formats/affine_search.h"
#include "formats/functions.h"
#include "formats/k_planes.h"
#include "formats/sub_scales.h"

namespace rillm::q5_k {

void unpack(const uint8_t* block, uint8_t* codes, BlockScales* scales) {
  scales->half[0] = load_u16(block);
  scales->half[1] = load_u16(block + 2);
  std::memcpy(scales->bytes, block + 4, 12);
  unpack_low_bits<32>(block + 48, codes);
  add_bits<1>(block + 16, 4, codes);
}

void dequantize(const uint8_t* blocks, float* out, int64_t num_weights) {
  dequantize_blocks<Scales::K32Min, kSuperBlock, 176, 0>(unpack, blocks, out, num_weights);
}

namespace {

void encode(const SubBlocks<32>& subs, uint8_t* block) {
  SuperAffine super;
  search_super_affine(subs, 31.0f, 63.0f, &super);
  uint8_t codes[kLanes * 32];
  round_affine_codes(subs, 31.0f, super.rounded_scale, super.rounded_min, codes);
  for (int s = 0; s < 2; ++s, block += 176) {
    store_half(block, super.d[s]);
    store_half(block + 2, super.dmin[s]);
    pack_k32_min(super.scale + 8 * s, super.min + 8 * s, block + 4);
    pack_bits<1>(codes + kSuperBlock * s, 4, block + 16);
    pack_low_bits<32>(codes + kSuperBlock * s, block + 48);
  }
}

}  // namespace

void quantize(const float* weights, const float* importance, uint8_t* blocks, int64_t num_weights,
              int64_t row_length) {
  quantize_groups<kSuperBlock, 176, 32>(weights, importance, blocks, num_weights, row_length,
                                        encode);
}

}  // namespace rillm::q5_k
