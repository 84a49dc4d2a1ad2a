// Q5_0: 32 weights in 22 bytes. w = d * (code - 16)
//
//     0 half d | 2 fifth bits: bit i of a 32-bit word is of code i | 6 low 4 bits as in Q4_0
#include "formats/functions.h"
#include "formats/scale_search.h"
#include "formats/sub_scales.h"

namespace rillm::q5_0 {

void unpack(const uint8_t* block, uint8_t* codes, BlockScales* scales) {
  scales->half[0] = load_u16(block);
  unpack_nibbles(block + 6, codes, load_u32(block + 2));
}

void dequantize(const uint8_t* blocks, float* out, int64_t num_weights) {
  dequantize_blocks<Scales::G32, 32, 22, 16>(unpack, blocks, out, num_weights);
}

namespace {

constexpr UniformGrid kGrid{-16.0f, 15.0f};
// Where the largest weight may come to lie; of either sign, for there is one more code below 0.
constexpr float kTargets[] = {-16.6f, -16.4f, -16.2f, -16.0f, -15.8f, -15.6f, -15.4f, -15.2f,
                              14.4f,  14.6f,  14.8f,  15.0f,  15.2f,  15.4f,  15.6f,  15.8f};
constexpr float kQuickTargets[] = {-16.0f, 15.0f};

void encode(const SubBlocks<32>& subs, uint8_t* block) {
  Lanes scale;
  if (subs.has_importance) {
    search_half_scale(subs, kGrid, kTargets, &scale);
  } else {
    quick_half_scale(subs, kGrid, kQuickTargets, &scale);
  }
  uint8_t codes[kLanes * 32];
  round_codes(subs, kGrid, scale, codes);
  for (int lane = 0; lane < kLanes; ++lane, block += 22) {
    store_half(block, scale[lane]);
    store_u32(block + 2, pack_fifth_bits(codes + lane * 32));
    pack_nibbles(codes + lane * 32, block + 6);
  }
}

}  // namespace

void quantize(const float* weights, const float* importance, uint8_t* blocks, int64_t num_weights,
              int64_t row_length) {
  quantize_groups<32, 22, 32>(weights, importance, blocks, num_weights, row_length, encode);
}

}  // namespace rillm::q5_0
