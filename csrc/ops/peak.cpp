#include "ops/peak.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "isa/simd.h"
#include "unroll.h"

namespace rillm {
namespace {

constexpr int kRuns = 5;
constexpr double kSeconds = 0.02;
constexpr int64_t kSteps = 4096;  // between two looks at the clock

// The products of one step go to so many sums, which hide the latency and fit the registers.
#ifdef RILLM_MATRIX_UNIT
constexpr int kSums = MatrixUnit::kSums;
constexpr int kColumns = 32;  // that share a scale, so that their products may share a sum
constexpr int64_t kMacs = int64_t{MatrixUnit::kTokens} * Tile::kRows * kColumns;
#else
#ifdef RILLM_COLUMN_TILES
constexpr int kSums = Tile::kMaxUnits;  // units of codes, that is
#else
constexpr int kSums = sizeof(Tile::W) == 64 ? 12 : 5;
#endif
constexpr int64_t kMacs = int64_t{Tile::kRows} * Tile::kGroup;
#endif

constexpr int kFloatSums = 10;
alignas(64) float float_starts[kFloatSums * Simd::kLanes];
alignas(64) uint8_t codes[std::max<size_t>(512, kSums * sizeof(Tile::W))] = {1, 2,  3,  5,
                                                                             8, 13, 21, 34};
alignas(64) int8_t activations[512] = {1, -2, 3, -5, 8, -13, 21, -34};

// The same pointer, but the compiler no longer knows what it points to.
template <class T>
T* opaque(T* pointer) {
  asm volatile("" : "+r"(pointer) : : "memory");
  return pointer;
}

#ifdef RILLM_MATRIX_UNIT
void multiply_int8() {
  const MatrixUnit::Use<kColumns> use;
  MatrixUnit::load_input<0>(codes, kColumns);
  unroll<kSums>([&](auto i) RILLM_INLINE { MatrixUnit::multiply<i, 0>(activations); });
  for (int64_t step = 0; step < kSteps; ++step) {
    unroll<kSums>([&](auto i) RILLM_INLINE { MatrixUnit::add_product<i, 0, i % 2>(); });
  }
}
#else
void multiply_int8() {
  const uint8_t* bytes = opaque(codes);
  const int8_t* inputs = opaque(activations);
#ifdef RILLM_COLUMN_TILES
  Tile::W w[kSums];
  unroll<kSums>([&](auto i) RILLM_INLINE { w[i] = Tile::wload(bytes + i * sizeof(Tile::W)); });
  Tile::Run run(inputs, 0);
  for (int64_t step = 0; step < kSteps; ++step) {
    Tile::add_units<0, false>(run, inputs, w);
  }
  Tile::S sum[1] = {run.sum()};
#else
  Tile::W w[kSums][1];
  Tile::I sum[kSums];
  unroll<kSums>([&](auto i) RILLM_INLINE {
    w[i][0] = Tile::wload(bytes + i * sizeof(Tile::W));
    sum[i] = Tile::iset1(0);
  });
  for (int64_t step = 0; step < kSteps; ++step) {
    const int8_t* x = inputs + step % 16 * 4;
    // Codes up to 127: one product and one widening each.
    unroll<kSums>([&](auto i) RILLM_INLINE { sum[i] = Tile::template dot<127>(sum[i], w[i], x); });
  }
#endif
  asm volatile("" ::"r"(sum) : "memory");  // they were wanted
}
#endif

void multiply_float() {
  const Simd::F a = Simd::load(reinterpret_cast<const float*>(opaque(codes)));
  const float* starts = opaque(float_starts);
  Simd::F sum[kFloatSums];
  // Each starts elsewhere: GCC sees that equal sums stay equal, and keeps one of them.
  unroll<kFloatSums>([&](auto i) RILLM_INLINE { sum[i] = Simd::load(starts + i * Simd::kLanes); });
  for (int64_t step = 0; step < kSteps; ++step) {
    unroll<kFloatSums>([&](auto i) RILLM_INLINE { sum[i] = Simd::fma(a, a, sum[i]); });
  }
  float out[Simd::kLanes];
  unroll<kFloatSums>([&](auto i) RILLM_INLINE { sum[0] = Simd::add(sum[0], sum[i]); });
  Simd::store(out, sum[0]);
  asm volatile("" ::"r"(out) : "memory");
}

double rate(ThreadTeam& team, void (*multiply)(), int64_t macs) {
  double best = 0;
  std::vector<int64_t> counts(static_cast<size_t>(team.num_threads()) * 8);  // a line each
  for (int run = 0; run < kRuns; ++run) {
    const auto start = std::chrono::steady_clock::now();
    const auto elapsed = [&] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    team.parallel([&](int thread) {
      int64_t& count = counts[static_cast<size_t>(thread) * 8];
      for (count = 0; elapsed() < kSeconds; ++count) multiply();
    });
    const double seconds = elapsed();
    int64_t total = 0;
    for (const int64_t count : counts) total += count;
    best = std::max(best, static_cast<double>(total * macs) / seconds);
  }
  return best;
}

}  // namespace

MultiplyPeak measure_multiply_peak(ThreadTeam& team) {
  return {rate(team, multiply_int8, kSteps * kSums * kMacs),
          rate(team, multiply_float, kSteps * 10 * Simd::kLanes)};
}

}  // namespace rillm
