// Q3_K: 256 weights in 110 bytes, sub-blocks of 16. w = d * scale * (code - 4)
//
//     0 third bits of the codes (k_planes.h)[32] | 32 low 2 bits [64] | 96 scales
//     (sub_scales.h)[12] | 108 half d
#include "formats/functions.h"
#include "formats/k_planes.h"
#include "formats/scale_search.h"
#include "formats/sub_scales.h"

namespace rillm::q3_k {

void unpack(const uint8_t* block, uint8_t* codes, BlockScales* scales) {
  scales->half[0] = load_u16(block + 108);
  std::memcpy(scales->bytes, block + 96, 12);
  std::memset(codes, 0, kSuperBlock);
  add_bits<2>(block + 32, 0, codes);
  add_bits<1>(block, 2, codes);
}

void dequantize(const uint8_t* blocks, float* out, int64_t num_weights) {
  dequantize_blocks<Scales::K16S6, kSuperBlock, 110, 4>(unpack, blocks, out, num_weights);
}

namespace {

constexpr UniformGrid kGrid{-4.0f, 3.0f};
constexpr float kTargets[] = {-4.7f, -4.4f, -4.1f, -3.8f, -3.5f, 2.7f, 3.0f, 3.3f, 3.6f, 3.9f};

void encode(const SubBlocks<16>& subs, uint8_t* block) {
  SuperScale super;
  search_super_scale(subs, kGrid, kTargets, -32.0f, 31.0f, &super);
  uint8_t codes[kLanes * 16];
  round_codes(subs, kGrid, super.rounded, codes);
  pack_bits<1>(codes, 2, block);
  pack_bits<2>(codes, 0, block + 32);
  pack_k16_s6(super.scale, block + 96);
  store_half(block + 108, super.d[0]);
}

}  // namespace

void quantize(const float* weights, const float* importance, uint8_t* blocks, int64_t num_weights,
              int64_t row_length) {
  quantize_groups<kSuperBlock, 110, 16>(weights, importance, blocks, num_weights, row_length,
                                        encode);
}

}  // namespace rillm::q3_k
