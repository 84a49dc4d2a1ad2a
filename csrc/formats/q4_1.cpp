// Q4_1: 32 weights in 20 bytes. w = d * code + m
//
//     0 half d | 2 half m | 4 codes as in Q4_0
#include "formats/affine_search.h"
#include "formats/functions.h"
#include "formats/sub_scales.h"

namespace rillm::q4_1 {

void unpack(const uint8_t* block, uint8_t* codes, BlockScales* scales) {
  scales->half[0] = load_u16(block);
  scales->half[1] = load_u16(block + 2);
  unpack_nibbles(block + 4, codes);
}

void dequantize(const uint8_t* blocks, float* out, int64_t num_weights) {
  dequantize_blocks<Scales::G32Min, 32, 20, 0>(unpack, blocks, out, num_weights);
}

namespace {

void encode(const SubBlocks<32>& subs, uint8_t* block) {
  Lanes scale, min;
  const Effort effort = subs.has_importance ? Effort::Full : Effort::Quick;
  search_half_affine(subs, 15.0f, effort, &scale, &min);
  uint8_t codes[kLanes * 32];
  round_affine_codes(subs, 15.0f, scale, min, codes);
  for (int lane = 0; lane < kLanes; ++lane, block += 20) {
    store_half(block, scale[lane]);
    store_half(block + 2, min[lane]);
    pack_nibbles(codes + lane * 32, block + 4);
  }
}

}  // namespace

void quantize(const float* weights, const float* importance, uint8_t* blocks, int64_t num_weights,
              int64_t row_length) {
  quantize_groups<32, 20, 32>(weights, importance, blocks, num_weights, row_length, encode);
}

}  // namespace rillm::q4_1
