// Q4_0: 32 weights in 18 bytes. w = d * (code - 8)
//
//     0 half d | 2 codes: the low 4 bits of byte i are code i, the high ones code i + 16
#include "formats/functions.h"
#include "formats/scale_search.h"
#include "formats/sub_scales.h"

namespace rillm::q4_0 {

void unpack(const uint8_t* block, uint8_t* codes, BlockScales* scales) {
  scales->half[0] = load_u16(block);
  unpack_nibbles(block + 2, codes);
}

void dequantize(const uint8_t* blocks, float* out, int64_t num_weights) {
  dequantize_blocks<Scales::G32, 32, 18, 8>(unpack, blocks, out, num_weights);
}

namespace {

constexpr UniformGrid kGrid{-8.0f, 7.0f};
// Where the largest weight may come to lie; of either sign, for there is one more code below 0.
constexpr float kTargets[] = {-8.6f, -8.4f, -8.2f, -8.0f, -7.8f, -7.6f, -7.4f, -7.2f,
                              6.4f,  6.6f,  6.8f,  7.0f,  7.2f,  7.4f,  7.6f,  7.8f};
constexpr float kQuickTargets[] = {-8.4f, -7.6f};

void encode(const SubBlocks<32>& subs, uint8_t* block) {
  Lanes scale;
  if (subs.has_importance) {
    search_half_scale(subs, kGrid, kTargets, &scale);
  } else {
    quick_half_scale(subs, kGrid, kQuickTargets, &scale);
  }
  uint8_t codes[kLanes * 32];
  round_codes(subs, kGrid, scale, codes);
  for (int lane = 0; lane < kLanes; ++lane, block += 18) {
    store_half(block, scale[lane]);
    pack_nibbles(codes + lane * 32, block + 2);
  }
}

}  // namespace

void quantize(const float* weights, const float* importance, uint8_t* blocks, int64_t num_weights,
              int64_t row_length) {
  quantize_groups<32, 18, 32>(weights, importance, blocks, num_weights, row_length, encode);
}

}  // namespace rillm::q4_0
