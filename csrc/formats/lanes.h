// The quantisers work on 16 sub-blocks side by side: a lane is a sub-block, and every lane does the
// same search on its own numbers.
//
// Inner loops are written `for lane { for weight { ... } }` over arrays [weight][lane], without
// branches and with constant trip counts. GCC turns the lane loop into vectors of any width without
// changing the order of a float operation, so all ISA variants of the core write the same bytes
// (the core is compiled with -ffp-contract=off). It makes none of a loop of 16 that stands within
// another: that it unrolls first. So loops over lanes that belong into a search are functions that
// are not inlined, and loops over all weights of a group have one index.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace rillm {

inline constexpr int kLanes = 16;

struct alignas(64) Lanes {
  float v[kLanes];
  float& operator[](int lane) { return v[lane]; }
  float operator[](int lane) const { return v[lane]; }
};

inline Lanes filled(float value) {
  Lanes lanes;
  for (int l = 0; l < kLanes; ++l) lanes[l] = value;
  return lanes;
}

template <int kSize>  // weights in a sub-block: 16 or 32
struct SubBlocks {
  float rows[kLanes * kSize];  // weights, finite: [lane][kSize]
  Lanes x[kSize];              // the same, transposed: [kSize][lane]
  Lanes w[kSize];              // how much the squared error of each weight counts, > 0
  bool has_importance;         // otherwise every w is 1
};

// A weight beyond what any format can hold is quantised as this, so that no sum overflows.
inline constexpr float kLargestWeight = 1e8f;

// c ? a : b, by masking: a select that no compiler turns into a branch, so the loop around it is
// vectorised.
inline float pick(bool c, float a, float b) {
  const uint32_t mask = 0u - static_cast<uint32_t>(c);
  return std::bit_cast<float>((std::bit_cast<uint32_t>(a) & mask) |
                              (std::bit_cast<uint32_t>(b) & ~mask));
}

inline float clamp(float x, float low, float high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

// Nearest integer, halves to even, for |x| < 2^22.
inline float round_to_int(float x) { return (x + 12582912.0f) - 12582912.0f; }

// 0 for scales that are 0 next to the smallest half, 6e-8: then every code is 0.
inline float inverse_of(float scale) {
  const bool usable = std::fabs(scale) > 1e-12f;
  return pick(usable, 1.0f / pick(usable, scale, 1.0f), 0.0f);
}
[[gnu::noinline]] inline void invert(const Lanes& scale, Lanes* inverse) {
  for (int l = 0; l < kLanes; ++l) inverse->v[l] = inverse_of(scale.v[l]);
}

// The finite binary16 value nearest to x (of two equally near, either).
inline float nearest_half(float x) {
  x = pick(x > 65504.0f, 65504.0f, pick(x < -65504.0f, -65504.0f, x));
  const float subnormal = (x + 0.75f) - 0.75f;  // 2^-24 is the last place of 0.75
  const float scaled = x * 8193.0f;             // 2^13 + 1: leaves 11 bits (Veltkamp)
  const float normal = scaled - (scaled - x);
  return pick(std::fabs(x) < 0x1p-14f, subnormal, normal);
}
// Not rounded to 0: a scale of 2^-24 with small codes is better than none.
inline float nearest_nonzero_half(float x) {
  const bool tiny = (std::fabs(x) < 0x1p-24f) & (x != 0.0f);
  return nearest_half(pick(tiny, std::copysign(0x1p-24f, x), x));
}
// The next half above (direction 1) or below (-1).
inline float next_half(float half, float direction) {
  const float place = std::fabs(half) * 0x1p-10f;
  return nearest_half(half + direction * 0.7f * pick(place > 0x1p-24f, place, 0x1p-24f));
}

// Folds pairs of 2 * kHalf elements until the first is left: step(a, b) folds element b into a.
template <int kHalf, class Step>
inline void fold(const Step& step) {
  for (int i = 0; i < kHalf; ++i) step(i, i + kHalf);
  if constexpr (kHalf > 1) fold<kHalf / 2>(step);
}

// The candidate of least cost; overwrites both.
template <int kCount>
[[gnu::noinline]] float cheapest(float (&candidates)[kCount], float (&costs)[kCount]) {
  fold<kCount / 2>([&](int a, int b) {
    const bool better = costs[b] < costs[a];
    candidates[a] = pick(better, candidates[b], candidates[a]);
    costs[a] = pick(better, costs[b], costs[a]);
  });
  return candidates[0];
}

// The value of largest magnitude, with its sign.
template <int kCount>
[[gnu::noinline]] float largest_of(const float* values) {
  float rest[kCount];
  std::copy_n(values, kCount, rest);
  fold<kCount / 2>([&](int a, int b) {
    rest[a] = pick(std::fabs(rest[b]) > std::fabs(rest[a]), rest[b], rest[a]);
  });
  return rest[0];
}

inline float sum_lanes(const Lanes& lanes, int first, int count) {
  float sum = 0.0f;
  for (int l = first; l < first + count; ++l) sum += lanes[l];
  return sum;
}

// What an importance is multiplied with, so that the mean of a row is 1.
inline float importance_factor(const float* importance, int64_t row_length) {
  double sums[kLanes] = {};  // row_length is a multiple of 32
  for (int64_t i = 0; i < row_length; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) sums[l] += importance[i + l] > 0.0f ? importance[i + l] : 0.0f;
  }
  double sum = 0.0;
  for (const double part : sums) sum += part;
  return sum > 0.0 ? static_cast<float>(static_cast<double>(row_length) / sum) : 0.0f;
}

// Squared-error weights of a group: with a mean of 1 over the row and a floor, so that no weight
// may take just any value.
template <int kCount>
void weigh(const float (&importance)[kCount], float factor, float (&out)[kCount]) {
  for (int i = 0; i < kCount; ++i) out[i] = 1e-5f + clamp(importance[i] * factor, 0.0f, 1e6f);
}

template <int kCount>
void make_finite(const float* weights, float (&out)[kCount]) {
  for (int i = 0; i < kCount; ++i) {
    const float x = weights[i];
    out[i] = pick(x == x, clamp(x, -kLargestWeight, kLargestWeight), 0.0f);
  }
}

// [lane][kSize] -> [kSize][lane], in squares of 4.
template <int kSize>
void transpose(const float (&rows)[kLanes * kSize], Lanes* out) {
  using Four = float __attribute__((vector_size(16)));
  for (int l = 0; l < kLanes; l += 4) {
    for (int i = 0; i < kSize; i += 4) {
      Four a, b, c, d;
      std::memcpy(&a, rows + l * kSize + i, sizeof a);
      std::memcpy(&b, rows + (l + 1) * kSize + i, sizeof b);
      std::memcpy(&c, rows + (l + 2) * kSize + i, sizeof c);
      std::memcpy(&d, rows + (l + 3) * kSize + i, sizeof d);
      const Four ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
      const Four ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const Four cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
      const Four cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
      const Four columns[4] = {__builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5),
                               __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
                               __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5),
                               __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
      for (int k = 0; k < 4; ++k) std::memcpy(out[i + k].v + l, &columns[k], sizeof(Four));
    }
  }
}

// Cuts a tensor into groups of 16 sub-blocks and has each group encoded. encode(subs, bytes) writes
// the blocks of a group: kLanes * kSize / kBlockSize blocks.
template <int kBlockSize, int kBlockBytes, int kSize>
void quantize_groups(const float* weights, const float* importance, uint8_t* blocks,
                     int64_t num_weights, int64_t row_length,
                     void (*encode)(const SubBlocks<kSize>&, uint8_t*)) {
  constexpr int kGroupSize = kLanes * kSize;
  constexpr int64_t kGroupBytes = kGroupSize / kBlockSize * kBlockBytes;
  const int64_t num_bytes = num_weights / kBlockSize * kBlockBytes;
  const float factor = importance ? importance_factor(importance, row_length) : 0.0f;
  SubBlocks<kSize> subs;
  subs.has_importance = importance != nullptr;
  for (Lanes& w : subs.w) w = filled(1.0f);
  for (int64_t first = 0, byte = 0; first < num_weights; first += kGroupSize, byte += kGroupBytes) {
    // The last group may be short: its spare lanes repeat the last sub-block.
    const auto start_of = [&](int lane) {
      return std::min(first + lane * kSize, num_weights - kSize);
    };
    if (first + kGroupSize <= num_weights) {
      make_finite(weights + first, subs.rows);
    } else {
      float padded[kGroupSize];
      for (int lane = 0; lane < kLanes; ++lane) {
        std::memcpy(padded + lane * kSize, weights + start_of(lane), kSize * sizeof(float));
      }
      make_finite(padded, subs.rows);
    }
    transpose<kSize>(subs.rows, subs.x);
    if (importance) {
      float wanted[kGroupSize], weighed[kGroupSize];
      for (int lane = 0; lane < kLanes; ++lane) {
        const float* from = importance + start_of(lane) % row_length;
        std::memcpy(wanted + lane * kSize, from, kSize * sizeof(float));
      }
      weigh(wanted, factor, weighed);
      transpose<kSize>(weighed, subs.w);
    }
    uint8_t group[kGroupBytes];
    encode(subs, group);
    std::memcpy(blocks + byte, group, static_cast<size_t>(std::min(kGroupBytes, num_bytes - byte)));
  }
}

}  // namespace rillm
