// Q2_K: 256 weights in 84 bytes, sub-blocks of 16. w = d * scale * code - dmin * min
//
//     0 scale | min << 4 [16] | 16 codes (k_planes.h)[64] | 80 half d | 82 half dmin
#include "formats/affine_search.h"
#include "formats/functions.h"
#include "formats/k_planes.h"
#include "formats/sub_scales.h"

namespace rillm::q2_k {

void unpack(const uint8_t* block, uint8_t* codes, BlockScales* scales) {
  scales->half[0] = load_u16(block + 80);
  scales->half[1] = load_u16(block + 82);
  std::memcpy(scales->bytes, block, 16);
  std::memset(codes, 0, kSuperBlock);
  add_bits<2>(block + 16, 0, codes);
}

void dequantize(const uint8_t* blocks, float* out, int64_t num_weights) {
  dequantize_blocks<Scales::K16Min4, kSuperBlock, 84, 0>(unpack, blocks, out, num_weights);
}

namespace {

void encode(const SubBlocks<16>& subs, uint8_t* block) {
  SuperAffine super;
  search_super_affine(subs, 3.0f, 15.0f, &super);
  uint8_t codes[kLanes * 16];
  round_affine_codes(subs, 3.0f, super.rounded_scale, super.rounded_min, codes);
  for (int i = 0; i < 16; ++i) {
    block[i] = static_cast<uint8_t>(super.scale[i] | super.min[i] << 4);
  }
  pack_bits<2>(codes, 0, block + 16);
  store_half(block + 80, super.d[0]);
  store_half(block + 82, super.dmin[0]);
}

}  // namespace

void quantize(const float* weights, const float* importance, uint8_t* blocks, int64_t num_weights,
              int64_t row_length) {
  quantize_groups<kSuperBlock, 84, 16>(weights, importance, blocks, num_weights, row_length,
                                       encode);
}

}  // namespace rillm::q2_k
