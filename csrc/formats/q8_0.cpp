// Q8_0: 32 weights in 34 bytes. w = d * q
//
//     0 half d | 2 int8 q[32]
#include "formats/functions.h"
#include "formats/scale_search.h"
#include "formats/sub_scales.h"

namespace rillm::q8_0 {

void unpack(const uint8_t* block, uint8_t* codes, BlockScales* scales) {
  scales->half[0] = load_u16(block);
  for (int i = 0; i < 32; ++i) codes[i] = block[2 + i] ^ 0x80;
}

void dequantize(const uint8_t* blocks, float* out, int64_t num_weights) {
  dequantize_blocks<Scales::G32, 32, 34, 128>(unpack, blocks, out, num_weights);
}

namespace {

constexpr UniformGrid kGrid{-127.0f, 127.0f};
constexpr float kTargets[] = {127.0f};

void encode(const SubBlocks<32>& subs, uint8_t* block) {
  Lanes scale;
  if (subs.has_importance) {
    search_half_scale(subs, kGrid, kTargets, &scale);
  } else {
    quick_half_scale(subs, kGrid, kTargets, &scale);
  }
  uint8_t codes[kLanes * 32];
  round_codes(subs, kGrid, scale, codes);
  for (int lane = 0; lane < kLanes; ++lane, block += 34) {
    store_half(block, scale[lane]);
    for (int i = 0; i < 32; ++i) block[2 + i] = static_cast<uint8_t>(codes[lane * 32 + i] - 127);
  }
}

}  // namespace

void quantize(const float* weights, const float* importance, uint8_t* blocks, int64_t num_weights,
              int64_t row_length) {
  quantize_groups<32, 34, 32>(weights, importance, blocks, num_weights, row_length, encode);
}

}  // namespace rillm::q8_0
