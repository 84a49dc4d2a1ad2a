// What attention does with one slab of keys and values and one or two vectors of query rows.
#pragma once

#include <cstdint>

#include "isa/simd.h"
#include "ops/math.h"
#include "unroll.h"

namespace rillm {

inline constexpr int kKeys = Simd::kScores;  // keys whose scores stay in registers
inline constexpr int kSlab = 32;             // keys whose softmax is taken together
inline constexpr int kRowsTogether = 16;     // of a slab that follow one another in memory
inline constexpr float kMasked = -1e30f;     // finite: infinity - infinity would be NaN

static_assert(kSlab == 2 * kRowsTogether && kRowsTogether % kKeys == 0);

// Keys or values of one KV head, as they are cached and as float32. One vector unit converts while
// another multiplies, but only where the two alternate closely: so between multiplications the rows
// that are wanted soon are converted one chunk at a time, and the next slab is prefetched, in the
// order of memory, which is faster than the order of use.
template <class Chunk>
struct Slab {
  int64_t row_bytes;
  float* floats;                               // [dim / 32, kSlab, 32]
  const uint8_t* rows[kSlab / kRowsTogether];  // where kRowsTogether of them begin
  // Of the slab after this one: what is prefetched next, and its two pieces.
  const uint8_t *ahead, *first_end, *second;

  RILLM_INLINE void convert(int32_t chunk, int row) const {
    const int64_t at = row % kRowsTogether * row_bytes + chunk * Chunk::kBytes;
    Chunk::load(rows[row / kRowsTogether] + at, floats + (chunk * kSlab + row) * 32);
  }
  RILLM_INLINE void prefetch() {
    __builtin_prefetch(ahead);
    ahead += Chunk::kBytes;
    if (ahead == first_end) ahead = second;
  }
};

// As the first vectors of query rows left it.
struct ConvertedSlab {
  const float* floats;
  void convert(int32_t, int) const {}
  void prefetch() const {}
};

// n vectors of query rows go together, and what is broadcast serves all of them; kTogether keys, or
// elements of values, at a time keep as many sums as the registers hold. What is added to a sum,
// and in which order, does not depend on n.

// scores [n, kSlab, kLanes] = q [n, dim, kLanes] . keys [num_keys, dim]
template <int n, class Keys>
inline void score_keys(const float* q, Keys& keys, int num_keys, int32_t dim, float* scores) {
  constexpr int kTogether = kKeys / n, kSteps = 32 / kTogether;
  for (int row = 0; row < kTogether; ++row) keys.convert(0, row);
  for (int first = 0; first < num_keys; first += kTogether) {
    Simd::F sum[n][kTogether];
    unroll<n * kTogether>([&](auto k)
                              RILLM_INLINE { sum[k / kTogether][k % kTogether] = Simd::zero(); });
    for (int32_t chunk = 0; chunk < dim / 32; ++chunk) {
      const float* key = keys.floats + (chunk * kSlab + first) * 32;
      const float* query_at = q + int64_t{chunk} * 32 * Simd::kLanes;
      const bool last = chunk + 1 == dim / 32;
      const int32_t next_chunk = last ? 0 : chunk + 1;
      const int next_row = last && first + kTogether < num_keys ? first + kTogether : first;
      for (int part = 0; part < kTogether; ++part) {
        keys.convert(next_chunk, next_row + part);
        keys.prefetch();
        unroll<kSteps>([&](auto step) RILLM_INLINE {
          const int d = part * kSteps + step;
          Simd::F query[n];
          unroll<n>([&](auto v) RILLM_INLINE {
            query[v] = Simd::load(query_at + (int64_t{v} * dim + d) * Simd::kLanes);
          });
          unroll<kTogether>([&](auto j) RILLM_INLINE {
            const auto element = Simd::set1(key[j * 32 + d]);
            unroll<n>([&](auto v)
                          RILLM_INLINE { sum[v][j] = Simd::fma(query[v], element, sum[v][j]); });
          });
        });
      }
    }
    unroll<n * kTogether>([&](auto k) RILLM_INLINE {
      constexpr int v = k / kTogether, j = k % kTogether;
      Simd::store(scores + (v * kSlab + first + j) * Simd::kLanes, sum[v][j]);
    });
  }
}

// out [n, dim, kLanes] = keep [n, kLanes] * out + weights [n, kSlab, kLanes] . values [num_keys,
// dim]
template <int n, class Values>
inline void add_values(const float* weights, const float* keep, Values& values, int num_keys,
                       int32_t dim, float* out) {
  constexpr int kTogether = kKeys / n, kSteps = 32 / kTogether;
  for (int row = 0; row < num_keys; ++row) values.convert(0, row);
  for (int32_t chunk = 0; chunk < dim / 32; ++chunk) {
    const int32_t next_chunk = chunk + 1 < dim / 32 ? chunk + 1 : 0;
    int next_row = 0;
    for (int d = 0; d < 32; d += kTogether) {
      float* to = out + (int64_t{chunk} * 32 + d) * Simd::kLanes;
      Simd::F sum[n][kTogether];
      unroll<n * kTogether>([&](auto k) RILLM_INLINE {
        constexpr int v = k / kTogether, j = k % kTogether;
        sum[v][j] = Simd::mul(Simd::load(to + (int64_t{v} * dim + j) * Simd::kLanes),
                              Simd::load(keep + v * Simd::kLanes));
      });
      const float* value = values.floats + chunk * kSlab * 32 + d;
      for (int first = 0; first < num_keys; first += kSteps) {
        values.convert(next_chunk, next_row++);
        values.prefetch();
        unroll<kSteps>([&](auto step) RILLM_INLINE {
          const int key = first + step;
          Simd::F weight[n];
          unroll<n>([&](auto v) RILLM_INLINE {
            weight[v] = Simd::load(weights + (v * kSlab + key) * Simd::kLanes);
          });
          unroll<kTogether>([&](auto j) RILLM_INLINE {
            const auto element = Simd::set1(value[key * 32 + j]);
            unroll<n>([&](auto v)
                          RILLM_INLINE { sum[v][j] = Simd::fma(weight[v], element, sum[v][j]); });
          });
        });
      }
      unroll<n * kTogether>([&](auto k) RILLM_INLINE {
        constexpr int v = k / kTogether, j = k % kTogether;
        Simd::store(to + (int64_t{v} * dim + j) * Simd::kLanes, sum[v][j]);
      });
    }
  }
}

// One vector's scores [num_keys, kLanes] become 2^(score - max), and its maximum and sum take them
// in; `keep` is what earlier outputs must be multiplied with.
inline void update_softmax(float* scores, int num_keys, int64_t key, int32_t first_position,
                           const float* positions, float* max_at, float* sum_at, float* keep_at) {
  if (key + num_keys - 1 > first_position) {
    const Simd::F position = Simd::load(positions);
    for (int j = 0; j < num_keys; ++j) {
      float* score = scores + j * Simd::kLanes;
      const Simd::F ahead = Simd::sub(Simd::set1(static_cast<float>(key + j)), position);
      Simd::store(
          score, Simd::fma(Simd::max(ahead, Simd::zero()), Simd::set1(kMasked), Simd::load(score)));
    }
  }
  const Simd::F old_max = Simd::load(max_at);
  Simd::F max = old_max;
  for (int j = 0; j < num_keys; j += kKeys) {
    Simd::F highest[kKeys];
    for (int i = 0; i < kKeys; ++i) highest[i] = Simd::load(scores + (j + i) * Simd::kLanes);
    for (int step = kKeys / 2; step > 0; step /= 2) {
      for (int i = 0; i < step; ++i) highest[i] = Simd::max(highest[i], highest[i + step]);
    }
    max = Simd::max(max, highest[0]);
  }
  const Simd::F keep = exp2(Simd::sub(old_max, max));
  Simd::F sum = Simd::mul(Simd::load(sum_at), keep);
  for (int j = 0; j < num_keys; ++j) {
    const Simd::F weight = exp2(Simd::sub(Simd::load(scores + j * Simd::kLanes), max));
    sum = Simd::add(sum, weight);
    Simd::store(scores + j * Simd::kLanes, weight);
  }
  Simd::store(max_at, max);
  Simd::store(sum_at, sum);
  Simd::store(keep_at, keep);
}

}  // namespace rillm
