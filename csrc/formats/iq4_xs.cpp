// IQ4_XS: 256 weights in 136 bytes, sub-blocks of 32. w = d * scale * kIq4Values[code]
//
//     0 half d | 2 high bits of the scales [2] | 4 their low bits (sub_scales.h)[4] |
//     8 codes [128]: 16 bytes a sub-block, as in Q4_0
#include "formats/functions.h"
#include "formats/scale_search.h"
#include "formats/sub_scales.h"

namespace rillm::iq4_xs {

void unpack(const uint8_t* block, uint8_t* codes, BlockScales* scales) {
  scales->half[0] = load_u16(block);
  std::memcpy(scales->bytes, block + 4, 4);
  std::memcpy(scales->bytes + 4, block + 2, 2);
  for (int s = 0; s < 8; ++s) unpack_nibbles(block + 8 + 16 * s, codes + 32 * s);
}

void dequantize(const uint8_t* blocks, float* out, int64_t num_weights) {
  dequantize_blocks<Scales::K32, kSuperBlock, 136, -1>(unpack, blocks, out, num_weights);
}

namespace {

constexpr Iq4Grid kGrid{};
constexpr float kTargets[] = {-140.0f, -135.0f, -130.0f, -127.0f, -124.0f, -120.0f,
                              -115.0f, -110.0f, 98.0f,   102.0f,  106.0f,  110.0f,
                              113.0f,  116.0f,  120.0f,  125.0f};

void encode(const SubBlocks<32>& subs, uint8_t* block) {
  SuperScale super;
  search_super_scale(subs, kGrid, kTargets, -32.0f, 31.0f, &super);
  uint8_t codes[kLanes * 32];
  round_codes(subs, kGrid, super.rounded, codes);
  for (int s = 0; s < 2; ++s, block += 136) {
    uint8_t scales[6];
    pack_k32(super.scale + 8 * s, scales);
    store_half(block, super.d[s]);
    std::memcpy(block + 2, scales + 4, 2);
    std::memcpy(block + 4, scales, 4);
    for (int i = 0; i < 8; ++i) {
      pack_nibbles(codes + kSuperBlock * s + 32 * i, block + 8 + 16 * i);
    }
  }
}

}  // namespace

void quantize(const float* weights, const float* importance, uint8_t* blocks, int64_t num_weights,
              int64_t row_length) {
  quantize_groups<kSuperBlock, 136, 32>(weights, importance, blocks, num_weights, row_length,
                                        encode);
}

}  // namespace rillm::iq4_xs
