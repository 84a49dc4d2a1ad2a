// Q6_K: 256 weights in 210 bytes, sub-blocks of 16. w = d * scale * (code - 32)
//
//     0 low 4 bits of the codes (k_planes.h)[128] | 128 bits 4 and 5 [64] | 192 int8 scale [16] |
//     208 half d
#include "formats/functions.h"
#include "formats/k_planes.h"
#include "formats/scale_search.h"
#include "formats/sub_scales.h"

namespace rillm::q6_k {

void unpack(const uint8_t* block, uint8_t* codes, BlockScales* scales) {
  scales->half[0] = load_u16(block + 208);
  std::memcpy(scales->bytes, block + 192, 16);
  unpack_low_bits<64>(block, codes);
  add_bits<2>(block + 128, 4, codes);
}

void dequantize(const uint8_t* blocks, float* out, int64_t num_weights) {
  dequantize_blocks<Scales::K16I8, kSuperBlock, 210, 32>(unpack, blocks, out, num_weights);
}

namespace {

constexpr UniformGrid kGrid{-32.0f, 31.0f};
constexpr float kTargets[] = {-33.25f, -33.0f, -32.75f, -32.5f, -32.25f, -32.0f, -31.75f, -31.5f,
                              -31.25f, -31.0f, -30.75f, -30.5f, 30.0f,   30.25f, 30.5f,   30.75f,
                              31.0f,   31.25f, 31.5f,   31.75f, 32.0f,   32.25f, 32.5f,   32.75f};

void encode(const SubBlocks<16>& subs, uint8_t* block) {
  SuperScale super;
  search_super_scale(subs, kGrid, kTargets, -128.0f, 127.0f, &super);
  uint8_t codes[kLanes * 16];
  round_codes(subs, kGrid, super.rounded, codes);
  pack_low_bits<64>(codes, block);
  pack_bits<2>(codes, 4, block + 128);
  std::memcpy(block + 192, super.scale, 16);
  store_half(block + 208, super.d[0]);
}

}  // namespace

void quantize(const float* weights, const float* importance, uint8_t* blocks, int64_t num_weights,
              int64_t row_length) {
  quantize_groups<kSuperBlock, 210, 16>(weights, importance, blocks, num_weights, row_length,
                                        encode);
}

}  // namespace rillm::q6_k
