#include "ops/activations.h"

#include <cstring>

namespace rillm {

void quantize_row(const float* x, uint8_t* buffer, int64_t token, int64_t num_tokens,
                  int64_t width) {
  const TokenGroup group = group_of(token, num_tokens);
  const int64_t place = token - group.first, size = group.size;
  uint8_t* strip = buffer + group.first * q8_row_bytes(width);
  for (int64_t i = 0; i < width; i += 32, strip += size * kStripActivationBytes) {
    Simd::F top = Simd::zero();
    for (int k = 0; k < 32; k += Simd::kLanes) {
      top = Simd::max(top, Simd::abs(Simd::load(x + i + k)));
    }
    const float max = Simd::reduce_max(top);
    const Simd::F inverse = Simd::set1(max > 0.0f ? 127.0f / max : 0.0f);
    int32_t codes[32];
    for (int k = 0; k < 32; k += Simd::kLanes) {
      Simd::istore(codes + k, Simd::round(Simd::mul(Simd::load(x + i + k), inverse)));
    }
    auto* q = reinterpret_cast<int8_t*>(strip + 32 * place);
    int32_t sums[kSums] = {};
    for (int half = 0; half < 2; ++half) {
#ifdef RILLM_COLUMN_TILES
      sums[half] = Simd::pack16(codes + 16 * half, q + 16 * half);
#else
      for (int k = 16 * half; k < 16 * (half + 1); ++k) {
        q[k] = static_cast<int8_t>(codes[k]);
        sums[half] += codes[k];
      }
#endif
    }
    if constexpr (kSums == 3) sums[2] = sums[0] + sums[1];
    const float d = max / 127.0f;
    uint8_t* scales = strip + 32 * size + 4 * place;
    std::memcpy(scales, &d, sizeof d);
    for (int sum = 0; sum < kSums; ++sum) {
      std::memcpy(scales + 4 * size * (1 + sum), &sums[sum], sizeof sums[sum]);
    }
  }
}

}  // namespace rillm
