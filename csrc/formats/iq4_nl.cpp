// IQ4_NL: 32 weights in 18 bytes. w = d * kIq4Values[code]
//
//     0 half d | 2 codes as in Q4_0
#include "formats/functions.h"
#include "formats/scale_search.h"
#include "formats/sub_scales.h"

namespace rillm::iq4_nl {

void unpack(const uint8_t* block, uint8_t* codes, BlockScales* scales) {
  scales->half[0] = load_u16(block);
  unpack_nibbles(block + 2, codes);
}

void dequantize(const uint8_t* blocks, float* out, int64_t num_weights) {
  dequantize_blocks<Scales::G32, 32, 18, -1>(unpack, blocks, out, num_weights);
}

namespace {

constexpr Iq4Grid kGrid{};
constexpr float kTargets[] = {-140.0f, -135.0f, -130.0f, -127.0f, -124.0f, -120.0f,
                              -115.0f, -110.0f, 98.0f,   102.0f,  106.0f,  110.0f,
                              113.0f,  116.0f,  120.0f,  125.0f};

void encode(const SubBlocks<32>& subs, uint8_t* block) {
  Lanes scale;
  search_half_scale(subs, kGrid, kTargets, &scale);
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

}  // namespace rillm::iq4_nl
